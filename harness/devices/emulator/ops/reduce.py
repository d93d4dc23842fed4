"""Reductions over the valid rectangle (contracts/pypto_dsl.md 3.10, dense.md 2.3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor as Torch

from harness.devices.emulator import rounding
from harness.devices.emulator.dtypes import FP16, INT32, DType
from harness.devices.emulator.machine import fault, machine
from harness.devices.emulator.ops.common import ARITHMETIC, as_tile, check_arithmetic, check_vector, embed
from harness.devices.emulator.ops.elementwise import Operand
from harness.devices.emulator.optable import op
from harness.devices.emulator.values import Tile

Reduce = Callable[[Torch], Torch]
Rows = NDArray[Any]  # FP32 or FP16, [..., columns]


def _reduced(name: str, x: object, axis: int, function: Reduce, dtype: DType | None = None) -> Tile:
    """`function` maps the valid box, flattened to rows, to the reduced one. Raises when nothing is valid."""
    tile = as_tile(x, name)
    check_arithmetic(name, tile.dtype, ARITHMETIC)
    if math.prod(tile.valid) == 0:
        raise fault(f"pl.{name}: the valid region {list(tile.valid)} is empty")
    check_vector(tile.shape, tile.dtype)
    if len(tile.shape) > 2 and axis == -2:
        tile = _flattened(tile, name)
    shape, valid = list(tile.shape), list(tile.valid)
    if len(shape) < -axis:
        raise fault(f"pl.{name}: {list(shape)} has no axis {axis}")
    shape[axis] = valid[axis] = 1
    rows = tile.valid_data
    data = function(rows if axis == -1 else rows.movedim(axis, -1)).reshape(valid)
    taint = tile.valid_taint
    marks = None if taint is None else taint.amax(dim=axis, keepdim=True)
    return embed(data, dtype or tile.dtype, shape, name, taint=marks)


def _flattened(tile: Tile, name: str) -> Tile:
    """Leading axes merged into rows (3.10); only a fully valid tile can be merged."""
    if not tile.full:
        raise fault(f"pl.{name}: a tile {list(tile.shape)} with valid {list(tile.valid)} cannot be flattened to 2-D")
    taint = tile.taint
    shape = (-1, tile.shape[-1])
    return Tile.of(
        tile.data.reshape(shape), tile.dtype, taint=None if taint is None else taint.reshape(shape), name=tile.name
    )


# --- orders of addition ----------------------------------------------------------------------------------------------


def _pairs(x: Rows) -> Rows:
    """Adjacent pairs along the last axis until one is left; an odd one out waits for the next round."""
    while (n := x.shape[-1]) > 1:
        total = x[..., 0 : n - 1 : 2] + x[..., 1:n:2]
        x = np.concatenate((total, x[..., n - 1 :]), axis=-1) if n % 2 else total
    return x[..., 0]


def _sequential(x: Rows) -> Rows:
    """Left to right along the last axis, every sum rounded to the dtype."""
    totals: Rows = np.add.accumulate(x, axis=-1)[..., -1]
    return totals


def _lane_blocks(x: Rows, lanes: int) -> tuple[Rows, Rows | None]:
    """Full blocks of `lanes` columns as [..., blocks, lanes], and the ragged tail."""
    n = x.shape[-1]
    whole = n // lanes * lanes
    blocks = x[..., :whole].reshape(*x.shape[:-1], -1, lanes)
    return blocks, x[..., whole:] if whole < n else None


def _lanes_in_pairs(x: Rows, lanes: int) -> Rows:
    """dense.md 2.3: blocks are added in adjacent pairs; an odd block joins the first pair, later on the last sum."""
    if x.shape[-1] <= lanes:
        return _pairs(x)
    blocks, tail = _lane_blocks(x, lanes)
    parts = blocks
    first = True
    while (r := parts.shape[-2]) > 1:
        total = parts[..., 0 : r - 1 : 2, :] + parts[..., 1:r:2, :]
        if r % 2:
            total[..., 0 if first else -1, :] += parts[..., -1, :]
        if first and tail is not None:
            total[..., 0, : tail.shape[-1]] += tail
            tail = None
        parts, first = total, False
    lane = parts[..., 0, :]
    if tail is not None:
        lane = lane.copy()
        lane[..., : tail.shape[-1]] += tail
    return _pairs(lane)


def _lanes_in_order(x: Rows, lanes: int) -> Rows:
    """3.10: the first two blocks, then the ragged tail, then the other full blocks in order."""
    if x.shape[-1] <= lanes:
        return _pairs(x)
    blocks, tail = _lane_blocks(x, lanes)
    lane = blocks[..., 0, :].copy()
    if blocks.shape[-2] > 1:
        lane += blocks[..., 1, :]
    if tail is not None:
        lane[..., : tail.shape[-1]] += tail
    for index in range(2, blocks.shape[-2]):
        lane += blocks[..., index, :]
    return _pairs(lane)


def _in_numpy(x: Torch, add: Callable[[Rows], Rows]) -> Torch:
    """`add` on the rows as a numpy array, where a sum of short rows costs a fraction of what it costs in torch.

    BF16, which the vector unit does not compute in (the op has said so), is added up in FP32 and rounded once.
    """
    if x.dtype is torch.bfloat16:
        return rounding.fp32_to_bf16(_in_numpy(x.float(), add), "rint")
    return torch.from_numpy(np.asarray(add(x.numpy())))


def _row_sum(x: Torch) -> Torch:
    """The sum of each row in the schedule's order; integers wrap."""
    if not x.dtype.is_floating_point:
        return torch.sum(x, dim=-1, dtype=x.dtype)
    schedule = machine().schedule
    order = schedule.pick("row_sum")
    lanes = 128 if x.dtype is FP16.storage else 64
    if order == "lanes":
        return _in_numpy(x, lambda rows: _lanes_in_pairs(rows, lanes))
    if order == "lanes_in_order":
        return _in_numpy(x, lambda rows: _lanes_in_order(rows, lanes))
    if order == "pairwise":
        return _in_numpy(x, _pairs)
    if order == "shuffled":
        x = x[..., schedule.permutation(x.shape[-1])]
    return _in_numpy(x, _sequential)


