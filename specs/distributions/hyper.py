"""Gates of the hyper-connections: what `hc_post` receives (contracts/hc_gate_experts.md, 2.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specs.distributions.basic import normals, uniforms
from specs.streams import DrawContext
from specs.tensors import TensorSpec


@dataclass(frozen=True)
class SigmoidGate:
    """gain * sigmoid(N(0, 1)), FP32."""

    gain: float = 2.0

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """Values in (0, gain)."""
        return normals(ctx, spec.name, spec.shape).sigmoid_().mul_(self.gain)


@dataclass(frozen=True)
class RowStochasticComb:
    """comb [T, HC*HC] whose entries for one old stream sum to 1 over the new streams.

    U(0, 1) + 0.1, divided by its sum over `out`. Asymmetric, so that a transposed comb is seen.
    """

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """Row-major [in, out] per token."""
        raw = uniforms(ctx, spec.name, spec.shape).add_(0.1)
        old_by_new = raw.reshape(-1, ctx.config.hc_mult, ctx.config.hc_mult)
        return (old_by_new / old_by_new.sum(dim=-1, keepdim=True)).reshape(spec.shape)


@dataclass(frozen=True)
class OneSidedComb:
    """comb far from symmetric: the weight from old stream i to new stream o is 2^(i-o) * (1 + U(0, 1)) / 4.

    Away from the diagonal an entry and its transpose differ by a factor of 2 to 128.
    """

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """Row-major [in, out] per token."""
        streams = torch.arange(ctx.config.hc_mult, dtype=torch.float32)
        ratio = torch.exp2(streams[:, None] - streams[None, :]).reshape(-1)
        return uniforms(ctx, spec.name, spec.shape).add_(1.0).mul_(0.25).mul_(ratio)


@dataclass(frozen=True)
class IdentityComb:
    """comb that keeps every stream: 1 from a stream to itself, else 0."""

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """Row-major [in, out] per token."""
        return torch.eye(ctx.config.hc_mult).reshape(1, -1).expand(spec.shape).contiguous()
