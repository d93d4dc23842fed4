"""Conversions between element types, from bit patterns (contracts/pypto_dsl.md 3.6).

Every function works on whole torch tensors and shares no code with `goldens.numerics`. The ones that kernels use all
the time compute in numpy, which costs half as much per pass on a tile. Modes: `rint` (nearest, ties to even), `round`
(nearest, ties away from zero), `floor`, `ceil`, `trunc`, `odd` (truncate, then set the last bit when inexact).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor as Torch

MODES = ("none", "rint", "round", "floor", "ceil", "trunc", "odd")  # a mode's number is its position

_INT32_MAX = 2**31 - 1
_FP16_INF = 0x7C00
_FP32_65520 = 0x477FF000  # the bits of 65520, halfway between the largest half and 2^16


def fp32(value: float) -> float:
    """A Python float rounded once to FP32 (nearest even, overflow to infinity)."""
    return ctypes.c_float(value).value


def _carry(kept: Torch, rest: Torch, half: Torch | int, negative: Torch, mode: str) -> Torch:
    """`kept` (a magnitude whose dropped low bits are `rest`) after rounding; `half` is the tie."""
    if mode == "trunc":
        return kept
    if mode == "rint":
        return kept + ((rest > half) | ((rest == half) & ((kept & 1) == 1)))
    if mode == "round":
        return kept + (rest >= half)
    if mode == "odd":
        return kept | (rest != 0)
    if mode == "floor":
        return kept + ((rest != 0) & negative)
    if mode == "ceil":
        return kept + ((rest != 0) & ~negative)
    raise ValueError(f"unknown rounding mode {mode!r}")


def _away_from_zero(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The nearest integer, ties away from zero."""
    whole = np.trunc(values)
    # values - whole is exact: both have the same exponent or the difference is below one.
    return np.where(np.abs(values - whole) >= 0.5, whole + np.copysign(np.float32(1), values), whole)


_INTEGRAL: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "rint": np.rint, "round": _away_from_zero, "trunc": np.trunc, "floor": np.floor, "ceil": np.ceil,
}  # fmt: skip


def fp32_to_bf16(x: Torch, mode: str) -> Torch:
    """FP32 to BF16. Overflow goes to infinity where the mode rounds away; every NaN becomes the quiet NaN 0x7FC0."""
    x = x.contiguous()
    # The magnitude sits in the low 31 bits, so adding below bit 16 and shifting rounds it whatever the sign is.
    if mode == "rint":
        return _fp32_to_bf16_rint(x)
    bits = x.view(torch.int32)
    if mode == "round":
        high = (bits + 0x8000) >> 16
    elif mode == "trunc":
        high = bits >> 16
    else:
        high = _carry(bits >> 16, bits & 0xFFFF, 0x8000, bits < 0, mode)
    return torch.where(x == x, high, 0x7FC0).to(torch.int16).view(torch.bfloat16)


def _fp32_to_bf16_rint(x: Torch) -> Torch:
    values = x.numpy()
    bits = values.view(np.uint32)
    high = bits >> 16
    high &= 1
    high += 0x7FFF
    high += bits
    high >>= 16
    if (number := values == values).all():
        return torch.from_numpy(high.astype(np.uint16).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.where(number, high, 0x7FC0).astype(np.uint16).view(np.int16)).view(torch.bfloat16)


def _fp32_to_fp16_nearest(x: Torch, mode: str) -> Torch:
    """`fp32_to_fp16` in the modes `rint` and `round`."""
    values = x.numpy()
    bits = values.view(np.int32)
    magnitude = bits & _INT32_MAX
    # 13 bits fall away; a carry runs into the exponent as it should, past the largest half into infinity.
    rounded = (magnitude >> 13) & 1 if mode == "rint" else np.ones_like(magnitude)
    rounded += magnitude
    rounded += 0x0FFF - (112 << 23)
    rounded >>= 13
    small = magnitude < 113 << 23
    if small.any():
        # Below 2^-14 halves are multiples of 2^-24; scaling by a power of two is exact.
        rounded[small] = _INTEGRAL[mode](np.abs(values[small]) * np.float32(2.0**24))
    if magnitude.size and magnitude.max() >= 143 << 23:  # 2^16 and more, infinities, NaN
        np.minimum(rounded, _FP16_INF, out=rounded)
        rounded = np.where(values == values, rounded, 0x7E00)
    rounded |= (bits >> 16) & 0x8000
    return torch.from_numpy(rounded.astype(np.uint16).view(np.int16)).view(torch.float16)


