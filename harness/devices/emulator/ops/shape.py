"""Shape and valid-region ops (contracts/pypto_dsl.md 3.8, 3.9)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from harness.devices.emulator.dtypes import BF16, BOOL, FP16, FP32, DType
from harness.devices.emulator.enums import PadValue
from harness.devices.emulator.machine import fault, machine
from harness.devices.emulator.ops.common import as_tile, box, check_vector
from harness.devices.emulator.ops.create import filled
from harness.devices.emulator.ops.memory import check_valid_shape
from harness.devices.emulator.optable import ANY, op
from harness.devices.emulator.values import Tensor, Tile, as_int, as_ints, describe, row_major


@op("reshape", "tensor.reshape", "tile.reshape", where=ANY)
def reshape(x: Tensor | Tile, shape: object) -> Tensor | Tile:
    """An alias of the same buffer; of a tile it declares everything valid (3.8, 3.9).

    A strided view of a tile is copied into rows first, as no alias of it has the new shape; of GM it raises.
    """
    extents = as_ints(shape, "pl.reshape shape")
    if not isinstance(x, (Tensor, Tile)):
        raise fault(f"pl.reshape: {describe(x)} has no shape")
    if math.prod(extents) != math.prod(x.shape) or any(e < 0 for e in extents):
        raise fault(f"pl.reshape: {list(x.shape)} has {math.prod(x.shape)} elements, {list(extents)} does not")
    if isinstance(x, Tensor):
        if machine().region is None:
            return _alias(x, extents)
        x = as_tile(x, "reshape")
    if x.strides == row_major(x.shape):
        return Tile(x.storage, x.dtype, extents, row_major(extents), x.offset, None, x.space)
    taint = x.taint
    return Tile.of(
        x.data.reshape(extents).clone(),
        x.dtype,
        taint=None if taint is None else taint.reshape(extents).clone(),
        space=x.space,
        name=x.name,
    )


def _alias(x: Tensor, extents: tuple[int, ...]) -> Tensor:
    try:
        view = x.data.view(extents)
    except RuntimeError:
        raise fault(
            f"pl.reshape: the strided view {x.name}{list(x.shape)} has no alias of shape {list(extents)}"
        ) from None
    start = view.storage_offset() - x.storage.data.storage_offset()
    return Tensor(x.storage, x.dtype, extents, [int(s) for s in view.stride()], int(start))


@op("transpose", "tensor.transpose", "tile.transpose", where=ANY)
def transpose(x: Tensor | Tile, axis1: object = 0, axis2: object = 1) -> Tensor | Tile:
    """Two axes exchanged: a copy in a kernel, a view in orchestration (3.9). The valid region is exchanged too."""
    if not isinstance(x, (Tensor, Tile)):
        raise fault(f"pl.transpose: {describe(x)} has no axes")
    rank = len(x.shape)
    a, b = as_int(axis1, "pl.transpose axis1"), as_int(axis2, "pl.transpose axis2")
    if not -rank <= a < rank or not -rank <= b < rank:
        raise fault(f"pl.transpose: axes {a} and {b} of {list(x.shape)} do not exist")
    if isinstance(x, Tensor) and machine().region is None:
        return Tensor(x.storage, x.dtype, _swapped(x.shape, a, b), _swapped(x.strides, a, b), x.offset)
    tile = as_tile(x, "transpose")
    if tile.dtype.bits not in (8, 16, 32):
        raise fault(f"pl.transpose: no transposition of {tile.dtype}, only of 8-, 16- and 32-bit types")
    check_vector(tile.shape, tile.dtype)
    shape, taint = _swapped(tile.shape, a, b), tile.taint
    check_vector(shape, tile.dtype)
    return Tile.of(
        tile.data.transpose(a, b).clone(memory_format=torch.contiguous_format),
        tile.dtype,
        valid=_swapped(tile.valid, a, b),
        taint=None if taint is None else taint.transpose(a, b).clone(memory_format=torch.contiguous_format),
        name=tile.name,
    )


@op("tile.transpose_view", "transpose_view")
def transpose_view(x: Tile) -> Tile:
    """The last two axes exchanged without a copy, for a cube operand (3.9)."""
    if not isinstance(x, Tile):
        raise fault(f"pl.tile.transpose_view: needs a tile, not {describe(x)}")
    shape, strides, valid = (_swapped(s, -1, -2) for s in (x.shape, x.strides, x.valid))
    return Tile(x.storage, x.dtype, shape, strides, x.offset, valid, x.space)


def _swapped(values: Sequence[int], a: int, b: int) -> tuple[int, ...]:
    changed = list(values)
    changed[a], changed[b] = changed[b], changed[a]
    return tuple(changed)


@op("set_validshape", "tensor.set_validshape", "tile.set_validshape")
def set_validshape(x: Tensor | Tile, rows: object, cols: object) -> Tile:
    """Another valid rectangle of the same buffer; the source's own handle changes with it (3.8)."""
    tile = as_tile(x, "set_validshape")
    if len(tile.shape) != 2:
        raise fault(f"pl.set_validshape: {list(tile.shape)} must have rank 2")
    valid = (as_int(rows, "pl.set_validshape rows"), as_int(cols, "pl.set_validshape cols"))
    tile.valid = check_valid_shape(tile.shape, valid, "pl.set_validshape")
    return tile


