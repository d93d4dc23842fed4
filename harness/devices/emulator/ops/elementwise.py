"""Element-wise arithmetic (contracts/pypto_dsl.md 3.1, 3.2, 3.5)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor as Torch

from harness.devices.emulator.dtypes import FP32, DType
from harness.devices.emulator.machine import fault, machine
from harness.devices.emulator.ops import approx
from harness.devices.emulator.ops.common import (
    ARITHMETIC,
    FLOATS,
    apply,
    as_tile,
    check_arithmetic,
    common_dtype,
    is_scalar,
    merge_taint,
    scalar_for,
)
from harness.devices.emulator.optable import op
from harness.devices.emulator.values import Scalar, Tensor, Tile

Operand = Tensor | Tile
Number = int | float | Scalar


def widened(function: Callable[..., Torch], dtype: DType) -> Callable[..., Torch]:
    """`function` on operands converted to the storage of `dtype` (only mixed or refused dtypes come here)."""
    return lambda *parts: function(*(p.to(dtype.storage) if p.dtype is not dtype.storage else p for p in parts))


def pair(a: object, b: object, name: str) -> tuple[Tile, Tile]:
    """Two tile operands of compatible shape: equal, or `b` a `[M, 1]` column of `a` (3.2). Raises otherwise."""
    left, right = as_tile(a, name), as_tile(b, name, "second operand")
    if left.shape == right.shape:
        return left, right
    return left, _row_broadcast(left, right, name)


def _row_broadcast(left: Tile, right: Tile, name: str) -> Tile:
    same_rows = len(left.shape) == len(right.shape) and left.shape[:-1] == right.shape[:-1]
    if name in ("add", "sub", "mul", "div") and same_rows:
        if right.shape[-1] == 1:
            return right
        if left.shape[-1] == 1:
            raise fault(
                f"pl.{name}: {list(left.shape)} with {list(right.shape)}: the device exchanges the operands of an "
                f"implicit row broadcast; write pl.row_expand_{name} with the matrix first",
                "GG210",
            )
    hint = ""
    if len(left.shape) == len(right.shape) and right.shape == (*(1,) * (len(left.shape) - 1), left.shape[-1]):
        hint = f"; a [1, N] operand needs pl.col_expand_{name}"
    raise fault(f"pl.{name}: shapes {list(left.shape)} and {list(right.shape)} differ{hint}", "GG210")


def binary(
    name: str, a: object, b: object, function: Callable[..., Torch], allowed: frozenset[DType] = ARITHMETIC
) -> Tile:
    """`function` element by element on tile and tile, or on tile and scalar narrowed to the tile's dtype."""
    if is_scalar(b):
        tile = as_tile(a, name)
        check_arithmetic(name, tile.dtype, allowed)
        scalar = scalar_for(b, tile.dtype, name)  # type: ignore[arg-type]
        return apply(name, partial(_with_scalar, function, scalar), (tile,))
    if is_scalar(a):
        raise fault(f"pl.{name}: the first operand must be a tensor or tile; a scalar may only stand second")
    left, right = pair(a, b, name)
    dtype = left.dtype
    if dtype is not right.dtype:
        dtype = common_dtype(name, left, right)
        function = widened(function, dtype)
    if dtype not in allowed:
        check_arithmetic(name, dtype, allowed)
    return apply(name, function, (left, right), dtype)


def _with_scalar(function: Callable[..., Torch], scalar: int | float, data: Torch) -> Torch:
    return function(data, _as_tensor(scalar, math.copysign(1.0, scalar), data.dtype))


@lru_cache(maxsize=1024)
def _as_tensor(scalar: int | float, sign: float, dtype: torch.dtype) -> Torch:
    # A 0-dim tensor of the tile's own dtype: torch must neither promote nor turn a division into a product. The sign
    # tells the zeros apart, which are equal as keys.
    return torch.tensor(scalar, dtype=dtype)


def unary(name: str, x: object, function: Callable[[Torch], Torch], allowed: frozenset[DType] = FLOATS) -> Tile:
    tile = as_tile(x, name)
    if tile.dtype not in allowed:
        check_arithmetic(name, tile.dtype, allowed)
    return apply(name, function, (tile,))


@op("add", "tensor.add", "tile.add", "adds", "tensor.adds", "tile.adds")
def add(a: Operand, b: Operand | Number) -> Tile:
    """a + b, one rounding in the dtype; integers wrap (3.5)."""
    return binary("add", a, b, torch.add)


@op("sub", "tensor.sub", "tile.sub", "subs", "tensor.subs", "tile.subs")
def sub(a: Operand, b: Operand | Number) -> Tile:
    """a − b, one rounding; integers wrap (3.5)."""
    return binary("sub", a, b, torch.sub)


