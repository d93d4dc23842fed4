"""Gathers (contracts/pypto_dsl.md 3.11). An index out of range or undefined is an error."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor as Torch

from harness.devices.emulator.dtypes import FP16, FP32, INT16, INT32, UINT16, UINT32, DType
from harness.devices.emulator.enums import MaskPattern, MemorySpace
from harness.devices.emulator.machine import fault, machine
from harness.devices.emulator.ops.common import (
    as_tile,
    check_vector,
    embed,
    gm_copy,
    refuse_taint,
    scalar_for,
)
from harness.devices.emulator.ops.memory import load_window, write_window
from harness.devices.emulator.optable import op
from harness.devices.emulator.values import Scalar, Tensor, Tile, View, as_int, as_ints, describe, poison

_GATHERED = frozenset((FP32, FP16, INT16, INT32, UINT16, UINT32))
_COMPARE = {"eq": torch.eq, "gt": torch.gt, 0: torch.eq, 4: torch.gt}

# Pattern -> (stride, first column): the columns first, first + stride, ... are kept.
PATTERNS = {
    MaskPattern.P0101: (2, 0), MaskPattern.P1010: (2, 1),
    MaskPattern.P0001: (4, 0), MaskPattern.P0010: (4, 1), MaskPattern.P0100: (4, 2), MaskPattern.P1000: (4, 3),
    MaskPattern.P1111: (1, 0),
}  # fmt: skip


def pattern(value: object, name: str) -> tuple[int, int]:
    """Stride and first column of a mask pattern, given by name or number."""
    if isinstance(value, int) and value in PATTERNS:
        return PATTERNS[MaskPattern(value)]
    raise fault(f"pl.{name}: unknown mask pattern {describe(value)}, expected a pl.tile.MaskPattern")


@op("gather", "tensor.gather")
def gather(
    x: Tensor | Tile,
    dim: object = -1,
    index: Tensor | Tile | None = None,
    *,
    mask_pattern: object = None,
    output_dtype: DType | None = None,
    kvalue: object = None,
    cmp_mode: object = None,
    out_cols: object = None,
    offset: object = 0,
    count_dtype: DType = INT32,
) -> Tile | tuple[Tile, Tile]:
    """By index, by column pattern, or by comparison with `kvalue` (3.11)."""
    forms = [index is not None, mask_pattern is not None, kvalue is not None]
    if sum(forms) != 1:
        raise fault("pl.gather: needs exactly one of index, mask_pattern and kvalue")
    if index is not None:
        return _by_index(x, as_int(dim, "pl.gather dim"), index)
    if mask_pattern is not None:
        return _by_mask(x, mask_pattern, output_dtype)
    return _by_compare(x, kvalue, cmp_mode, as_int(out_cols, "pl.gather out_cols"), offset, count_dtype)


def checked_index(index: Tile, extent: int, name: str) -> Torch:
    """The valid part of an index tile as INT64. Raises when one is undefined or outside 0..extent−1."""
    if index.dtype is not INT32:
        raise fault(f"pl.{name}: the index must be INT32, not {index.dtype}")
    refuse_taint(index.valid_taint, name, f"index {index.name}")
    positions = index.valid_data.to(torch.int64)
    bad = (positions < 0) | (positions >= extent)
    if bool(bad.any()):
        at = tuple(int(i) for i in torch.nonzero(bad)[0])
        raise fault(
            f"pl.{name}: index {index.name}[{', '.join(map(str, at))}] = {int(positions[at])} "
            f"is out of bounds 0..{extent - 1}",
            "GG501",
        )
    return positions


def _by_index(x: Tensor | Tile, dim: int, index: Tensor | Tile) -> Tile:
    """out[b,k] = x[b, idx[b,k]]; the result has the index's shape and valid region."""
    source, idx = as_tile(x, "gather"), as_tile(index, "gather", "index")
    if source.dtype not in _GATHERED:
        raise fault(f"pl.gather: no gather of {source.dtype}; only 16- and 32-bit FP16, FP32, INT16, INT32")
    rank = len(source.shape)
    axis = dim % rank if -rank <= dim < rank else rank
    if len(idx.shape) != rank or axis == rank:
        raise fault(
            f"pl.gather: x {list(source.shape)}, index {list(idx.shape)}: the ranks must be equal and have axis {dim}"
        )
    if any(s != i for a, (s, i) in enumerate(zip(source.shape, idx.shape, strict=True)) if a != axis):
        raise fault(f"pl.gather: x {list(source.shape)} and index {list(idx.shape)} differ beside axis {dim}")
    positions = checked_index(idx, source.shape[axis], "gather")
    cut = tuple(slice(None) if a == axis else slice(v) for a, v in enumerate(idx.valid))
    taint = source.taint
    data = torch.gather(source.data[cut], axis, positions)
    marks = None if taint is None else torch.gather(taint[cut], axis, positions)
    check_vector(idx.shape, source.dtype)
    return embed(data, source.dtype, idx.shape, "gather", taint=marks)


