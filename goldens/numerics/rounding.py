"""FP32 to narrower types in every rounding mode of the DSL's cast (contracts/pypto_dsl.md 3.6)."""

from typing import Literal, get_args

import torch
from torch import Tensor

Mode = Literal["rint", "round", "trunc", "floor", "ceil", "odd"]
MODES: tuple[Mode, ...] = get_args(Mode)

# From here on FP32 becomes an infinity in FP16, in every mode: half way from the largest FP16, 65504, to
# 2^16.
_FP16_OVERFLOW = 65520.0


def round_to(x: Tensor, dtype: torch.dtype, mode: Mode = "rint") -> Tensor:
    """Round FP32 `x` (any shape) to `dtype`: bfloat16, float16, int32, int16 or int8.

    Modes: `rint` nearest, ties to even; `round` nearest, ties away from zero; `trunc` toward zero; `floor`
    down; `ceil` up; `odd` toward zero, then the last bit set if anything was lost.

    Out of range: BF16 overflows as its mode rounds (so `trunc` stops at the largest finite value); FP16 is
    infinite from 65520 in every mode; INT32 saturates; INT16 keeps the low 16 bits of the saturated INT32;
    INT8 goes through FP16 with the same mode on both hops and keeps the low 8 bits. NaN stays NaN (the quiet,
    positive one) in a float type and becomes 0 in an integer type. The sign of zero is kept in a float type.
    Raises ValueError for a source that is not FP32, another target or an unknown mode.
    """
    if x.dtype != torch.float32:
        raise ValueError(f"round_to takes float32, got {x.dtype}")
    if mode not in MODES:
        raise ValueError(f"unknown rounding mode {mode!r}, expected one of {', '.join(MODES)}")
    if dtype == torch.bfloat16:
        return _to_bf16(x, mode)
    if dtype == torch.float16:
        return _to_fp16(x, mode)
    if dtype == torch.int32:
        return _to_int32(x, mode)
    if dtype == torch.int16:
        return _to_int32(x, mode).to(torch.int16)
    if dtype == torch.int8:
        return _to_int32(_to_fp16(x, mode).float(), mode).to(torch.int8)
    raise ValueError(f"round_to cannot target {dtype}")


def _to_bf16(x: Tensor, mode: Mode) -> Tensor:
    """BF16 is the upper half of FP32: what is dropped is the lower half, and adding 1 above it carries
    correctly.
    """
    if mode == "rint":
        return x.to(torch.bfloat16).masked_fill_(x.isnan(), torch.nan)
    bits = x.view(torch.int32)
    dropped = bits & 0xFFFF
    lost = (dropped + 0xFFFF) >> 16  # 1 where anything is dropped
    negative = bits >> 31  # all ones where the sign is set
    kept = bits >> 16
    if mode == "round":
        kept = kept + (dropped >> 15)
    elif mode == "floor":
        kept = kept + (lost & negative)
    elif mode == "ceil":
        kept = kept + (lost & ~negative)
    elif mode == "odd":
        kept = kept | lost
    return kept.to(torch.int16).view(torch.bfloat16).masked_fill_(x.isnan(), torch.nan)


def _to_fp16(x: Tensor, mode: Mode) -> Tensor:
    """Scale FP16's last place to 1, round to an integer, scale back: powers of two, so both are exact."""
    finite = torch.where(x.abs() < _FP16_OVERFLOW, x, 0.0).double()
    _, exponent = torch.frexp(finite)  # finite = m * 2^exponent, 0.5 <= m < 1
    last_place = torch.ldexp(torch.ones_like(finite), exponent.clamp(min=-13) - 11)
    rounded = (_integral(finite / last_place, mode) * last_place).to(torch.float16)
    rounded.masked_fill_(x >= _FP16_OVERFLOW, torch.inf).masked_fill_(x <= -_FP16_OVERFLOW, -torch.inf)
    return rounded.masked_fill_(x.isnan(), torch.nan)


def _to_int32(x: Tensor, mode: Mode) -> Tensor:
    limits = torch.iinfo(torch.int32)
    return _integral(x.double(), mode).nan_to_num(nan=0.0).clamp(limits.min, limits.max).to(torch.int32)


def _integral(x: Tensor, mode: Mode) -> Tensor:
    """Round to an integral value of the same float type, which holds x and its neighbouring integers
    exactly.
    """
    if mode == "rint":
        return x.round()
    if mode == "floor":
        return x.floor()
    if mode == "ceil":
        return x.ceil()
    toward_zero = x.trunc()
    if mode == "trunc":
        return toward_zero
    lost = (x - toward_zero).abs()
    step_away = lost >= 0.5 if mode == "round" else (lost > 0) & (toward_zero.fmod(2) == 0)
    return torch.where(step_away, toward_zero + x.sign(), toward_zero)
