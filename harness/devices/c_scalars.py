"""Scalars as the toolchain's executor takes them: ctypes values (reference_harness.md 3, pypto_dsl.md 5.3)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch

_TYPES: dict[torch.dtype, Callable[[Any], Any]] = {
    torch.int8: ctypes.c_int8,
    torch.int32: ctypes.c_int32,
    torch.int64: ctypes.c_int64,
    torch.uint8: ctypes.c_uint8,
    torch.bool: ctypes.c_bool,
    torch.float32: ctypes.c_float,
}


def c_scalar(value: int | float | bool, dtype: torch.dtype) -> Any:
    """`value` as a ctypes scalar of `dtype`; FP16 and BF16, rounded to nearest even, as the unsigned integer of their
    bits. Raises KeyError for a dtype that no scalar has."""
    if dtype in (torch.float16, torch.bfloat16):
        bits = int(torch.tensor(value, dtype=dtype).view(torch.int16).item())
        return ctypes.c_uint16(bits & 0xFFFF)
    return _TYPES[dtype](value)