def fp32_to_fp16(x: Torch, mode: str) -> Torch:
    """FP32 to FP16 with subnormals. Infinity from 65520 on, in every mode; every NaN becomes 0x7E00."""
    if mode in ("rint", "round"):
        return _fp32_to_fp16_nearest(x.contiguous(), mode)
    bits = x.contiguous().view(torch.int32)
    magnitude = bits & _INT32_MAX
    exponent = magnitude >> 23
    # Normal results drop 13 bits of the rebased pattern (a carry runs into the exponent as it should); below 2^-14
    # the significand is shifted further, up to 25 bits, where nothing is left but the sticky rest.
    below = (113 - exponent).clamp(0, 12)
    significand = (magnitude & 0x7FFFFF) | ((exponent > 0).to(torch.int32) << 23)
    pattern = torch.where(below == 0, magnitude - (112 << 23), significand)
    shift = below + 13
    one = torch.ones_like(shift)
    kept = pattern >> shift
    rest = pattern & ((one << shift) - 1)
    negative = bits < 0
    rounded = _carry(kept, rest, one << (shift - 1), negative, mode)
    # From 65520 on infinity, whatever the mode (3.6, out of range); below that the mode decides.
    away = {"floor": negative, "ceil": ~negative}.get(mode, torch.zeros_like(negative))
    rounded = torch.minimum(rounded, torch.where(away, _FP16_INF, _FP16_INF - 1).to(torch.int32))
    rounded = torch.where(magnitude >= _FP32_65520, _FP16_INF, rounded)
    rounded = torch.where(x == x, rounded, 0x7E00)
    return (rounded | ((bits >> 16) & 0x8000)).to(torch.int16).view(torch.float16)


def to_integral(x: Torch, mode: str) -> Torch:
    """FP32 rounded to an integral FP32 value; infinities and NaN stay. There is no `odd` here."""
    if mode not in _INTEGRAL:
        raise ValueError(f"unknown rounding mode {mode!r}")
    with np.errstate(invalid="ignore"):  # signalling NaN
        return torch.from_numpy(np.asarray(_INTEGRAL[mode](x.numpy())))


def fp32_to_int32(x: Torch, mode: str) -> Torch:
    """FP32 to INT32, saturating; NaN gives 0."""
    whole = to_integral(x, mode)
    low, high = whole.aminmax() if whole.numel() else (0.0, 0.0)
    if float(low) > -2147483648.0 and float(high) < 2147483648.0:  # false for NaN
        return whole.to(torch.int32)
    inside = whole.nan_to_num(nan=0.0).clamp(-2147483648.0, 2147483520.0).to(torch.int32)
    return torch.where(whole >= 2147483648.0, _INT32_MAX, inside).to(torch.int32)


def fp32_to_int64(x: Torch, mode: str) -> Torch:
    """FP32 to INT64, saturating; NaN gives 0."""
    whole = to_integral(x, mode)
    limit = 9223372036854775808.0
    below = 9223371487098961920.0  # the largest FP32 under 2^63
    inside = whole.nan_to_num(nan=0.0).clamp(-limit, below).to(torch.int64)
    return torch.where(whole >= limit, 2**63 - 1, inside)


def int_to_fp32(x: Torch, mode: str) -> Torch:
    """INT16, INT32 or INT64 to FP32; the mode matters beyond 2^24."""
    if mode == "rint" and x.dtype is not torch.int64:
        return x.to(torch.float32)  # what the host's conversion instruction does
    return _int_to_float(x, 24, mode).to(torch.float32)


def int16_to_fp16(x: Torch, mode: str) -> Torch:
    """INT16 to FP16; the mode matters beyond 2^11."""
    return _int_to_float(x, 11, mode).to(torch.float16)


def int32_to_fp16(x: Torch) -> Torch:
    """INT32 to FP16, nearest even, infinity from 65520 on."""
    low, high = x.aminmax() if x.numel() else (0, 0)
    if int(low) >= -2048 and int(high) <= 2048:
        return x.to(torch.float16)  # exact
    # FP32 holds every integer below 2^24 and everything above is far beyond the largest half: one rounding.
    return fp32_to_fp16(int_to_fp32(x, "rint"), "rint")


def _int_to_float(x: Torch, precision: int, mode: str) -> Torch:
    """Integers rounded to `precision` significand bits, as FP64 (which holds the result exactly)."""
    if x.numel() == 0 or max(abs(int(x.amin())), abs(int(x.amax()))) <= 1 << precision:
        return x.to(torch.float64)
    wide = x.to(torch.int64)
    negative = wide < 0
    lowest = wide == -(2**63)  # its magnitude does not fit; as a power of two it needs no rounding
    magnitude = torch.where(lowest, 0, wide).abs()
    length = torch.frexp(magnitude.to(torch.float64)).exponent.to(torch.int64)
    # FP64 may round up to the next power of two, which makes the length one too large.
    length = length - ((magnitude >> (length - 1).clamp(min=0)) == 0).to(torch.int64)
    drop = (length - precision).clamp(min=0)
    unit = torch.ones_like(drop) << drop
    rounded = _carry(magnitude >> drop, magnitude & (unit - 1), torch.where(drop > 0, unit >> 1, 1), negative, mode)
    result = (rounded << drop.clamp(max=39)).to(torch.float64)  # at most 2^24 << 39 = 2^63
    result = torch.where(rounded << drop < 0, 2.0**63, result)
    result = torch.where(negative, -result, result)
    return torch.where(lowest, -(2.0**63), result)


def wrap(x: Torch, dtype: torch.dtype) -> Torch:
    """The low bits of an integer tensor as a narrower or wider integer type (two's complement)."""
    return x.to(dtype)
