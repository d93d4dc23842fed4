"""Functions whose last bits the device may choose (contracts/pypto_dsl.md 3.5, B; the table of `variance.py`)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor as Torch

from harness.devices.emulator.variance import RSQRT_BITS, Schedule

Ufunc = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def _in_fp64(function: Ufunc, x: Torch) -> Torch:
    """`function` in FP64. numpy rather than torch: one thread, and a correctly rounded square root."""
    return torch.from_numpy(np.asarray(function(x.double().numpy())))


def sqrt(x: Torch) -> Torch:
    """Correctly rounded square root of FP32 or FP16 (FP64 holds enough digits for the second rounding to be safe)."""
    if x.dtype is torch.float32:  # the host's instruction is correctly rounded as well
        return torch.from_numpy(np.asarray(np.sqrt(x.numpy())))
    return _in_fp64(np.sqrt, x).to(x.dtype)


def transcendental(function: Ufunc, schedule: Schedule) -> Callable[[Torch], Torch]:
    """`function` evaluated in FP64 and rounded once; option `one_ulp` moves the result by −1, 0 or +1 ULP.

    FP64 first makes the nearest result the same on every host. Zeros, infinities, NaN and the result of an input whose
    result is exactly 1 (exp of 0, cos of 0) never move.
    """
    if schedule.pick("transcendental") == "nearest":
        return lambda x: _in_fp64(function, x).to(x.dtype)

    def within_one_ulp(x: Torch) -> Torch:
        y = _in_fp64(function, x).to(x.dtype)
        step = (_hash(x, schedule.salt) % 3) - 1
        moved = _add_ulps(y, step)
        return torch.where((y == 0) | (y == 1) | ~torch.isfinite(y) | ~torch.isfinite(moved), y, moved)

    return within_one_ulp


def rsqrt(schedule: Schedule) -> Callable[[Torch], Torch]:
    """1/sqrt(x) with a relative error below 2^-12: cut to 12 fraction bits, or (`spread`) off by a drawn amount."""
    cut = -(1 << (23 - RSQRT_BITS))

    def truncated(x: Torch) -> Torch:
        y = (1.0 / np.sqrt(x.double().numpy())).astype(np.float32)
        # The mask keeps sign, exponent and 12 fraction bits: infinity stays infinity, and NaN a (quiet) NaN.
        bits = y.view(np.int32)
        bits &= cut
        return torch.from_numpy(np.asarray(y)).to(x.dtype)

    def spread(x: Torch) -> Torch:
        y = 1.0 / _in_fp64(np.sqrt, x)
        unit = _hash(x, schedule.salt).double() / 2.0**30 - 1.0  # in [-1, 1)
        return (y * (1.0 + unit * 0.99 * 2.0**-RSQRT_BITS)).to(x.dtype)

    return truncated if schedule.pick("rsqrt") == "truncated" else spread


def _hash(x: Torch, salt: int) -> Torch:
    """A number in [0, 2^31) per element that depends on its bits and the salt only (an integer mixer)."""
    bits = x.contiguous().float().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    mixed = ((bits ^ salt) * 0x9E3779B1) & 0xFFFFFFFF
    mixed = ((mixed ^ (mixed >> 15)) * 0x85EBCA77) & 0xFFFFFFFF
    return (mixed ^ (mixed >> 13)) & 0x7FFFFFFF


def _add_ulps(y: Torch, step: Torch) -> Torch:
    """`y` moved by `step` units in the last place away from zero."""
    if y.dtype is torch.float32:
        return (y.view(torch.int32) + step.to(torch.int32)).view(torch.float32)
    return (y.view(torch.int16) + step.to(torch.int16)).view(y.dtype)
