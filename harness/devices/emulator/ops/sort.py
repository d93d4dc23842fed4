"""Sorting of value/index pairs (contracts/pypto_dsl.md 3.11). Payload bits are moved, never read as numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor as Torch

from harness.devices.emulator.dtypes import FP16, FP32, INT32, UINT32
from harness.devices.emulator.machine import fault, machine
from harness.devices.emulator.ops.common import as_tile, check_vector
from harness.devices.emulator.optable import op
from harness.devices.emulator.values import Tensor, Tile, as_int

_BLOCK = 32


def descending(values: Torch) -> Torch:
    """Order [..., n] that sorts descending, equal values in the schedule's order (`sort_ties`), NaN first."""
    schedule = machine().schedule
    ties = schedule.pick("sort_ties")
    if ties == "first":
        return torch.sort(values, dim=-1, descending=True, stable=True).indices
    n = values.shape[-1]
    before = torch.tensor(list(range(n))[::-1] if ties == "last" else schedule.permutation(n))
    order = torch.sort(values[..., before], dim=-1, descending=True, stable=True).indices
    return before[order]


@op("sort32", "tensor.sort32", "tile.sort32")
def sort32(src: Tensor | Tile, idx: Tensor | Tile) -> Tile:
    """Blocks of 32 sorted descending, as interleaved pairs (value, bits of idx): [r, N] → [r, 2N] (3.11).

    src is FP32, idx UINT32. An undefined value or index leaves its whole block undefined.
    """
    tile, labels = as_tile(src, "sort32"), as_tile(idx, "sort32", "idx")
    if tile.dtype is FP16:
        raise fault("pl.sort32: FP16 records are 8 bytes, which the result type does not model; sort FP32")
    if tile.dtype is not FP32 or labels.dtype not in (UINT32, INT32):
        raise fault(f"pl.sort32: needs FP32 values and UINT32 indices, not {tile.dtype} and {labels.dtype}")
    if labels.dtype is not UINT32:
        machine().lint("GG201", f"pl.sort32: the index must be UINT32, not {labels.dtype}")
    if tile.shape != labels.shape or len(tile.shape) != 2 or tile.shape[1] % _BLOCK:
        raise fault(
            f"pl.sort32: values {list(tile.shape)} and indices {list(labels.shape)} must be the same [r, N], N % 32 = 0"
        )
    rows, n = tile.shape
    check_vector((rows, 2 * n), FP32)
    values = tile.data.reshape(rows, -1, _BLOCK)
    payload = labels.data.contiguous().view(torch.int32).reshape(rows, -1, _BLOCK)
    order = descending(values)
    pairs = torch.stack((values.view(torch.int32).gather(-1, order), payload.gather(-1, order)), dim=-1)
    taint = None
    for operand in (tile, labels):
        if operand.taint is not None:
            worst = operand.taint.reshape(rows, -1, _BLOCK).amax(dim=-1, keepdim=True)
            taint = worst if taint is None else torch.maximum(taint, worst)
    if taint is not None:
        taint = taint.expand(-1, -1, 2 * _BLOCK).reshape(rows, 2 * n)
    valid = (tile.valid[0], 2 * tile.valid[1])
    return Tile.of(pairs.reshape(rows, 2 * n).view(torch.float32), FP32, valid=valid, taint=taint, name="sort32")


@op("mrgsort", "tensor.mrgsort", "tile.mrgsort", "mrgsort_format1", "mrgsort_format2")
def mrgsort(
    a: Tensor | Tile, *lists: Tensor | Tile, block_len: object = None, exhausted: bool = False, tmp: object = None
) -> Tile:
    """Format 1 (`block_len`): every four adjacent runs of `block_len` positions of one row become one.
    Format 2: two to four descending lists become one (3.11).

    Raises for a run that is not descending, on which the device's merge gives garbage.
    """
    if block_len is not None:
        if lists:
            raise fault("pl.mrgsort: block_len merges the runs of one operand; give two to four operands without it")
        return _runs(as_tile(a, "mrgsort"), as_int(block_len, "pl.mrgsort block_len"))
    if not 1 <= len(lists) <= 3:
        raise fault(f"pl.mrgsort: needs block_len, or two to four lists, got {1 + len(lists)} and no block_len")
    return _lists([as_tile(x, "mrgsort") for x in (a, *lists)], exhausted)