@op("mul", "tensor.mul", "tile.mul", "muls", "tensor.muls", "tile.muls")
def mul(a: Operand, b: Operand | Number) -> Tile:
    """a · b, one rounding; integers wrap (3.5)."""
    return binary("mul", a, b, torch.mul)


@op("div", "tensor.div", "tile.div", "divs", "tensor.divs", "tile.divs")
def div(a: Operand, b: Operand | Number, high_precision: bool = False) -> Tile:
    """a / b on floats. Tile by tile is correctly rounded; by a scalar the compiler may take the reciprocal (3.5)."""
    by_reciprocal = is_scalar(b) and machine().schedule.pick("div_scalar") == "reciprocal" and not high_precision
    return binary("div", a, b, _multiply_by_reciprocal if by_reciprocal else torch.true_divide, FLOATS)


def _multiply_by_reciprocal(x: Torch, divisor: Torch) -> Torch:
    return torch.mul(x, torch.reciprocal(divisor))


@op("maximum", "tensor.maximum", "tile.maximum", "maximums", "tensor.maximums", "tile.maximums")
def maximum(a: Operand, b: Operand | Number) -> Tile:
    """The larger of two; a NaN propagates unless the schedule says otherwise (3.5, B). No broadcast."""
    return binary("maximum", a, b, torch.maximum if _nan_propagates() else torch.fmax)


@op("minimum", "tensor.minimum", "tile.minimum", "minimums", "tensor.minimums", "tile.minimums")
def minimum(a: Operand, b: Operand | Number) -> Tile:
    """The smaller of two; NaN as in `maximum` (3.5, B). No broadcast."""
    return binary("minimum", a, b, torch.minimum if _nan_propagates() else torch.fmin)


def _nan_propagates() -> bool:
    return machine().schedule.pick("max_nan") == "propagate"


@op("neg", "tensor.neg", "tile.neg")
def neg(x: Operand) -> Tile:
    """x · (−1): −0 for +0 (3.5)."""
    return unary("neg", x, _times_minus_one, ARITHMETIC)


def _times_minus_one(x: Torch) -> Torch:
    return x * -1


@op("abs", "tensor.abs", "tile.abs")
def abs_(x: Operand) -> Tile:
    """x without its sign; floats only on A2/A3 (3.5)."""
    return unary("abs", x, torch.abs)


@op("recip", "tensor.recip", "tile.recip")
def recip(x: Operand, high_precision: bool = False) -> Tile:
    """1 / x by division, one rounding (3.5)."""
    return unary("recip", x, torch.reciprocal)


@op("sqrt", "tensor.sqrt", "tile.sqrt")
def sqrt(x: Operand, high_precision: bool = False) -> Tile:
    """Square root, correctly rounded (3.5)."""
    return unary("sqrt", x, approx.sqrt)


@op("rsqrt", "tensor.rsqrt", "tile.rsqrt")
def rsqrt(x: Operand, high_precision: bool = False) -> Tile:
    """1 / sqrt(x). By default the native estimate, wrong by up to 2^-12; with `high_precision` sqrt, then 1/x (3.5)."""
    if high_precision:
        return unary("rsqrt", x, _sqrt_then_divide)
    machine().lint("GG206", "pl.rsqrt without high_precision is a low-precision estimate on A2/A3")
    return unary("rsqrt", x, approx.rsqrt(machine().schedule))


def _sqrt_then_divide(x: Torch) -> Torch:
    return torch.reciprocal(approx.sqrt(x))


@op("exp", "tensor.exp", "tile.exp")
def exp(x: Operand) -> Tile:
    """e^x, nearest or within 1 ULP (3.5, B)."""
    return unary("exp", x, approx.transcendental(np.exp, machine().schedule))


@op("log", "tensor.log", "tile.log")
def log(x: Operand, high_precision: bool = False) -> Tile:
    """Natural logarithm, nearest or within 1 ULP (3.5, B)."""
    return unary("log", x, approx.transcendental(np.log, machine().schedule))


@op("sin", "tensor.sin", "tile.sin")
def sin(x: Operand) -> Tile:
    """Sine of FP32 radians, nearest or within 1 ULP (3.5)."""
    return unary("sin", x, approx.transcendental(np.sin, machine().schedule), frozenset((FP32,)))


@op("cos", "tensor.cos", "tile.cos")
def cos(x: Operand) -> Tile:
    """Cosine of FP32 radians, nearest or within 1 ULP (3.5)."""
    return unary("cos", x, approx.transcendental(np.cos, machine().schedule), frozenset((FP32,)))


@op("relu", "tensor.relu", "tile.relu")
def relu(x: Operand) -> Tile:
    """max(x, 0) (3.5)."""
    return unary("relu", x, torch.relu, ARITHMETIC)


