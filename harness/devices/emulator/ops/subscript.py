"""Subscripts of tensors, tiles and arrays, as the rewriter calls them (contracts/pypto_dsl.md 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

from harness.devices.emulator.machine import fault, machine
from harness.devices.emulator.ops import memory
from harness.devices.emulator.ops.common import gm_copy
from harness.devices.emulator.values import Array, Scalar, Tensor, Tile, as_int, describe

Index = int | slice | Scalar
Window = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # offsets, extents, axes given by a scalar


def subscript_load(x: object, index: object) -> object:
    """`x[index]`: an element when every index is a scalar, else a region (3.3).

    A scalar index drops its axis of a GM view; of a tile only while two axes are left. Raises for a rank-reducing
    region of GM inside a kernel (appendix C).
    """
    if isinstance(x, Array):
        return x[index]
    if not isinstance(x, (Tensor, Tile)):
        raise fault(f"{describe(x)} cannot be subscripted")
    parts = _parts(x, index)
    if len(parts) == len(x.shape) and not any(isinstance(p, slice) for p in parts):
        return memory.read(x, list(parts))
    offsets, extents, scalars = _window(x, parts)
    if isinstance(x, Tile):
        valid = tuple(max(0, min(e, v - o)) for e, v, o in zip(extents, x.valid, offsets, strict=True))
        view = memory.tile_window(x, offsets, extents, valid, "subscript")
        return memory.drop(view, scalars[: max(0, len(x.shape) - 2)])
    if machine().region is None:
        x.check_window(offsets, extents, "subscript")
        return memory.drop(x.window(offsets, extents), scalars)
    if scalars:
        raise fault(
            f"a rank-reducing subscript of {x.name}{list(x.shape)} cannot be an operand inside a kernel; "
            "keep the axis with a one-element slice"
        )
    return memory.load_window(x, offsets, extents, extents, "subscript")


def subscript_store(x: object, index: object, value: object) -> object:
    """`x[index] = value`: an assemble into the window, in place (3.3). Returns `x`.

    The source has the window's shape, without axes given by a scalar, or its valid shape fits it. Only its valid part
    is written, so that the window may reach beyond the tensor where the source's valid part does not.
    """
    if isinstance(x, Array):
        x[index] = value
        return x
    if not isinstance(x, (Tensor, Tile)):
        raise fault(f"{describe(x)} cannot be subscripted")
    parts = _parts(x, index)
    if len(parts) == len(x.shape) and not any(isinstance(p, slice) for p in parts):
        raise fault(f"an element of {x.name} cannot be assigned by subscript; use pl.write")
    if not isinstance(value, (Tensor, Tile)):
        raise fault(f"a region of {x.name} needs a tensor or tile, not {describe(value)}")
    offsets, extents, scalars = _window(x, parts)
    kept = tuple(e for axis, e in enumerate(extents) if axis not in scalars)
    shapes = [value.shape, value.valid] if isinstance(value, Tile) else [value.shape]
    if not any(s in (kept, extents) for s in shapes):
        raise fault(f"the window {list(kept)} of {x.name} cannot take {describe(value)}: the shapes differ")
    if isinstance(value, Tensor) and machine().region is not None:
        source: Tensor | Tile = gm_copy(value)
    else:
        source = value
    if len(source.shape) != len(extents):
        source = _with_axes(source, scalars)
    memory.write_window(x, offsets, source, "subscript")
    return x


def _with_axes(source: Tensor | Tile, axes: Sequence[int]) -> Tensor | Tile:
    """The source with unit axes inserted where the window's axes were given by a scalar."""
    shape, strides = list(source.shape), list(source.strides)
    valid = list(source.valid) if isinstance(source, Tile) else []
    for axis in axes:
        shape.insert(axis, 1)
        strides.insert(axis, 1)
        valid.insert(axis, 1)
    if isinstance(source, Tensor):
        return Tensor(source.storage, source.dtype, shape, strides, source.offset)
    return Tile(source.storage, source.dtype, shape, strides, source.offset, valid, source.space)


def _parts(x: Tensor | Tile, index: object) -> tuple[Index, ...]:
    parts = index if isinstance(index, tuple) else (index,)
    if len(parts) > len(x.shape):
        raise fault(f"{x.name}{list(x.shape)} has {len(x.shape)} axes, the subscript names {len(parts)}")
    for part in parts:
        if part is None or part is Ellipsis:
            raise fault("None and ... are not allowed in a subscript")
    return parts


def _window(x: Tensor | Tile, parts: Sequence[Index]) -> Window:
    offsets, extents, scalars = [], [], []
    for axis, extent in enumerate(x.shape):
        part = parts[axis] if axis < len(parts) else slice(None)
        if isinstance(part, slice):
            if part.step is not None:
                raise fault("a subscript has no step")
            start = 0 if part.start is None else as_int(part.start, "slice bound")
            stop = extent if part.stop is None else as_int(part.stop, "slice bound")
            if start < 0 or stop < 0:
                raise fault(f"a negative slice bound ({start}:{stop}) is not allowed")
            if stop < start:
                raise fault(f"the slice {start}:{stop} of {x.name} is empty or reversed")
            offsets.append(start)
            extents.append(stop - start)
        else:
            offsets.append(as_int(part, "subscript"))
            extents.append(1)
            scalars.append(axis)
    return tuple(offsets), tuple(extents), tuple(scalars)