def _checked_row(tile: Tile) -> None:
    if tile.dtype is not FP32:
        raise fault(f"pl.mrgsort: needs FP32 pairs, not {tile.dtype}")
    if math.prod(tile.shape[:-1]) != 1:
        raise fault(f"pl.mrgsort: {list(tile.shape)} must be a single row")


def _runs(tile: Tile, length: int) -> Tile:
    _checked_row(tile)
    n = tile.shape[-1]
    if length <= 0 or length % 64:
        raise fault(f"pl.mrgsort: block_len {length} must be a positive multiple of 64")
    if n % (4 * length) or n // (4 * length) > 255:
        raise fault(f"pl.mrgsort: {n} positions must be 1 to 255 groups of 4 runs of {length}")
    pairs = tile.data.reshape(-1, 4, length // 2, 2)
    _refuse_unsorted(pairs[..., 0], tile.taint)
    groups = pairs.reshape(-1, 2 * length, 2)
    merged = _take(groups, descending(groups[..., 0]))
    taint = None
    if tile.taint is not None:
        taint = tile.taint.reshape(-1, 4 * length).amax(dim=-1, keepdim=True).expand(-1, 4 * length)
        taint = taint.reshape(tile.shape)
    return Tile.of(merged.reshape(tile.shape), FP32, valid=tile.valid, taint=taint, name="mrgsort")


def _lists(tiles: list[Tile], exhausted: bool) -> Tile:
    for tile in tiles:
        _checked_row(tile)
        if tile.valid[-1] % 2:
            raise fault(f"pl.mrgsort: {tile.valid[-1]} positions are no whole number of pairs")
    parts = [tile.valid_data.reshape(-1, 2) for tile in tiles]
    for tile, part in zip(tiles, parts, strict=True):
        _refuse_unsorted(part[:, 0], tile.valid_taint)
    pairs = torch.cat(parts)
    order = descending(pairs[:, 0])
    shape = (*tiles[0].shape[:-1], 2 * pairs.shape[0])
    taints = [t.valid_taint for t in tiles]
    worst = max((int(t.max()) for t in taints if t is not None and t.numel()), default=0)
    taint = torch.full(shape, worst, dtype=torch.int32) if worst else None
    if exhausted:
        taint = _until_exhausted(order, [p.shape[0] for p in parts], shape, taint)
    check_vector(shape, FP32)
    return Tile.of(_take(pairs, order).reshape(shape), FP32, taint=taint, name="mrgsort")


def _until_exhausted(order: Torch, lengths: list[int], shape: tuple[int, ...], taint: Torch | None) -> Torch:
    """Everything after the first list's last pair is undefined: the merge stops there (3.11)."""
    position = torch.empty_like(order)
    position[order] = torch.arange(order.numel())
    ends = torch.tensor(lengths).cumsum(0)
    starts = ends - torch.tensor(lengths)
    last = min(int(position[s:e].max()) for s, e in zip(starts.tolist(), ends.tolist(), strict=True) if e > s)
    marks = torch.zeros(shape, dtype=torch.int32) if taint is None else taint.clone()
    marks[..., 2 * (last + 1) :] = machine().origin("tail of a pl.mrgsort that stopped when one list was used up")
    return marks


def _take(pairs: Torch, order: Torch) -> Torch:
    """Pairs [..., n, 2] in the given order, moved as bits."""
    bits = pairs.view(torch.int32)
    taken: Torch = bits.gather(-2, order.unsqueeze(-1).expand(*order.shape, 2)).view(torch.float32)
    return taken


def _refuse_unsorted(values: Torch, taint: Torch | None) -> None:
    """Raise when a run rises. Undefined runs are let through: their taint covers the result."""
    if taint is not None and bool(taint.any()):
        return
    rises = values[..., :-1] < values[..., 1:]
    if bool(rises.any()):
        where = torch.nonzero(rises)[0].tolist()
        raise fault(f"pl.mrgsort: a run is not sorted descending (run {where[:-1]}, pair {where[-1]})")
