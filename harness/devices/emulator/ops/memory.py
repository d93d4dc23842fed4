"""Moving data between GM and tiles: slice, load, store, assemble, read, write (contracts/pypto_dsl.md 3.3, 3.9)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from harness.devices.emulator import rounding
from harness.devices.emulator.dtypes import BF16, BOOL, FP16, FP32, INDEX, INT8, INT16, INT32, INT64, DType
from harness.devices.emulator.enums import AtomicType, MemorySpace
from harness.devices.emulator.machine import fault, machine
from harness.devices.emulator.ops import rounding_rules
from harness.devices.emulator.ops.common import box, check_space, gm_copy, put
from harness.devices.emulator.optable import ANY, op
from harness.devices.emulator.values import (
    Scalar,
    Tensor,
    Tile,
    View,
    as_int,
    as_ints,
    describe,
    poison,
    scalar_dtype,
)

_ATOMIC = frozenset((FP32, FP16, BF16, INT32, INT16, INT8))


def touch(view: View, *, write: bool, atomic: bool = False) -> None:
    """Every access of global memory passes here: orchestration waits for the tasks concerned, races are recorded."""
    run = machine()
    if write:
        view.check_writable()
    if run.region is None and isinstance(view, Tensor):
        run.await_tasks(view, readers=write)
    if write:
        run.writes(view, atomic=atomic)
    else:
        run.reads(view)


# --- reading windows -------------------------------------------------------------------------------------------------


def load_window(
    source: Tensor, offsets: Sequence[int], shape: Sequence[int], valid: Sequence[int], what: str, space: str = "Vec"
) -> Tile:
    """A fresh tile with the window's valid part; the rest is undefined. Bounds are checked for the valid part only."""
    shape, valid = tuple(shape), shape if valid is shape else check_valid_shape(shape, valid, what)
    source.check_window(offsets, valid, what)
    if valid == shape:
        return gm_copy(source.window(offsets, shape), space)
    part = source.window(offsets, valid)
    machine().reads(part)
    machine().count("gm_read_bytes", math.prod(valid) * source.dtype.nbytes)
    data = poison(math.prod(shape), source.dtype).view(shape)
    data[box(valid)] = part.data
    mark = machine().origin(f"element outside the valid region of a {what} of {source.name}")
    taint = torch.full(shape, mark, dtype=torch.int32)
    own = part.taint
    taint[box(valid)] = 0 if own is None else own
    tile = Tile.of(data, source.dtype, valid=valid, taint=taint, space=space, name=source.name)
    tile.storage.loaded()
    return tile


def check_valid_shape(shape: Sequence[int], valid: Sequence[int], what: str) -> tuple[int, ...]:
    """A valid box that fits its physical shape. Raises otherwise."""
    if len(valid) != len(shape) or any(v < 0 or v > s for v, s in zip(valid, shape, strict=False)):
        raise fault(f"{what}: valid shape {list(valid)} does not fit the physical shape {list(shape)}")
    return tuple(valid)


def tile_window(source: Tile, offsets: Sequence[int], shape: Sequence[int], valid: Sequence[int], what: str) -> Tile:
    """A view into the same buffer (3.3)."""
    valid = check_valid_shape(shape, valid, what)
    source.check_window(offsets, shape, what)
    if offsets and offsets[-1] * source.dtype.nbytes % 32:
        machine().lint("GG106", f"{what} of {source.name} starts at column {offsets[-1]}, not 32-byte aligned")
    return source.window(offsets, shape, valid)


def drop(view: Tensor | Tile, axes: Sequence[int]) -> Tensor | Tile:
    """The view without the unit axes named."""
    keep = [a for a in range(len(view.shape)) if a not in axes]
    for axis in axes:
        if not 0 <= axis < len(view.shape) or view.shape[axis] != 1:
            raise fault(f"drop_dims: axis {axis} of {list(view.shape)} is not a unit axis")
    shape, strides = [view.shape[a] for a in keep], [view.strides[a] for a in keep]
    if isinstance(view, Tensor):
        return Tensor(view.storage, view.dtype, shape, strides, view.offset)
    valid = [view.valid[a] for a in keep]
    return Tile(view.storage, view.dtype, shape, strides, view.offset, valid, view.space)