@op("lrelu", "tensor.lrelu", "tile.lrelu")
def lrelu(x: Operand, slope: Number) -> Tile:
    """x where x > 0, else slope · x, one rounding (3.5)."""
    return binary("lrelu", x, slope, _leaky, FLOATS)


@op("prelu", "tensor.prelu", "tile.prelu")
def prelu(x: Operand, slope: Operand, tmp: Operand | None = None) -> Tile:
    """`lrelu` with a slope per element (3.5)."""
    return binary("prelu", x, slope, _leaky, FLOATS)


def _leaky(x: Torch, slope: Torch) -> Torch:
    return torch.where(x > 0, x, x * slope)


@op("fmod", "tensor.fmod", "tile.fmod", "fmods", "tensor.fmods", "tile.fmods")
def fmod(a: Operand, b: Operand | Number) -> Tile:
    """a − trunc(a/b)·b, every step rounded (3.5): not the exact C fmod."""
    return binary("fmod", a, b, lambda x, y: x - torch.trunc(x / y) * y, FLOATS)


@op("rem", "tensor.rem", "tile.rem", "rems", "tensor.rems", "tile.rems")
def rem(a: Operand, b: Operand | Number, tmp: Operand | None = None) -> Tile:
    """a − floor(a/b)·b, every step rounded; integers go through FP32 (3.5)."""
    return binary("rem", a, b, _rem)


def _rem(x: Torch, y: Torch) -> Torch:
    if x.dtype.is_floating_point:
        return x - torch.floor(x / y) * y
    wide, divisor = x.float(), y.float()
    return (wide - torch.floor(wide / divisor) * divisor).to(x.dtype)


@op("addc", "tensor.addc", "tile.addc", "addsc", "tensor.addsc", "tile.addsc")
def addc(a: Operand, b: Operand | Number, c: Operand) -> Tile:
    """(a + b) + c, two roundings (3.5)."""
    return binary("addc", binary("addc", a, b, torch.add), c, torch.add)


@op("subc", "tensor.subc", "tile.subc", "subsc", "tensor.subsc", "tile.subsc")
def subc(a: Operand, b: Operand | Number, c: Operand) -> Tile:
    """(a − b) + c, two roundings (3.5)."""
    return binary("subc", binary("subc", a, b, torch.sub), c, torch.add)


def _partial(name: str, a: Operand, b: Operand, function: Callable[[Torch, Torch], Torch]) -> Tile:
    """Where both are valid `function`, where one is valid that one; the other region must contain the smaller one."""
    left, right = as_tile(a, name), as_tile(b, name, "second operand")
    if left.shape != right.shape:
        raise fault(f"pl.{name}: shapes {list(left.shape)} and {list(right.shape)} differ")
    dtype = common_dtype(name, left, right)
    check_arithmetic(name, dtype, ARITHMETIC)
    valid = tuple(max(v, w) for v, w in zip(left.valid, right.valid, strict=True))
    if valid not in (left.valid, right.valid):
        raise fault(f"pl.{name}: neither valid region {list(left.valid)}, {list(right.valid)} contains the other")
    large, small = (left, right) if left.valid == valid else (right, left)
    result = Tile.of(
        large.data.to(dtype.storage).clone(),
        dtype,
        valid=valid,
        taint=None if large.taint is None else large.taint.clone(),
        name=name,
    )
    both = tuple(slice(v) for v in small.valid)
    result.data[both] = function(left.data[both], right.data[both]).to(dtype.storage)
    taint = merge_taint(*(None if t.taint is None else t.taint[both] for t in (left, right)))
    if taint is not None:
        result.storage.need_taint().view(result.shape)[both] = taint
    return result


@op("part_add", "tensor.part_add", "tile.part_add")
def part_add(a: Operand, b: Operand) -> Tile:
    """a + b where both are valid, else the valid one (3.5)."""
    return _partial("part_add", a, b, torch.add)


@op("part_mul", "tensor.part_mul", "tile.part_mul")
def part_mul(a: Operand, b: Operand) -> Tile:
    """a · b where both are valid, else the valid one (3.5)."""
    return _partial("part_mul", a, b, torch.mul)


@op("part_max", "tensor.part_max", "tile.part_max")
def part_max(a: Operand, b: Operand) -> Tile:
    """The larger where both are valid, else the valid one (3.5)."""
    return _partial("part_max", a, b, torch.maximum)


@op("part_min", "tensor.part_min", "tile.part_min")
def part_min(a: Operand, b: Operand) -> Tile:
    """The smaller where both are valid, else the valid one (3.5)."""
    return _partial("part_min", a, b, torch.minimum)
