"""A tensor as bit patterns, and what they say as numbers and as distances."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from harness.metrics.figures import Array, Point

_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
_INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool)


class Side:
    """One tensor as flat arrays: its bit patterns and, on request, its numbers."""

    def __init__(self, tensor: Tensor) -> None:
        flat = tensor.detach().reshape(-1).contiguous()
        self.dtype = tensor.dtype
        self.is_float = tensor.dtype in _BITS
        if not self.is_float and tensor.dtype not in _INTEGERS:
            raise TypeError(f"cannot compare tensors of {tensor.dtype}")
        if tensor.dtype == torch.bool:
            flat = flat.view(torch.uint8)
        self.bits: Array = flat.view(_BITS[tensor.dtype]).numpy() if self.is_float else flat.numpy()

    def numbers(self, bits: Array) -> Array:
        """FP32 for 16-bit floats (exact), FP64 otherwise (exact but for integers above 2^53)."""
        if self.dtype == torch.bfloat16:
            wide: Array = bits.view(np.uint16).astype(np.uint32)
            wide <<= 16
            return wide.view(np.float32)
        if self.dtype == torch.float16:
            return bits.view(np.float16).astype(np.float32)
        if self.dtype == torch.float32:
            return bits.view(np.float32).astype(np.float64)
        return bits.astype(np.float64)

    def squares(self, bits: Array) -> float:
        """Sum of squares; not finite exactly when an element is not."""
        numbers: Array = bits.view(np.float32) if self.dtype == torch.float32 else self.numbers(bits)
        return dot(numbers, numbers)

    def steps(self, actual: Array, expected: Array) -> Array:
        """Distance in steps of the dtype: ordered-integer distance for floats, |a - e| for integers."""
        if self.is_float:
            return np.asarray(np.abs(_ordered(actual) - _ordered(expected)))
        if actual.dtype.itemsize < 8:
            return np.asarray(np.abs(actual.astype(np.int64) - expected.astype(np.int64)))
        a, e = actual.view(np.uint64), expected.view(np.uint64)
        # Modulo 2^64: exact where int64 would overflow.
        return np.asarray(np.where(actual > expected, a - e, e - a))


def _ordered(bits: Array) -> Array:
    """Integers in the order of the floats, both zeros at 0."""
    wide = bits.astype(np.int32 if bits.dtype == np.int16 else np.int64)
    magnitude = wide & (0x7FFF if bits.dtype == np.int16 else 0x7FFFFFFF)
    return np.asarray(np.where(wide < 0, -magnitude, magnitude))


def dot(a: Array, b: Array) -> float:
    """The inner product, in FP64 where FP32 may not hold it."""
    total = float(np.dot(a, b))
    # Outside this range a product may have left the range of FP32 although no element did.
    if a.dtype == np.float32 and not 1e-20 < abs(total) < math.inf:
        total = float(np.dot(a.astype(np.float64), b.astype(np.float64)))
    return total


def point_at(actual: Tensor, expected: Tensor, flat: int) -> Point:
    """The element at position `flat` of the flattened tensors."""
    index = tuple(int(i) for i in np.unravel_index(flat, tuple(expected.shape)))
    a, e = actual[index], expected[index]
    sides = Side(a), Side(e)
    finite = bool(torch.isfinite(a)) and bool(torch.isfinite(e))
    distance = int(sides[0].steps(sides[0].bits, sides[1].bits)[0]) if finite else None
    return Point(index, a.item(), e.item(), _hex(sides[0].bits), _hex(sides[1].bits), distance)


def _hex(bits: Array) -> str:
    return "0x" + bits.astype(bits.dtype.newbyteorder(">")).tobytes().hex()