def _by_mask(x: Tensor | Tile, mask: object, output_dtype: DType | None) -> Tile:
    """Every second or fourth column; `output_dtype` reinterprets the bits."""
    source = as_tile(x, "gather")
    stride, first = pattern(mask, "gather")
    n = source.shape[-1]
    if n % stride:
        raise fault(f"pl.gather: {n} columns are not divisible by the pattern's stride {stride}")
    dtype = output_dtype or source.dtype
    if dtype.storage is None or dtype.bits != source.dtype.bits:
        raise fault(f"pl.gather: output_dtype {dtype} does not have the width of {source.dtype}")
    valid = (*source.valid[:-1], len(range(first, source.valid[-1], stride)))
    data = source.data[..., first::stride].contiguous().view(dtype.storage)
    taint = source.taint
    marks = None if taint is None else taint[..., first::stride]
    check_vector(tuple(data.shape), dtype)
    return Tile.of(data, dtype, valid=valid, taint=marks, name="gather")


def _by_compare(
    x: Tensor | Tile, kvalue: object, mode: object, columns: int, offset: object, count_dtype: DType
) -> tuple[Tile, Tile]:
    """Column numbers (plus offset) that satisfy the comparison, in order, and how many there are."""
    source = as_tile(x, "gather")
    key = mode.lower() if isinstance(mode, str) else mode
    if not isinstance(key, (str, int)) or key not in _COMPARE:
        raise fault(f"pl.gather: cmp_mode {mode!r} is not available; the device has eq and gt")
    refuse_taint(source.valid_taint, "gather", source.name)
    rows = source.valid_data
    wanted: Torch | float
    if isinstance(kvalue, (int, float, Scalar)):
        wanted = scalar_for(kvalue, source.dtype, "gather")
    else:
        wanted = as_tile(kvalue, "gather", "kvalue").data
    hit = _COMPARE[key](rows, wanted)
    counts = hit.sum(dim=-1, keepdim=True)
    if int(counts.max()) > columns:
        raise fault(f"pl.gather: {int(counts.max())} columns satisfy the comparison, out_cols is {columns}")
    # A stable descending sort of the hits lists their columns in ascending order first.
    order = torch.sort(hit.to(torch.int8), dim=-1, descending=True, stable=True).indices[..., :columns]
    data = poison(rows.shape[0] * columns, INT32).view(rows.shape[0], columns)
    taint = torch.full(data.shape, machine().origin("unused tail of the indices of a pl.gather"), dtype=torch.int32)
    used = torch.arange(order.shape[-1]) < counts
    width = order.shape[-1]
    data[:, :width] = torch.where(used, order.to(torch.int32) + as_int(offset, "pl.gather offset"), data[:, :width])
    taint[:, :width].masked_fill_(used, 0)
    indices = Tile.of(data, INT32, taint=taint, name="gather")
    assert count_dtype.storage is not None
    return indices, Tile.of(counts.to(count_dtype.storage), count_dtype, name="gather")


