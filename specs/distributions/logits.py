"""Inputs of `gate` with router logits in a chosen range, where softplus has its tail."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specs.distributions.basic import normals, uniforms
from specs.errors import SpecError
from specs.streams import DrawContext
from specs.tensors import TensorSpec

BEACON = 0.5
"""Magnitude of the beacon column after the norm, as a share of sqrt(D)."""


@dataclass(frozen=True)
class BeaconTokens:
    """Tokens N(0, 1) whose column 0 has a fixed value: after the norm it is BEACON * sqrt(D) in every row.

    A router weight in that column moves all logits of an expert by a known amount. The column is a quarter of the row's
    energy; the other columns are scaled so that the mean square of the row is 1, up to their own fluctuation.
    """

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """BF16 [T, D]."""
        rows = normals(ctx, spec.name, spec.shape).mul_((1.0 - BEACON**2) ** 0.5)
        rows[:, 0] = BEACON * spec.shape[1] ** 0.5
        return rows.to(spec.dtype)


@dataclass(frozen=True)
class BeaconRouter:
    """Router weights that give expert e the logit l_e, uniform in [low, high), up to `noise` * N(0, 1) per token.

    Needs BeaconTokens in x_mixed.
    """

    low: float
    high: float
    noise: float = 0.1

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """FP32 [N, D]. Raises SpecError if x_mixed has no beacon."""
        if not isinstance(ctx.spec("x_mixed").init, BeaconTokens):
            raise SpecError(f"{ctx.op}.{spec.name}: BeaconRouter needs BeaconTokens in x_mixed")
        experts, hidden = spec.shape
        weight = normals(ctx, spec.name, spec.shape).mul_(self.noise / hidden**0.5)
        level = uniforms(ctx, f"{spec.name}_level", (experts,)) * (self.high - self.low) + self.low
        weight[:, 0] = level / torch.tensor(BEACON * hidden**0.5)
        return weight
