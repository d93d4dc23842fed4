"""Which conversion a cast takes: the table of contracts/pypto_dsl.md 3.6 over the functions of `rounding.py`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor as Torch

from harness.devices.emulator import rounding
from harness.devices.emulator.dtypes import (
    BF16,
    BOOL,
    FP16,
    FP32,
    INT8,
    INT16,
    INT32,
    INT64,
    UINT8,
    DType,
)
from harness.devices.emulator.machine import fault

Convert = Callable[[Torch, str], Torch]


def _widen(dtype: torch.dtype) -> Convert:
    return lambda x, mode: x.to(dtype)


def _via_int32(narrow: torch.dtype) -> Convert:
    """Round to INT32 with saturation, then keep the low bits."""
    return lambda x, mode: rounding.wrap(rounding.fp32_to_int32(x.float(), mode), narrow)


# pair -> (function, what mode `none` means, what mode `odd` means)
NATIVE: dict[tuple[DType, DType], tuple[Convert, str, str]] = {
    (FP32, FP16): (rounding.fp32_to_fp16, "rint", "odd"),
    (FP32, BF16): (rounding.fp32_to_bf16, "rint", "rint"),
    (FP32, INT32): (rounding.fp32_to_int32, "trunc", "trunc"),
    (FP32, INT64): (rounding.fp32_to_int64, "trunc", "trunc"),
    (FP32, INT16): (_via_int32(torch.int16), "trunc", "trunc"),
    (FP16, INT32): (lambda x, mode: rounding.fp32_to_int32(x.float(), mode), "trunc", "trunc"),
    (FP16, INT16): (_via_int32(torch.int16), "trunc", "trunc"),
    (FP16, INT8): (_via_int32(torch.int8), "trunc", "trunc"),
    (FP16, UINT8): (_via_int32(torch.uint8), "trunc", "trunc"),
    (BF16, INT32): (lambda x, mode: rounding.fp32_to_int32(x.float(), mode), "trunc", "trunc"),
    (FP16, FP32): (_widen(torch.float32), "rint", "rint"),
    (BF16, FP32): (_widen(torch.float32), "rint", "rint"),
    (INT16, FP32): (_widen(torch.float32), "rint", "rint"),
    (INT8, FP16): (_widen(torch.float16), "rint", "rint"),
    (UINT8, FP16): (_widen(torch.float16), "rint", "rint"),
    (INT32, FP32): (rounding.int_to_fp32, "rint", "rint"),
    (INT64, FP32): (rounding.int_to_fp32, "rint", "rint"),
    (INT16, FP16): (rounding.int16_to_fp16, "rint", "rint"),
    (INT32, FP16): (lambda x, mode: rounding.int32_to_fp16(x), "rint", "rint"),
    (INT32, INT16): (_widen(torch.int16), "rint", "rint"),
    (INT64, INT32): (_widen(torch.int32), "rint", "rint"),
    (INT32, INT64): (_widen(torch.int64), "rint", "rint"),
}

# Pairs whose result depends on the mode: a cast that leaves it out is worth a finding.
INEXACT = frozenset(
    {(FP32, FP16), (FP32, BF16), (FP32, INT32), (FP32, INT64), (FP32, INT16)}
    | {(FP16, t) for t in (INT32, INT16, INT8, UINT8)}
    | {(BF16, INT32)}
)

# H expands these into chains of native casts, the same mode on every hop (3.6). J refuses them.
CHAINS: dict[tuple[DType, DType], tuple[DType, ...]] = {
    (BF16, FP16): (FP32,), (BF16, INT16): (FP32,), (BF16, INT8): (FP32, FP16), (BF16, UINT8): (FP32, FP16),
    (FP16, BF16): (FP32,), (FP32, INT8): (FP16,), (FP32, UINT8): (FP16,),
    (INT16, BF16): (FP32,), (INT32, BF16): (FP32,), (INT16, INT8): (FP16,), (INT16, UINT8): (FP16,),
    (INT32, INT8): (FP16,), (INT32, UINT8): (FP16,), (INT64, BF16): (FP32,), (INT64, FP16): (FP32,),
    (INT64, INT16): (FP32,), (INT64, INT8): (FP32, FP16), (INT64, UINT8): (FP32, FP16),
    (INT8, UINT8): (FP16,), (UINT8, INT8): (FP16,),
}  # fmt: skip


def native(source: DType, target: DType, mode: str) -> Callable[[Torch], Torch]:
    """The conversion of a native pair under a mode; KeyError for another pair."""
    convert, none, odd = NATIVE[source, target]
    effective = {"none": none, "odd": odd}.get(mode, mode)
    return lambda x: convert(x, effective)


def chained(source: DType, target: DType, mode: str) -> Callable[[Torch], Torch] | None:
    """The chain of native conversions that H would take, None when there is none."""
    hops = CHAINS.get((source, target))
    if hops is None:
        return None
    route = (source, *hops, target)
    steps = [native(a, b, mode) for a, b in itertools.pairwise(route)]

    def run(x: Torch) -> Torch:
        for step in steps:
            x = step(x)
        return x

    return run


def number_in(value: int | float | bool, dtype: DType) -> int | float | bool:
    """A number as a scalar of `dtype` (1.6): float to int truncates and saturates, int to int wraps, to float nearest.

    Raises for a NaN that should become an integer.
    """
    if dtype is BOOL:
        return bool(value)
    if dtype.is_float:
        single = rounding.fp32(float(value)) if isinstance(value, float) or abs(value) <= 1 << 53 else _nearest(value)
        if dtype is FP32:
            return single
        narrow = torch.tensor([single], dtype=torch.float32)
        convert = {BF16: rounding.fp32_to_bf16, FP16: rounding.fp32_to_fp16}[dtype]
        return float(convert(narrow, "rint")[0])
    if dtype.kind not in ("int", "uint"):
        raise fault(f"a number cannot become {dtype}")
    low, high = (
        (-(1 << (dtype.bits - 1)), (1 << (dtype.bits - 1)) - 1) if dtype.kind == "int" else (0, (1 << dtype.bits) - 1)
    )
    if isinstance(value, float):
        if math.isnan(value):
            raise fault(f"NaN cannot become {dtype}")
        return min(max(math.trunc(value) if math.isfinite(value) else (high if value > 0 else low), low), high)
    wrapped = int(value) & ((1 << dtype.bits) - 1)
    return wrapped - (1 << dtype.bits) if wrapped > high else wrapped


def _nearest(value: int) -> float:
    return float(rounding.int_to_fp32(torch.tensor([value], dtype=torch.int64), "rint")[0])
