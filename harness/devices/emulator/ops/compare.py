"""Comparison and selection (contracts/pypto_dsl.md 3.5).

A mask is held as a tile of 0 and 1 in the dtype that was compared, also where the device packs it into bits: its only
consumer is `sel`.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor as Torch

from harness.devices.emulator.dtypes import INT32, DType
from harness.devices.emulator.machine import fault, machine
from harness.devices.emulator.ops.common import ARITHMETIC, apply, as_tile, check_arithmetic, common_dtype
from harness.devices.emulator.ops.elementwise import Number, Operand, binary
from harness.devices.emulator.optable import op
from harness.devices.emulator.values import Tile, as_int

_COMPARISONS = (torch.eq, torch.ne, torch.lt, torch.le, torch.gt, torch.ge)
_NAMES = ("eq", "ne", "lt", "le", "gt", "ge")


def _compare(name: str, a: Operand, b: Operand | Number, cmp_type: object) -> Tile:
    kind = _NAMES.index(cmp_type) if isinstance(cmp_type, str) and cmp_type in _NAMES else as_int(cmp_type, "cmp_type")
    if not 0 <= kind < len(_COMPARISONS):
        raise fault(f"pl.{name}: cmp_type {kind} is outside 0..5 (eq, ne, lt, le, gt, ge)")
    left = as_tile(a, name)
    if left.dtype is INT32 and kind != 0:
        machine().lint("GG207", f"pl.{name} of INT32 with cmp_type {kind} ({_NAMES[kind]}) tests equality on A2/A3")
        kind = 0
    return binary(name, left, b, partial(_mask, kind))


def _mask(kind: int, x: Torch, y: Torch) -> Torch:
    return _COMPARISONS[kind](x, y).to(x.dtype)


@op("cmp", "tensor.cmp", "tile.cmp")
def cmp(a: Operand, b: Operand | Number, cmp_type: object = 0) -> Tile:
    """0/1 per element; 0 eq, 1 ne, 2 lt, 3 le, 4 gt, 5 ge. INT32 always tests equality on A2/A3 (3.5)."""
    return _compare("cmp", a, b, cmp_type)


@op("cmps", "tensor.cmps", "tile.cmps")
def cmps(a: Operand, b: Number, cmp_type: object = 0) -> Tile:
    """`cmp` against a scalar (3.5)."""
    return _compare("cmps", a, b, cmp_type)


@op("sel", "tensor.sel", "tile.sel")
def sel(mask: Operand, a: Operand, b: Operand, tmp: Operand | None = None) -> Tile:
    """a where mask is not zero, else b; the valid region is a's (3.5)."""
    chosen, left, right = as_tile(mask, "sel"), as_tile(a, "sel", "second operand"), as_tile(b, "sel", "third operand")
    if not chosen.shape == left.shape == right.shape:
        raise fault(
            f"pl.sel: mask {list(chosen.shape)} and values {list(left.shape)}, {list(right.shape)} differ in shape"
        )
    dtype: DType = common_dtype("sel", left, right)
    check_arithmetic("sel", dtype, ARITHMETIC)
    return apply("sel", lambda x, y, m: torch.where(m != 0, x, y).to(dtype.storage), (left, right, chosen), dtype)
