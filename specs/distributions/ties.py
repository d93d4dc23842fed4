"""Rows that a normalisation takes exactly between two BF16 values, or a quantiser exactly between two codes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from specs.errors import SpecError
from specs.streams import DrawContext
from specs.tensors import TensorSpec

NORM_TIE_WEIGHT = 1.0 + 3.0 * 2.0**-7
"""A norm weight with which 1.5 becomes 1.5 + 4.5 * 2^-7, half-way between BF16 values: even below, odd above."""


@dataclass(frozen=True)
class TieRows:
    """Rows of +-1.5, +-0.5 and +-1, times 2^10, in shares of 3:5:8 and random order.

    The squares of 16 such entries sum to 16 * 2^20, so that the mean square is 2^20, an epsilon of 1e-6 is lost in
    it, and 1/rms is 2^-10, in any order of the sum. With the weight `NORM_TIE_WEIGHT` three of 16 lanes are ties.
    """

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """Raises SpecError unless the rows are a multiple of 16 wide."""
        *rows, width = spec.shape
        if width % 16:
            raise SpecError(f"{ctx.op}.{spec.name}: rows of ties are a multiple of 16 wide, got {width}")
        magnitudes = np.repeat(np.array([1.5, 0.5, 1.0]), np.array([3, 5, 8]) * (width // 16))
        rng = ctx.rng(spec.name)
        values = rng.permuted(np.tile(magnitudes, (*rows, 1)), axis=-1)
        values *= (rng.integers(2, size=values.shape) * 2.0 - 1.0) * 2.0**10
        return torch.from_numpy(values).to(spec.dtype)


@dataclass(frozen=True)
class HalfCodes:
    """Whole numbers from -253 to 253, and +-254 in a quarter of the places.

    BF16 holds all of them. A row whose amax is 254 is quantised with a gain of exactly 1/2: odd numbers are ties.
    """

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """Raises SpecError unless the tensor is BF16 or FP32."""
        if spec.dtype not in (torch.bfloat16, torch.float32):
            raise SpecError(f"{ctx.op}.{spec.name}: whole numbers up to 254 are BF16 or FP32, not {spec.dtype}")
        rng = ctx.rng(spec.name)
        values = rng.integers(-253, 254, size=spec.shape)
        largest = rng.integers(4, size=spec.shape) == 0
        values[largest] = np.where(values[largest] < 0, -254, 254)
        return torch.from_numpy(values).to(spec.dtype)


@dataclass(frozen=True)
class Neighbours:
    """1 or the next value of BF16, by chance; lanes of odd number negative.

    The mean of two rows lies half-way between the two in half of the lanes: even below, odd above.
    """

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """Values of the spec's dtype."""
        values = 1.0 + ctx.rng(spec.name).integers(2, size=spec.shape) * 2.0**-7
        values[..., 1::2] *= -1.0
        return torch.from_numpy(values).to(spec.dtype)
