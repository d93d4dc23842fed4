"""Bit operations on integer tiles (contracts/pypto_dsl.md 3.5)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor as Torch

from harness.devices.emulator.dtypes import INT16, INT32, UINT16, UINT32, DType
from harness.devices.emulator.machine import fault
from harness.devices.emulator.ops.common import apply, as_tile, is_scalar, scalar_for
from harness.devices.emulator.ops.elementwise import Number, Operand
from harness.devices.emulator.optable import op
from harness.devices.emulator.values import Tile

_SIGNED = {16: torch.int16, 32: torch.int32}
_STORAGE = {INT16: torch.int16, INT32: torch.int32, UINT16: torch.uint16, UINT32: torch.uint32}

Bits = Callable[[Torch, Torch], Torch]


def _bitwise(name: str, a: object, b: object, function: Bits) -> Tile:
    """`function` on the bits as signed integers of the same width: torch has few unsigned operations."""
    tile = as_tile(a, name)
    _check(name, tile.dtype)
    signed, storage = _SIGNED[tile.dtype.bits], _STORAGE[tile.dtype]
    if is_scalar(b):
        number = int(scalar_for(b, tile.dtype, name))  # type: ignore[arg-type]
        operand = torch.tensor(number).to(signed)
        return apply(name, lambda x: function(x.contiguous().view(signed), operand).view(storage), (tile,))
    other = as_tile(b, name, "second operand")
    if other.dtype is not tile.dtype or other.shape != tile.shape:
        raise fault(
            f"pl.{name}: {list(tile.shape)} {tile.dtype} and {list(other.shape)} {other.dtype} must be equal in shape "
            "and dtype"
        )
    return apply(
        name,
        lambda x, y: function(x.contiguous().view(signed), y.contiguous().view(signed)).view(storage),
        (tile, other),
    )


def _check(name: str, dtype: DType) -> None:
    if dtype not in _STORAGE:
        raise fault(f"pl.{name}: needs a 16- or 32-bit integer tile, not {dtype}")


@op("and_", "tensor.and_", "tile.and_", "ands", "tensor.ands", "tile.ands")
def and_(a: Operand, b: Operand | Number) -> Tile:
    """Bitwise and (3.5)."""
    return _bitwise("and_", a, b, torch.bitwise_and)


@op("or_", "tensor.or_", "tile.or_", "ors", "tensor.ors", "tile.ors")
def or_(a: Operand, b: Operand | Number) -> Tile:
    """Bitwise or (3.5)."""
    return _bitwise("or_", a, b, torch.bitwise_or)


@op("xor", "tensor.xor", "tile.xor", "xors", "tensor.xors", "tile.xors")
def xor(a: Operand, b: Operand | Number, tmp: Operand | None = None) -> Tile:
    """Bitwise exclusive or (3.5)."""
    return _bitwise("xor", a, b, torch.bitwise_xor)


@op("shl", "tensor.shl", "tile.shl", "shls", "tensor.shls", "tile.shls")
def shl(a: Operand, b: Operand | Number) -> Tile:
    """Shift left (3.5)."""
    return _bitwise("shl", a, b, torch.bitwise_left_shift)


@op("shr", "tensor.shr", "tile.shr", "shrs", "tensor.shrs", "tile.shrs")
def shr(a: Operand, b: Operand | Number) -> Tile:
    """Shift right: arithmetic for signed, logical for unsigned types (3.5)."""
    tile = as_tile(a, "shr")
    _check("shr", tile.dtype)
    return _bitwise("shr", tile, b, _logical if tile.dtype.kind == "uint" else torch.bitwise_right_shift)


def _logical(x: Torch, count: Torch) -> Torch:
    mask = (1 << (8 * x.element_size())) - 1
    return ((x.to(torch.int64) & mask) >> count.to(torch.int64)).to(x.dtype)


@op("not_", "tensor.not_", "tile.not_")
def not_(x: Operand) -> Tile:
    """Bitwise complement; 16-bit types only (3.5)."""
    tile = as_tile(x, "not_")
    if tile.dtype not in (INT16, UINT16):
        raise fault(f"pl.not_: needs a 16-bit integer tile, not {tile.dtype}")
    storage = _STORAGE[tile.dtype]
    return apply("not_", lambda v: torch.bitwise_not(v.contiguous().view(torch.int16)).view(storage), (tile,))
