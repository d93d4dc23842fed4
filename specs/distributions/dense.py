"""Inputs of the dense ops: tensors that repeat others or parts of themselves, rows by token."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from specs.streams import DrawContext
from specs.tensors import Distribution, TensorSpec


@dataclass(frozen=True)
class Equal:
    """Slices along `axis` that are all the same, drawn once from `base`."""

    base: Distribution
    axis: int

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """`base` fills a tensor without the axis."""
        shape = (*spec.shape[: self.axis], *spec.shape[self.axis + 1 :])
        one = self.base.draw(ctx, spec.replace(shape=shape))
        return one.unsqueeze(self.axis).expand(spec.shape).contiguous()


@dataclass(frozen=True)
class PerToken:
    """`base` drawn for [B*S, ...] and viewed as [B, S, ...]: a pattern of rows goes by token."""

    base: Distribution

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """One row per token, whatever the number of requests."""
        requests, tokens, *rest = spec.shape
        return self.base.draw(ctx, spec.replace(shape=(requests * tokens, *rest))).view(spec.shape)