def _column_sum(x: Torch) -> Torch:
    """The sum of each column (columns lie along the last axis here): top to bottom, or a tree over rows."""
    if not x.dtype.is_floating_point:
        return torch.sum(x, dim=-1, dtype=x.dtype)
    return _in_numpy(x, _sequential if machine().schedule.pick("col_sum") == "top_down" else _pairs)


def _prod(x: Torch) -> Torch:
    """Left to right, every product rounded."""
    return _in_numpy(x, lambda rows: np.multiply.accumulate(rows, axis=-1)[..., -1])


def _largest(x: Torch) -> Torch:
    return _ignoring_nan(x, -math.inf).amax(dim=-1)


def _smallest(x: Torch) -> Torch:
    return _ignoring_nan(x, math.inf).amin(dim=-1)


def _ignoring_nan(x: Torch, identity: float) -> Torch:
    if machine().schedule.pick("max_nan") == "propagate" or not x.dtype.is_floating_point:
        return x
    all_nan = torch.isnan(x).all(dim=-1, keepdim=True)
    return torch.where(torch.isnan(x) & ~all_nan, identity, x)


# --- ops -------------------------------------------------------------------------------------------------------------


@op("row_sum", "tensor.row_sum", "tile.row_sum")
def row_sum(x: Operand, tmp_tile: Operand | None = None) -> Tile:
    """[M,N] → [M,1], in the order of the schedule (3.10)."""
    return _reduced("row_sum", x, -1, _row_sum)


@op("row_max", "tensor.row_max", "tile.row_max")
def row_max(x: Operand, tmp_tile: Operand | None = None) -> Tile:
    """[M,N] → [M,1], the largest of each row (3.10)."""
    return _reduced("row_max", x, -1, _largest)


@op("row_min", "tensor.row_min", "tile.row_min")
def row_min(x: Operand, tmp_tile: Operand | None = None) -> Tile:
    """[M,N] → [M,1], the smallest of each row (3.10)."""
    return _reduced("row_min", x, -1, _smallest)


@op("row_prod", "tensor.row_prod", "tile.row_prod")
def row_prod(x: Operand, tmp_tile: Operand | None = None) -> Tile:
    """[M,N] → [M,1], the product of each row, left to right (3.10)."""
    return _reduced("row_prod", x, -1, _prod)


@op("col_sum", "tensor.col_sum", "tile.col_sum")
def col_sum(x: Operand, tmp_tile: Operand | None = None) -> Tile:
    """[M,N] → [1,N], rows added top to bottom, or as a tree (3.10)."""
    return _reduced("col_sum", x, -2, _column_sum)


@op("col_max", "tensor.col_max", "tile.col_max")
def col_max(x: Operand) -> Tile:
    """[M,N] → [1,N], the largest of each column (3.10)."""
    return _reduced("col_max", x, -2, _largest)


@op("col_min", "tensor.col_min", "tile.col_min")
def col_min(x: Operand) -> Tile:
    """[M,N] → [1,N], the smallest of each column (3.10)."""
    return _reduced("col_min", x, -2, _smallest)


@op("col_prod", "tensor.col_prod", "tile.col_prod")
def col_prod(x: Operand) -> Tile:
    """[M,N] → [1,N], the product of each column, top to bottom (3.10)."""
    return _reduced("col_prod", x, -2, _prod)


def _position(largest: bool) -> Reduce:
    """The index of the extremum; among equal ones the schedule's choice (`sort_ties`)."""

    def find(x: Torch) -> Torch:
        extremum = x.amax(dim=-1, keepdim=True) if largest else x.amin(dim=-1, keepdim=True)
        hit = (x == extremum).to(torch.int8)
        if machine().schedule.pick("sort_ties") == "first":
            return hit.argmax(dim=-1).to(torch.int32)
        return (x.shape[-1] - 1 - hit.flip(-1).argmax(dim=-1)).to(torch.int32)

    return find


@op("row_argmax", "tensor.row_argmax", "tile.row_argmax")
def row_argmax(x: Operand, tmp_tile: Operand | None = None) -> Tile:
    """[M,N] → [M,1] INT32, the column of the largest element (3.10)."""
    return _reduced("row_argmax", x, -1, _position(True), INT32)


@op("row_argmin", "tensor.row_argmin", "tile.row_argmin")
def row_argmin(x: Operand, tmp_tile: Operand | None = None) -> Tile:
    """[M,N] → [M,1] INT32, the column of the smallest element (3.10)."""
    return _reduced("row_argmin", x, -1, _position(False), INT32)


@op("col_argmax", "tensor.col_argmax", "tile.col_argmax")
def col_argmax(x: Operand, tmp_tile: Operand | None = None) -> Tile:
    """[M,N] → [1,N] INT32, the row of the largest element (3.10)."""
    return _reduced("col_argmax", x, -2, _position(True), INT32)


@op("col_argmin", "tensor.col_argmin", "tile.col_argmin")
def col_argmin(x: Operand, tmp_tile: Operand | None = None) -> Tile:
    """[M,N] → [1,N] INT32, the row of the smallest element (3.10)."""
    return _reduced("col_argmin", x, -2, _position(False), INT32)