@op("slice", "tensor.slice", "tile.slice", where=ANY)
def slice_(
    x: Tensor | Tile,
    shape: object,
    offset: object,
    valid_shape: object = None,
    drop_dims: object = None,
    pad_value: object = None,
    clamp: bool = False,
) -> Tensor | Tile:
    """A region: a view in orchestration and of a tile, a copy of GM in a kernel (3.3). `pad_value` is ignored, as at J.

    Raises when the valid region leaves the tensor. `clamp` shrinks the valid extent at the border.
    """
    extents, offsets = as_ints(shape, "pl.slice shape"), as_ints(offset, "pl.slice offset")
    valid = extents if valid_shape is None else as_ints(valid_shape, "pl.slice valid_shape")
    if not isinstance(x, (Tensor, Tile)):
        raise fault(f"pl.slice: {describe(x)} cannot be sliced")
    if clamp:
        valid = tuple(max(0, min(v, s - o)) for v, s, o in zip(valid, x.shape, offsets, strict=False))
    result: Tensor | Tile
    if isinstance(x, Tile):
        result = tile_window(x, offsets, extents, valid, "slice")
    elif machine().region is None:
        x.check_window(offsets, extents, "slice")
        result = x.window(offsets, extents)
    else:
        result = load_window(x, offsets, extents, valid, "slice")
    return result if drop_dims is None else drop(result, as_ints(drop_dims, "pl.slice drop_dims"))


@op("load", "tile.load")
def load(
    tensor: Tensor,
    offsets: object,
    shapes: object,
    valid_shapes: object = None,
    target_memory: MemorySpace = MemorySpace.Vec,
    *,
    valid_shape: object = None,
    clamp: bool = False,
) -> Tile:
    """GM to a fresh tile (3.9). `valid_shapes` (J) or `valid_shape` (H) limits what is transferred."""
    if not isinstance(tensor, Tensor):
        raise fault(f"pl.load reads global memory, not {describe(tensor)}")
    extents, starts = as_ints(shapes, "pl.load shapes"), as_ints(offsets, "pl.load offsets")
    wanted = valid_shape if valid_shapes is None else valid_shapes
    valid = extents if wanted is None else as_ints(wanted, "pl.load valid_shapes")
    if clamp:
        valid = tuple(max(0, min(v, s - o)) for v, s, o in zip(valid, tensor.shape, starts, strict=False))
    check_space(extents, tensor.dtype, target_memory.value)
    return load_window(tensor, starts, extents, valid, "load", target_memory.value)


# --- writing windows -------------------------------------------------------------------------------------------------


def _aligned(shape: Sequence[int], rank: int, name: str) -> tuple[int, ...]:
    """A source shape with leading unit axes added or dropped so that it has the target's rank."""
    shape = tuple(shape)
    extra = len(shape) - rank
    if extra <= 0:
        return (1,) * -extra + shape
    if any(s != 1 for s in shape[:extra]):
        raise fault(f"pl.{name}: a source {list(shape)} does not fit a target of rank {rank}")
    return shape[extra:]


def converted(source: Tile | Tensor, target: DType, data: torch.Tensor, name: str) -> torch.Tensor:
    """Source elements in the target's dtype: an FP32 accumulator rounds to nearest even on its way out (3.7)."""
    if source.dtype is target:
        return data
    if isinstance(source, Tile) and source.space == "Acc":
        if source.dtype is FP32 and target is BF16:
            return rounding.fp32_to_bf16(data, "rint")
        if source.dtype is FP32 and target is FP16:
            return rounding.fp32_to_fp16(data, "rint")
        raise fault(f"pl.{name}: an accumulator of {source.dtype} cannot leave as {target}")
    machine().lint("GG209", f"pl.{name}: {source.dtype} stored into {target}; nothing converts, cast first")
    return data.to(target.storage)


def write_window(
    target: Tensor | Tile, offsets: Sequence[int], source: Tile | Tensor, name: str, *, atomic: bool = False
) -> None:
    """The source's valid region into the target at `offsets`, in place."""
    rank = len(target.shape)
    valid = source.valid if isinstance(source, Tile) else source.shape
    shape = _aligned(valid, rank, name)
    if math.prod(shape) == 0:
        return
    target.check_window(offsets, shape, name)
    window: View = target.window(offsets, shape) if isinstance(target, Tensor) else target.window(offsets, shape, shape)
    # Before anything is looked at: in orchestration these wait for the tasks that produce or use the memory.
    if isinstance(source, Tensor):
        touch(source, write=False)
    if isinstance(target, Tensor):
        touch(window, write=True, atomic=atomic)
    box_data = source.valid_data if isinstance(source, Tile) else source.data
    data = converted(source, target.dtype, box_data, name)
    if data.shape != shape:
        data = data.reshape(shape)
    taint = source.valid_taint if isinstance(source, Tile) else source.taint
    if taint is not None:
        taint = taint.reshape(shape) if bool(taint.any()) else None
    if taint is not None and target.storage.taint is None:
        target.storage.need_taint()
    if source.storage is target.storage:
        data = data.clone()
        taint = None if taint is None else taint.clone()
    where = window.taint
    if isinstance(target, Tensor):
        machine().count("gm_write_bytes", data.numel() * target.dtype.nbytes)
        if isinstance(source, Tile) and source.space == "Acc" and (shape[-1] > 4095 or math.prod(shape[:-1]) > 8192):
            machine().lint("GG107", f"pl.{name}: an accumulator of {list(shape)} leaves L0C")
    if atomic:
        data = _accumulated(window.data, data, target.dtype)
        if where is not None:
            taint = where.clone() if taint is None else torch.maximum(where, taint)
    put(target.storage, window.data, where, data, taint)


