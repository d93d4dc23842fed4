"""What all ops share: operands, valid regions and taint, results, size checks.

An operand that is a GM tensor is loaded first (contracts/pypto_dsl.md 3.0). Compute ops work on the valid box of their
first operand; the rest of the result is undefined (3.8). Taint is the maximum of the operands' taint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor as Torch

from harness.devices.emulator import rounding
from harness.devices.emulator.dtypes import BOOL, FP16, FP32, INT16, INT32, DType
from harness.devices.emulator.machine import VECTOR_BYTES, fault, machine
from harness.devices.emulator.values import Scalar, Storage, Tensor, Tile, describe, poison, scalar_dtype

ARITHMETIC = frozenset((FP32, FP16, INT32, INT16))
FLOATS = frozenset((FP32, FP16))
SPACE_BYTES = {
    "Vec": VECTOR_BYTES, "Mat": 512 * 1024, "Left": 64 * 1024, "Right": 64 * 1024, "Acc": 128 * 1024, "Bias": 1024,
}  # fmt: skip

Box = tuple[slice, ...]


# --- sizes -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _vector_problems(shape: tuple[int, ...], dtype: DType) -> tuple[tuple[str, str], ...]:
    """Findings (code, message) of a Vec tile of this shape (3.12)."""
    found = []
    columns = shape[-1] if shape else 1
    rows = math.prod(shape[:-1])
    # A single column is stored column-major, so its rows are what has to fill 32 bytes.
    extent, what = (rows, "rows") if columns == 1 and len(shape) > 1 else (columns, "columns")
    if extent * dtype.nbytes % 32:
        found.append(
            ("GG101", f"{list(shape)} {dtype}: {extent} {what} are {extent * dtype.nbytes} bytes, no multiple of 32")
        )
    size = math.prod(shape) * dtype.nbytes
    if size > VECTOR_BYTES:
        found.append(("GG102", f"{list(shape)} {dtype} takes {size} bytes of Vec, {VECTOR_BYTES} are usable"))
    return tuple(found)


def check_vector(shape: tuple[int, ...], dtype: DType) -> None:
    """Record what 3.12 forbids about a Vec tile. Raises for one that exceeds the whole memory (appendix C)."""
    for code, message in _vector_problems(shape, dtype):
        if code == "GG102":
            raise fault(message, code)
        machine().lint(code, message)


def check_space(shape: tuple[int, ...], dtype: DType, space: str) -> None:
    """Record a buffer that exceeds its memory space (3.12)."""
    if space == "Vec":
        check_vector(shape, dtype)
        return
    size = math.prod(shape) * dtype.nbytes
    if size > SPACE_BYTES[space]:
        machine().lint("GG104", f"{list(shape)} {dtype} takes {size} bytes of {space}, {SPACE_BYTES[space]} are there")


# --- operands --------------------------------------------------------------------------------------------------------


def gm_copy(tensor: Tensor, space: str = "Vec") -> Tile:
    """The whole GM view as a fresh tile."""
    machine().reads(tensor)
    machine().count("gm_read_bytes", math.prod(tensor.shape) * tensor.dtype.nbytes)
    taint = tensor.taint
    tile = Tile.of(
        tensor.data.clone(memory_format=torch.contiguous_format),
        tensor.dtype,
        taint=None if taint is None else taint.clone(),
        space=space,
        name=tensor.name,
    )
    tile.storage.loaded()
    return tile


def as_tile(value: object, name: str, position: str = "first operand") -> Tile:
    """A vector operand: a tile in Vec or Acc, or a GM tensor, which is loaded."""
    if type(value) is Tile:
        if value.space in ("Vec", "Acc"):
            return value
        raise fault(f"pl.{name}: the {position} lies in {value.space}; the vector unit reads Vec only, use pl.move")
    if isinstance(value, Tensor):
        return gm_copy(value)
    raise fault(f"pl.{name}: the {position} must be a tensor or tile, not {describe(value)}")


def is_scalar(value: object) -> bool:
    return isinstance(value, (int, float, Scalar))


def scalar_value(value: int | float | Scalar) -> int | float:
    """The number in a scalar, a float literal rounded to FP32 (3.1)."""
    if isinstance(value, Scalar):
        return value.value
    return rounding.fp32(value) if isinstance(value, float) else value


def scalar_for(value: int | float | Scalar, dtype: DType, name: str) -> int | float:
    """A scalar operand narrowed to the dtype of the tile that it meets (3.1). Raises for a float on integers."""
    own = scalar_dtype(value)
    number = scalar_value(value)
    if own is BOOL:
        raise fault(f"pl.{name}: a Bool is no arithmetic operand")
    if not dtype.is_float:
        if own.is_float:
            raise fault(
                f"pl.{name}: {describe(value)} meets a {dtype} tile; nothing promotes it, cast the tile to pl.FP32",
                "GG211",
            )
        bits = dtype.bits
        wrapped = int(number) & ((1 << bits) - 1)
        return wrapped - (1 << bits) if dtype.kind == "int" and wrapped >> (bits - 1) else wrapped
    if isinstance(value, Scalar) and own is not dtype and own is not FP32:
        machine().lint("GG201", f"pl.{name}: a {own} scalar meets a {dtype} tile")
    number = rounding.fp32(float(number))
    if dtype is FP32:
        return number
    narrow = torch.tensor([number], dtype=torch.float32)
    rounded = rounding.fp32_to_fp16(narrow, "rint") if dtype is FP16 else rounding.fp32_to_bf16(narrow, "rint")
    return float(rounded[0])


def promoted(a: DType, b: DType) -> DType:
    """The type rule of a tensor-level op on two dtypes (3.1)."""
    if a is b:
        return a
    if a.is_float != b.is_float:
        return a if a.is_float else b
    if a.bits != b.bits:
        return a if a.bits > b.bits else b
    if not a.is_float:
        return a if a.kind == "int" else b
    return a


def check_arithmetic(name: str, dtype: DType, allowed: frozenset[DType]) -> None:
    """Record (or, for what is no number at all, raise) a dtype that the vector unit cannot compute in."""
    if dtype in allowed:
        return
    if dtype is BOOL or dtype.storage is None:
        raise fault(f"pl.{name}: no arithmetic in {dtype}")
    if not dtype.is_float and not any(d.is_integer for d in allowed):
        raise fault(f"pl.{name}: needs a float tile, not {dtype}; cast it first")
    names = ", ".join(sorted(d.name for d in allowed))
    machine().lint("GG202", f"pl.{name} in {dtype}: the vector unit computes in {names} only, cast first")


def common_dtype(name: str, a: Tile, b: Tile) -> DType:
    """The dtype two operands are computed in; a difference is recorded (3.1)."""
    if a.dtype is b.dtype:
        return a.dtype
    machine().lint("GG201", f"pl.{name}: operands are {a.dtype} and {b.dtype}; nothing inserts the cast")
    return promoted(a.dtype, b.dtype)


# --- valid regions ---------------------------------------------------------------------------------------------------


def box(valid: Sequence[int]) -> Box:
    return tuple(slice(v) for v in valid)


def merge_taint(*parts: Torch | None) -> Torch | None:
    """Element-wise maximum of taints with broadcasting; None when all are None."""
    merged: Torch | None = None
    for part in parts:
        if part is not None:
            merged = part if merged is None else torch.maximum(merged, part)
    return merged


def outside_mark(name: str) -> int:
    return machine().origin(f"element outside the valid region of the result of pl.{name}")


def embed(
    data: Torch, dtype: DType, shape: Sequence[int], name: str, *, taint: Torch | None = None, space: str = "Vec"
) -> Tile:
    """A tile of `shape` whose top-left box is `data`; the rest is undefined. `taint` broadcasts to `data`."""
    shape = tuple(shape)
    if tuple(data.shape) == shape:
        if taint is not None and taint.shape != data.shape:
            taint = taint.expand(data.shape)
        return Tile.of(data, dtype, taint=taint, space=space, name=name)
    valid = tuple(data.shape)
    whole = poison(math.prod(shape), dtype).view(shape)
    whole[box(valid)] = data
    marks = torch.full(shape, outside_mark(name), dtype=torch.int32)
    marks[box(valid)] = 0 if taint is None else taint
    return Tile.of(whole, dtype, valid=valid, taint=marks, space=space, name=name)


def check_valid(name: str, first: Tile, other: Tile) -> None:
    """Record operands whose valid boxes differ along an axis that they share (3.1)."""
    for axis, (extent, own, theirs) in enumerate(zip(other.shape, first.valid, other.valid, strict=True)):
        if extent == first.shape[axis] and own != theirs:
            machine().lint("GG208", f"pl.{name}: valid regions {list(first.valid)} and {list(other.valid)} differ")
            return


def apply(
    name: str,
    function: Callable[..., Torch],
    tiles: Sequence[Tile],
    dtype: DType | None = None,
) -> Tile:
    """`function` on the valid box of the first tile; the others have its shape or extent 1 along an axis.

    The result has the first tile's shape and valid region and `dtype` (default: the first tile's).
    """
    first = tiles[0]
    dtype = dtype or first.dtype
    problems = _vector_problems(first.shape, dtype)
    if problems:
        check_vector(first.shape, dtype)
    # No operand undefined anywhere (an undefined element outside a valid region is tainted): no box to respect.
    for t in tiles:
        if t.storage.taint is not None or t.valid != t.shape:
            break
    else:
        return Tile.of(function(*[t.data for t in tiles]), dtype, name=name)
    for other in tiles[1:]:
        check_valid(name, first, other)
    valid = first.valid
    parts: list[Torch] = []
    taints: list[Torch | None] = []
    for t in tiles:
        cut = tuple(slice(min(v, s)) for v, s in zip(valid, t.shape, strict=True))
        parts.append(t.data[cut])
        taint = t.taint
        taints.append(None if taint is None else taint[cut])
    return embed(function(*parts), dtype, first.shape, name, taint=merge_taint(*taints))


# --- writing ---------------------------------------------------------------------------------------------------------


def put(storage: Storage, target: Torch, where: Torch | None, data: Torch, taint: Torch | None) -> None:
    """Copy `data` into the view `target` of `storage`; `where` is the same view of its taint, if there is one."""
    target.copy_(data)
    if where is not None:
        if taint is None:
            where.zero_()
            if where.numel() == storage.data.numel():
                storage.taint = None
        else:
            where.copy_(taint)


def refuse_taint(value: Torch | None, name: str, what: str) -> None:
    """Raise when an element that decides something is undefined; the message tells where it was born."""
    if value is None or not bool(value.any()):
        return
    index = tuple(int(i) for i in torch.nonzero(value)[0])
    origin = machine().origin_text(int(value[index]))
    raise fault(f"pl.{name}: {what}[{', '.join(map(str, index))}] is undefined: {origin}", "GG502")
