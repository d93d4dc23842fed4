"""Rounding defined on FP32 bit patterns in integer arithmetic, shared by the tests and by nothing else.

A finite pattern is sign, significand and exponent: sig * 2^(exp - 150). Rounding keeps an integer number of
last places and decides from the integer remainder. No floating-point operation takes part.
"""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

FP16_OVERFLOW = 0x477FF000  # 65520.0
BF16_NAN, FP16_NAN, INF = 0x7FC0, 0x7E00, 0x7F800000


def places(significand: Ints, shift: Ints, negative: NDArray[np.bool_], mode: str) -> Ints:
    """significand / 2^shift, rounded to an integer magnitude in `mode`; `negative` is the sign of the
    value.
    """
    shift = np.minimum(shift, 40)  # a significand has 24 bits: beyond 26 only "something is left" matters
    kept = significand >> shift
    rest = significand - (kept << shift)
    twice, unit = 2 * rest, np.int64(1) << shift
    away = {
        "rint": (twice > unit) | ((twice == unit) & (kept % 2 == 1)),
        "round": twice >= unit,
        "trunc": np.zeros_like(negative),
        "floor": (rest > 0) & negative,
        "ceil": (rest > 0) & ~negative,
        "odd": (rest > 0) & (kept % 2 == 0),
    }[mode]
    return kept + away


def _split(bits: Ints) -> tuple[NDArray[np.bool_], Ints, Ints, Ints]:
    negative, magnitude = bits >> 31 == 1, bits & 0x7FFFFFFF
    field = magnitude >> 23
    significand = (magnitude & 0x7FFFFF) + np.where(field > 0, 1 << 23, 0)
    return negative, magnitude, np.maximum(field, 1), significand


def to_bf16(bits: Ints, mode: str) -> Ints:
    """FP32 patterns to BF16 patterns: exponent and significand together are one integer, 16 bits of it are
    dropped.
    """
    negative, magnitude, _, _ = _split(bits)
    kept = places(magnitude, np.full_like(magnitude, 16), negative, mode)
    return np.where(magnitude > INF, BF16_NAN, kept + (negative << 15))


def to_fp16(bits: Ints, mode: str) -> Ints:
    """FP32 patterns to FP16 patterns. FP16's last place is 2^(e - 10) with e >= -14; infinite from 65520."""
    negative, magnitude, exponent, significand = _split(bits)
    below = np.maximum(0, 113 - exponent)  # places lost to gradual underflow; 113 is the field of 2^-14
    kept = places(significand, 13 + below, negative, mode)
    pattern = (np.maximum(exponent - 113, 0) << 10) + kept
    pattern = np.where((magnitude >= FP16_OVERFLOW) | (pattern > 0x7C00), 0x7C00, pattern)
    return np.where(magnitude > INF, FP16_NAN, pattern + (negative << 15))


def to_int32(bits: Ints, mode: str) -> Ints:
    """FP32 patterns to integers, saturating at the limits of INT32; NaN is 0."""
    negative, magnitude, exponent, significand = _split(bits)
    whole = significand << np.clip(exponent - 150, 0, 30)
    fraction = places(significand, np.maximum(150 - exponent, 0), negative, mode)
    value = np.where(exponent >= 150, whole, fraction)
    value = np.where(exponent > 127 + 31, 1 << 40, value)
    value = np.clip(np.where(negative, -value, value), -(2**31), 2**31 - 1)
    return np.where(magnitude > INF, 0, value)


def low_bits(value: Ints, width: int) -> Ints:
    """The low `width` bits, read as two's complement."""
    half = 1 << (width - 1)
    return (value + half) % (2 * half) - half


def fp16_as_fp32(pattern: Ints) -> Ints:
    """FP16 patterns widened to FP32 patterns (exact)."""
    return pattern.astype(np.uint16).view(np.float16).astype(np.float32).view(np.uint32).astype(np.int64)


def convert(bits: Ints, dtype: str, mode: str) -> Ints:
    """FP32 patterns to patterns (float types) or values (integer types)."""
    if dtype == "bfloat16":
        return to_bf16(bits, mode)
    if dtype == "float16":
        return to_fp16(bits, mode)
    if dtype == "int32":
        return to_int32(bits, mode)
    if dtype == "int16":
        return low_bits(to_int32(bits, mode), 16)
    return low_bits(to_int32(fp16_as_fp32(to_fp16(bits, mode)), mode), 8)