def _accumulated(old: torch.Tensor, new: torch.Tensor, dtype: DType) -> torch.Tensor:
    """old + new rounded once to the destination's dtype (3.3)."""
    if dtype is BF16:
        return rounding.fp32_to_bf16(old.float() + new.float(), "rint")
    return old + new


def _store_source(source: object, name: str) -> Tile | Tensor:
    if isinstance(source, Tile):
        return source
    if isinstance(source, Tensor):
        return gm_copy(source) if machine().region is not None else source
    raise fault(f"pl.{name}: the source must be a tensor or tile, not {describe(source)}")


def _is_atomic(atomic: object, target: Tensor | Tile, name: str) -> bool:
    if atomic != AtomicType.Add:
        return False
    if isinstance(target, Tile):
        raise fault(f"pl.{name}: atomic=Add needs a target in global memory")
    if target.dtype not in _ATOMIC:
        raise fault(f"pl.{name}: no atomic addition in {target.dtype}")
    return True


@op("assemble", "tensor.assemble", "tile.assemble", where=ANY)
def assemble(
    target: Tensor | Tile, source: Tensor | Tile, offset: object, *, atomic: AtomicType = AtomicType.None_
) -> Tensor | Tile:
    """The source's valid region into the target at `offset`, in place; returns the target (3.3).

    Into GM it is a store; `atomic=Add` adds, with one rounding per addition in the target's dtype.
    """
    if not isinstance(target, (Tensor, Tile)):
        raise fault(f"pl.assemble: the target must be a tensor or tile, not {describe(target)}")
    what = _store_source(source, "assemble")
    adds = _is_atomic(atomic, target, "assemble")
    write_window(target, as_ints(offset, "pl.assemble offset"), what, "assemble", atomic=adds)
    return target


@op("store", "tile.store")
def store(
    tile: Tile,
    offsets: object,
    output_tensor: Tensor,
    shapes: object = None,
    *,
    atomic: AtomicType = AtomicType.None_,
) -> Tensor:
    """The tile's valid region to GM, in place; returns the tensor (3.9). `shapes`: the window in the tensor's rank."""
    if not isinstance(output_tensor, Tensor):
        raise fault(f"pl.store writes global memory, not {describe(output_tensor)}")
    source = _store_source(tile, "store")
    if shapes is not None and isinstance(source, Tile):
        source = _reshaped_for_store(source, as_ints(shapes, "pl.store shapes"))
    adds = _is_atomic(atomic, output_tensor, "store")
    write_window(output_tensor, as_ints(offsets, "pl.store offsets"), source, "store", atomic=adds)
    return output_tensor


def _reshaped_for_store(source: Tile, window: tuple[int, ...]) -> Tile:
    """The valid box in the shape of the GM window that the caller spells out."""
    data, taint = source.valid_data, source.valid_taint
    if math.prod(window) != data.numel():
        raise fault(f"pl.store: shapes {list(window)} do not hold the {data.numel()} valid elements of the tile")
    return Tile.of(
        data.reshape(window),
        source.dtype,
        taint=None if taint is None else taint.reshape(window),
        space=source.space,
        name=source.name,
    )


# --- scalars ---------------------------------------------------------------------------------------------------------


def _cell(x: object, index: object, name: str) -> tuple[Tensor | Tile, tuple[int, ...]]:
    if not isinstance(x, (Tensor, Tile)):
        raise fault(f"pl.{name}: {describe(x)} has no elements")
    if isinstance(x, Tile) and x.space not in ("Vec", "Acc"):
        raise fault(f"pl.{name}: elements of a tile in {x.space} cannot be accessed")
    position = (
        as_ints(index, f"pl.{name} index") if isinstance(index, (list, tuple)) else (as_int(index, f"pl.{name} index"),)
    )
    if len(position) != len(x.shape):
        raise fault(f"pl.{name}: {x.name}{list(x.shape)} needs {len(x.shape)} indices, got {len(position)}")
    for axis, (i, extent) in enumerate(zip(position, x.shape, strict=True)):
        if not 0 <= i < extent:
            raise fault(
                f"pl.{name} of {x.name}{list(x.shape)} is out of bounds: axis {axis}, index {i} of {extent}", "GG501"
            )
    return x, position