def pad_number(pad: object, dtype: DType, name: str) -> int | float | bool:
    """The number that a padding stands for: float min and max are the infinities (3.8)."""
    if pad in (PadValue.zero, 0):
        return False if dtype is BOOL else 0
    sign = {PadValue.min: -1, PadValue.max: 1}.get(pad) if isinstance(pad, PadValue) else None
    if sign is None and isinstance(pad, float) and math.isinf(pad):
        sign = 1 if pad > 0 else -1
    if sign is None:
        raise fault(f"pl.{name}: the padding must be a pl.PadValue, 0 or an infinity, not {describe(pad)}")
    if dtype in (FP32, FP16, BF16):
        return sign * math.inf
    if dtype.kind == "uint":
        return 0 if sign < 0 else (1 << dtype.bits) - 1
    return -(1 << (dtype.bits - 1)) if sign < 0 else (1 << (dtype.bits - 1)) - 1


@op("fillpad", "tensor.fillpad", "tile.fillpad")
def fillpad(x: Tensor | Tile, pad_value: object = PadValue.zero) -> Tile:
    """A new tile, equal inside the valid region, padded outside, fully valid (3.8)."""
    tile = as_tile(x, "fillpad")
    return _padded(tile, tile.shape, pad_value, "fillpad")


@op("fillpad_expand", "tensor.fillpad_expand", "tile.fillpad_expand")
def fillpad_expand(x: Tensor | Tile, shape: object, pad_value: object = PadValue.zero) -> Tile:
    """`fillpad` into a larger shape (3.8)."""
    tile, extents = as_tile(x, "fillpad_expand"), as_ints(shape, "pl.fillpad_expand shape")
    if len(extents) != len(tile.shape) or any(e < s for e, s in zip(extents, tile.shape, strict=True)):
        raise fault(f"pl.fillpad_expand: {list(extents)} is not at least {list(tile.shape)}")
    return _padded(tile, extents, pad_value, "fillpad_expand")


def _padded(tile: Tile, shape: tuple[int, ...], pad_value: object, name: str) -> Tile:
    check_vector(shape, tile.dtype)
    data = filled(shape, tile.dtype, pad_number(pad_value, tile.dtype, name))
    data[box(tile.valid)] = tile.valid_data
    own = tile.valid_taint
    taint = None
    if own is not None:
        taint = torch.zeros(shape, dtype=torch.int32)
        taint[box(tile.valid)] = own
    return Tile.of(data, tile.dtype, taint=taint, name=tile.name)


@op("tile.fillpad_inplace", "fillpad_inplace")
def fillpad_inplace(x: Tile, pad_value: object = PadValue.zero) -> Tile:
    """`fillpad` in the same buffer; the source's handle becomes fully valid (3.8)."""
    if not isinstance(x, Tile):
        raise fault(f"pl.tile.fillpad_inplace: needs a tile, not {describe(x)}")
    new = _padded(x, x.shape, pad_value, "fillpad_inplace")
    x.data.copy_(new.data)
    if x.storage.taint is not None:
        own, mark = x.taint, new.taint
        assert own is not None
        own.zero_() if mark is None else own.copy_(mark)
    x.valid = x.shape
    return x


@op("concat", "tensor.concat", "tile.concat")
def concat(a: Tensor | Tile, b: Tensor | Tile) -> Tile:
    """The columns of a, then those of b, in a new tile (3.9). Raises for other rows or dtypes, or a narrowed `a`."""
    left, right = as_tile(a, "concat"), as_tile(b, "concat", "second operand")
    if len(left.shape) != 2 or len(right.shape) != 2 or left.shape[0] != right.shape[0]:
        raise fault(f"pl.concat: {list(left.shape)} and {list(right.shape)} must be 2-D with equal rows")
    if left.dtype is not right.dtype:
        raise fault(f"pl.concat: dtypes {left.dtype} and {right.dtype} differ")
    if left.valid[1] != left.shape[1] or left.valid[0] != right.valid[0]:
        raise fault(f"pl.concat: valid regions {list(left.valid)} and {list(right.valid)} leave a gap")
    data = torch.cat((left.data, right.data), dim=1)
    check_vector(tuple(data.shape), left.dtype)
    marks = [torch.zeros(t.shape, dtype=torch.int32) if t.taint is None else t.taint for t in (left, right)]
    valid = (left.valid[0], left.shape[1] + right.valid[1])
    return Tile.of(data, left.dtype, valid=valid, taint=torch.cat(marks, dim=1), name="concat")


@op("tensor.as_layout", "tensor.view", where=ANY)
def as_layout(x: Tensor, layout: object = None, **_: object) -> Tensor:
    """A layout reinterpretation: the same elements under the same indices (3.9)."""
    return x


@op("reinterpret_view", "tensor.reinterpret_view", "tile.reinterpret_view", where=ANY)
def reinterpret_view(x: Tensor | Tile, dtype: DType, *, shape: object = None) -> Tensor | Tile:
    """The same bits as another dtype of equal width; `shape` must be the own one (3.9)."""
    if not isinstance(x, (Tensor, Tile)):
        raise fault(f"pl.reinterpret_view: {describe(x)} has no elements")
    if dtype.storage is None or dtype.nbytes != x.dtype.nbytes:
        raise fault(f"pl.reinterpret_view: {x.dtype} and {dtype} have different widths")
    if shape is not None and as_ints(shape, "pl.reinterpret_view shape") != x.shape:
        raise fault(f"pl.reinterpret_view: the shape must stay {list(x.shape)}")
    # A second storage object over the same memory: data and taint are shared, only the type differs.
    storage = type(x.storage)(x.storage.data.view(dtype.storage), dtype, x.name, x.storage.space)
    storage.taint, storage.dead = x.storage.need_taint(), x.storage.dead
    if isinstance(x, Tensor):
        return Tensor(storage, dtype, x.shape, x.strides, x.offset)
    return Tile(storage, dtype, x.shape, x.strides, x.offset, x.valid, x.space)