@op("tile.gather")
def tile_gather(src: Tile, indices: Tile | None = None, tmp: Tile | None = None, **masked: Any) -> Tile:
    """dst[i,j] = src_flat[indices[i,j]] over the physical row-major buffer; or the mask form by keyword (3.11)."""
    if indices is None:
        result = gather(src, **masked)
        assert isinstance(result, Tile)
        return result
    source, idx = as_tile(src, "tile.gather"), as_tile(indices, "tile.gather", "indices")
    if source.dtype not in _GATHERED:
        raise fault(f"pl.tile.gather: no gather of {source.dtype}")
    positions = checked_index(idx, source.data.numel(), "tile.gather")
    flat, taint = source.data.reshape(-1), source.taint
    marks = None if taint is None else taint.reshape(-1)[positions]
    return embed(flat[positions], source.dtype, idx.shape, "tile.gather", taint=marks)


@op("gather_row", "tensor.gather_row", "tile.gather_row")
def gather_row(
    dst: Tile | None = None,
    src: Tensor | None = None,
    dst_offset: object = None,
    src_offset: object = None,
    shapes: object = None,
    transpose: bool = False,
    *,
    acc: Tile | None = None,
    valid_shape: object = None,
) -> Tile:
    """A window of GM `src` into on-chip `dst` (J: `acc`) in place; `transpose` stores [r,c] as [c,r] (3.11)."""
    target = acc if dst is None else dst
    if not isinstance(target, Tile):
        raise fault(f"pl.gather_row: the target must be an on-chip buffer, not {describe(target)}")
    if not isinstance(src, Tensor):
        raise fault(f"pl.gather_row: the source must be in global memory, not {describe(src)}")
    if src.dtype is not target.dtype:
        raise fault(f"pl.gather_row: {src.dtype} into {target.dtype}; it does not convert")
    extents = as_ints(shapes, "pl.gather_row shapes")
    valid = extents if valid_shape is None else as_ints(valid_shape, "pl.gather_row valid_shape")
    window = load_window(src, as_ints(src_offset, "pl.gather_row src_offset"), extents, valid, "gather_row", "Mat")
    if transpose:
        shape, strides, held = ((*v[:-2], v[-1], v[-2]) for v in (window.shape, window.strides, window.valid))
        window = Tile(window.storage, window.dtype, shape, strides, 0, held, window.space)
    write_window(target, as_ints(dst_offset, "pl.gather_row dst_offset"), window, "gather_row")
    return target


@op("paged_gather", "tensor.paged_gather", "tile.paged_gather")
def paged_gather(
    src: Tensor,
    indices: Tensor | Tile,
    block_table: Tensor | Tile,
    block_size: object,
    size: object,
    max_indices: object,
    *,
    space: MemorySpace = MemorySpace.Mat,
    col_off: object = 0,
    is_trans: bool = False,
    is_b_matrix: bool = False,
) -> Tile:
    """Rows of `src` by logical index through a block table, `max_indices` rows of `size` columns (3.11).

    Logical index i is row block_table[i // block_size] · block_size + i % block_size. A negative index leaves its row
    undefined. `is_trans` stores the rows as columns.
    """
    page = as_int(block_size, "pl.paged_gather block_size")
    count, width = as_int(max_indices, "pl.paged_gather max_indices"), as_int(size, "pl.paged_gather size")
    first = as_int(col_off, "pl.paged_gather col_off")
    wanted, table = _flat_index(indices, "indices"), _flat_index(block_table, "block_table")
    if len(src.shape) != 2:
        raise fault(f"pl.paged_gather: the source {list(src.shape)} must have rank 2")
    out = Tile.undefined((count, width), src.dtype, "paged_gather", space=space.value)
    for row, logical in enumerate(wanted[:count]):
        if logical < 0:
            continue
        if logical // page >= len(table):
            raise fault(f"pl.paged_gather: index {logical} lies beyond the {len(table)} pages of the table")
        physical = table[logical // page] * page + logical % page
        window = load_window(src, (physical, first), (1, width), (1, width), "paged_gather", space.value)
        write_window(out, (row, 0), window, "paged_gather")
    if is_trans:
        return Tile(out.storage, out.dtype, out.shape[::-1], out.strides[::-1], 0, None, out.space)
    return out


def _flat_index(values: Tensor | Tile, what: str) -> list[int]:
    view: View = gm_copy(values) if isinstance(values, Tensor) else values
    refuse_taint(view.taint, "paged_gather", what)
    return [int(i) for i in view.data.reshape(-1)]