@op("read", "tensor.read", "tile.read", where=ANY)
def read(x: Tensor | Tile, index: object) -> Scalar | int | bool:
    """One element as a scalar; of a tile by physical coordinates (3.3). Raises when it is undefined."""
    view, position = _cell(x, index, "read")
    if isinstance(view, Tensor):
        touch(view.window(position, (1,) * len(position)), write=False)
    at = view.offset + sum(i * s for i, s in zip(position, view.strides, strict=True))
    if view.storage.dead is not None:
        raise fault(f"{view.name} is used after {view.storage.dead}", "GG503")
    if view.storage.taint is not None:
        mark = int(view.storage.taint[at])
        if mark:
            where = ", ".join(map(str, position))
            raise fault(f"pl.read: {view.name}[{where}] is undefined: {machine().origin_text(mark)}", "GG502")
    value = view.storage.data[at].item()
    if view.dtype is BOOL:
        return bool(value)
    return int(value) if view.dtype is INDEX else Scalar(value, view.dtype)


@op("write", "tensor.write", "tile.write", where=ANY)
def write(x: Tensor | Tile, index: object, value: Scalar | int | float | bool) -> Tensor | Tile:
    """One element, in place; the value's dtype must equal the element's (3.3). An integer literal is INDEX."""
    view, position = _cell(x, index, "write")
    if not isinstance(value, (int, float, Scalar)):
        raise fault(f"pl.write: the value must be a scalar, not {describe(value)}")
    given = scalar_dtype(value)
    if isinstance(value, Scalar) and given is not view.dtype:
        raise fault(f"pl.write: a {given} scalar into {view.name} of {view.dtype}; cast it first")
    if not isinstance(value, Scalar) and given is not view.dtype and not (given is INDEX and view.dtype is INT64):
        raise fault(f"pl.write: {describe(value)} into {view.name} of {view.dtype}; cast it first")
    if view.storage.dead is not None:
        raise fault(f"{view.name} is used after {view.storage.dead}", "GG503")
    if isinstance(view, Tensor):
        touch(view.window(position, (1,) * len(position)), write=True)
    at = view.offset + sum(i * s for i, s in zip(position, view.strides, strict=True))
    number = value.value if isinstance(value, Scalar) else rounding_rules.number_in(value, view.dtype)
    view.storage.data[at] = number
    if view.storage.taint is not None:
        view.storage.taint[at] = 0
    return x


@op("tensor.dim", "dim", where=ANY)
def dim(x: Tensor | Tile, axis: object) -> int:
    """The runtime extent of an axis, as INDEX (3.3)."""
    if not isinstance(x, (Tensor, Tile)):
        raise fault(f"pl.tensor.dim: {describe(x)} has no dimensions")
    position = as_int(axis, "pl.tensor.dim axis")
    if not -len(x.shape) <= position < len(x.shape):
        raise fault(f"pl.tensor.dim: axis {position} of {list(x.shape)} does not exist")
    return x.shape[position]


# --- on-chip copies --------------------------------------------------------------------------------------------------


@op("move", "tile.move")
def move(tile: Tile, target_memory: MemorySpace, **_: Any) -> Tile:
    """A copy in another on-chip space (3.9)."""
    if not isinstance(tile, Tile):
        raise fault(f"pl.move: needs a tile, not {describe(tile)}")
    check_space(tile.shape, tile.dtype, target_memory.value)
    taint = tile.taint
    return Tile.of(
        tile.data.clone(memory_format=torch.contiguous_format),
        tile.dtype,
        valid=tile.valid,
        taint=None if taint is None else taint.clone(),
        space=target_memory.value,
        name=tile.name,
    )


@op("tile.extract", "extract")
def extract(
    src: Tile, row: object, col: object, shape: object, *, target_memory: MemorySpace = MemorySpace.Vec
) -> Tile:
    """A copy of a sub-tile (3.9)."""
    offsets = (as_int(row, "pl.tile.extract row"), as_int(col, "pl.tile.extract col"))
    extents = as_ints(shape, "pl.tile.extract shape")
    src.check_window(offsets, extents, "extract")
    valid = tuple(max(0, min(e, v - o)) for e, v, o in zip(extents, src.valid, offsets, strict=True))
    moved: Tile = move(src.window(offsets, extents, valid), target_memory)
    return moved
