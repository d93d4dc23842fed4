"""Explicit broadcasting (contracts/pypto_dsl.md 3.2)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor as Torch

from harness.devices.emulator.machine import fault, machine
from harness.devices.emulator.ops import approx
from harness.devices.emulator.ops.common import (
    ARITHMETIC,
    FLOATS,
    apply,
    as_tile,
    check_arithmetic,
    common_dtype,
    embed,
    is_scalar,
    scalar_for,
)
from harness.devices.emulator.ops.elementwise import Number, Operand, widened
from harness.devices.emulator.optable import op
from harness.devices.emulator.values import Tile, describe


def _rows(name: str, t: object, v: object) -> tuple[Tile, Tile]:
    """A matrix and a `[M, 1]` column. Raises for other shapes."""
    matrix, vector = as_tile(t, name), as_tile(v, name, "vector")
    if vector.shape != (*matrix.shape[:-1], 1):
        raise fault(f"pl.{name}: a matrix {list(matrix.shape)} needs a column [M, 1], not {list(vector.shape)}")
    return matrix, vector


def _columns(name: str, t: object, v: object) -> tuple[Tile, Tile]:
    """A matrix and a `[1, N]` row. Raises for other shapes."""
    matrix, vector = as_tile(t, name), as_tile(v, name, "vector")
    if vector.shape != (*(1,) * (len(matrix.shape) - 1), matrix.shape[-1]):
        raise fault(f"pl.{name}: a matrix {list(matrix.shape)} needs a row [1, N], not {list(vector.shape)}")
    return matrix, vector


def _combine(
    name: str, operands: tuple[Tile, Tile], function: Callable[[Torch, Torch], Torch], integers: bool = True
) -> Tile:
    matrix, vector = operands
    dtype = matrix.dtype
    if vector.dtype is not dtype:
        dtype = common_dtype(name, matrix, vector)
        function = widened(function, dtype)
    check_arithmetic(name, dtype, ARITHMETIC if integers else FLOATS)
    return apply(name, function, operands, dtype)


def _exp_of_difference(t: Torch, v: Torch) -> Torch:
    return approx.transcendental(np.exp, machine().schedule)(t - v)


@op("row_expand_add", "tensor.row_expand_add", "tile.row_expand_add")
def row_expand_add(t: Operand, v: Operand, tmp: Operand | None = None) -> Tile:
    """t[i,j] + v[i,0] (3.2)."""
    return _combine("row_expand_add", _rows("row_expand_add", t, v), torch.add)


@op("row_expand_sub", "tensor.row_expand_sub", "tile.row_expand_sub")
def row_expand_sub(t: Operand, v: Operand) -> Tile:
    """t[i,j] − v[i,0] (3.2)."""
    return _combine("row_expand_sub", _rows("row_expand_sub", t, v), torch.sub)


@op("row_expand_mul", "tensor.row_expand_mul", "tile.row_expand_mul")
def row_expand_mul(t: Operand, v: Operand) -> Tile:
    """t[i,j] · v[i,0] (3.2)."""
    return _combine("row_expand_mul", _rows("row_expand_mul", t, v), torch.mul)


@op("row_expand_div", "tensor.row_expand_div", "tile.row_expand_div")
def row_expand_div(t: Operand, v: Operand) -> Tile:
    """t[i,j] / v[i,0], correctly rounded (3.2)."""
    return _combine("row_expand_div", _rows("row_expand_div", t, v), torch.true_divide, integers=False)


@op("row_expand_max", "tensor.row_expand_max", "tile.row_expand_max")
def row_expand_max(t: Operand, v: Operand) -> Tile:
    """max(t[i,j], v[i,0]) (3.2)."""
    return _combine("row_expand_max", _rows("row_expand_max", t, v), torch.maximum)


@op("row_expand_min", "tensor.row_expand_min", "tile.row_expand_min")
def row_expand_min(t: Operand, v: Operand) -> Tile:
    """min(t[i,j], v[i,0]) (3.2)."""
    return _combine("row_expand_min", _rows("row_expand_min", t, v), torch.minimum)


@op("row_expand_expdif", "tensor.row_expand_expdif", "tile.row_expand_expdif")
def row_expand_expdif(t: Operand, v: Operand) -> Tile:
    """exp(t[i,j] − v[i,0]), the difference rounded first (3.2)."""
    return _combine("row_expand_expdif", _rows("row_expand_expdif", t, v), _exp_of_difference, integers=False)


@op("col_expand_add", "tensor.col_expand_add", "tile.col_expand_add")
def col_expand_add(t: Operand, v: Operand) -> Tile:
    """t[i,j] + v[0,j] (3.2)."""
    return _combine("col_expand_add", _columns("col_expand_add", t, v), torch.add)


@op("col_expand_sub", "tensor.col_expand_sub", "tile.col_expand_sub")
def col_expand_sub(t: Operand, v: Operand) -> Tile:
    """t[i,j] − v[0,j] (3.2)."""
    return _combine("col_expand_sub", _columns("col_expand_sub", t, v), torch.sub)


@op("col_expand_mul", "tensor.col_expand_mul", "tile.col_expand_mul")
def col_expand_mul(t: Operand, v: Operand) -> Tile:
    """t[i,j] · v[0,j] (3.2)."""
    return _combine("col_expand_mul", _columns("col_expand_mul", t, v), torch.mul)


@op("col_expand_div", "tensor.col_expand_div", "tile.col_expand_div")
def col_expand_div(t: Operand, v: Operand) -> Tile:
    """t[i,j] / v[0,j], correctly rounded (3.2)."""
    return _combine("col_expand_div", _columns("col_expand_div", t, v), torch.true_divide, integers=False)


@op("col_expand_max", "tensor.col_expand_max", "tile.col_expand_max")
def col_expand_max(t: Operand, v: Operand) -> Tile:
    """max(t[i,j], v[0,j]) (3.2)."""
    return _combine("col_expand_max", _columns("col_expand_max", t, v), torch.maximum)


@op("col_expand_min", "tensor.col_expand_min", "tile.col_expand_min")
def col_expand_min(t: Operand, v: Operand) -> Tile:
    """min(t[i,j], v[0,j]) (3.2)."""
    return _combine("col_expand_min", _columns("col_expand_min", t, v), torch.minimum)


@op("col_expand_expdif", "tensor.col_expand_expdif", "tile.col_expand_expdif")
def col_expand_expdif(t: Operand, v: Operand) -> Tile:
    """exp(t[i,j] − v[0,j]), the difference rounded first (3.2)."""
    return _combine("col_expand_expdif", _columns("col_expand_expdif", t, v), _exp_of_difference, integers=False)


def _replicated(name: str, target: Tile, vector: Tile) -> Tile:
    """The vector over the target's valid region. The target's values and their taint play no part (3.2)."""
    if vector.dtype is not target.dtype:
        machine().lint("GG201", f"pl.{name}: the target is {target.dtype}, the vector {vector.dtype}")
    data, taint = vector.data, vector.taint
    cut = tuple(slice(min(v, s)) for v, s in zip(target.valid, vector.shape, strict=True))
    spread = data[cut].expand(target.valid).to(target.dtype.storage)
    return embed(spread, target.dtype, target.shape, name, taint=None if taint is None else taint[cut])


@op("row_expand", "tensor.row_expand", "tile.row_expand")
def row_expand(target: Operand, v: Operand) -> Tile:
    """v [M,1] replicated along the rows of target's shape; target's values are ignored (3.2)."""
    return _replicated("row_expand", *_rows("row_expand", target, v))


@op("col_expand", "tensor.col_expand", "tile.col_expand")
def col_expand(target: Operand, v: Operand) -> Tile:
    """v [1,N] replicated down the columns of target's shape; target's values are ignored (3.2)."""
    return _replicated("col_expand", *_columns("col_expand", target, v))


@op("expands", "tensor.expands", "tile.expands")
def expands(target: Operand, s: Number) -> Tile:
    """A scalar over target's shape; target's values are ignored (3.2)."""
    tile = as_tile(target, "expands")
    if not is_scalar(s):
        raise fault(f"pl.expands: the value must be a scalar, not {describe(s)}")
    filled = torch.full(tile.valid, scalar_for(s, tile.dtype, "expands"), dtype=tile.dtype.storage)
    return embed(filled, tile.dtype, tile.shape, "expands")


@op("expand_clone", "tensor.expand_clone", "tile.expand_clone")
def expand_clone(src: Operand, target: Operand) -> Tile:
    """src replicated to target's shape along its one axis of extent 1 (3.2)."""
    small, large = as_tile(src, "expand_clone"), as_tile(target, "expand_clone", "target")
    differing = [a for a, (s, t) in enumerate(zip(small.shape, large.shape, strict=False)) if s != t]
    if len(small.shape) != len(large.shape) or len(differing) > 1 or any(small.shape[a] != 1 for a in differing):
        raise fault(f"pl.expand_clone: {list(small.shape)} cannot be replicated to {list(large.shape)}")
    return _replicated("expand_clone", large, small)
