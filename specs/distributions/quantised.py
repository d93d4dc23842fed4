"""INT8 codes with their scales: activations by Q8 (contracts/hc_gate_experts.md, 0.4), ragged buffers.

Codes and scale are one joint draw. The tensor of codes carries a `CodeSource`; the tensor of scales carries
`MatchingScale(of=...)`, so that a case that changes the codes changes the scale with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from goldens.numerics.quant import quantize_rows
from specs.distributions.basic import Constant, Normal
from specs.errors import SpecError
from specs.streams import DrawContext
from specs.tensors import Distribution, TensorSpec

Pair = tuple[Tensor, Tensor]
ZERO_CODE = Constant(0)
ZERO = Constant(0.0)
STANDARD_NORMAL = Normal()


@runtime_checkable
class CodeSource(Protocol):
    """A distribution of INT8 codes that knows the scale of every row (for weights: output channel)."""

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """The codes."""
        ...

    def pair(self, ctx: DrawContext, spec: TensorSpec) -> Pair:
        """Codes of `spec.shape` and FP32 scales of `spec.shape[:-1]`, drawn once per context."""
        ...


@dataclass(frozen=True)
class Q8:
    """Q8 codes, per row, of BF16 values."""

    values: Distribution = STANDARD_NORMAL

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT8 codes."""
        return self.pair(ctx, spec)[0]

    def pair(self, ctx: DrawContext, spec: TensorSpec) -> Pair:
        """Codes and the scale of every row."""
        return ctx.shared(f"{spec.name}:pair", lambda: _quantised(ctx, spec, self.values, spec.shape))


@dataclass(frozen=True)
class ReceivedQ8:
    """Q8 codes in the first count[e] rows of expert e of a buffer [E, RECV_MAX, D]; `tail` in the other rows.

    Only rows in use are drawn, one after the other over all experts.
    """

    count: str
    values: Distribution = STANDARD_NORMAL
    tail: Distribution = ZERO_CODE

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT8 codes."""
        return self.pair(ctx, spec)[0]

    def pair(self, ctx: DrawContext, spec: TensorSpec) -> Pair:
        """Codes and scales; the scale of a row that is not in use is 0."""
        return ctx.shared(f"{spec.name}:pair", lambda: self._draw_pair(ctx, spec))

    def _draw_pair(self, ctx: DrawContext, spec: TensorSpec) -> Pair:
        used = rows_in_use(ctx.tensor(self.count), spec.shape[1])
        codes = self.tail.draw(ctx, spec.replace(name=f"{spec.name}_tail"))
        scales = torch.zeros(spec.shape[:2])
        rows = int(used.sum())
        if rows:
            codes[used], scales[used] = _quantised(ctx, spec, self.values, (rows, spec.shape[2]))
        return codes, scales


@dataclass(frozen=True)
class ReceivedRows:
    """`values` in the first count[e] entries of row e of a tensor [E, RECV_MAX], `tail` in the others."""

    count: str
    values: Distribution
    tail: Distribution = ZERO

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """Both parts have streams of their own, so that another tail leaves the rows in use as they were."""
        used = rows_in_use(ctx.tensor(self.count), spec.shape[1])
        tail = self.tail.draw(ctx, spec.replace(name=f"{spec.name}_tail"))
        return torch.where(used, self.values.draw(ctx, spec), tail)


@dataclass(frozen=True)
class MatchingScale:
    """The scales that belong to the codes in the tensor `of`."""

    of: str

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """FP32, reshaped to `spec.shape`. Raises SpecError if `of` does not hold codes with a scale."""
        codes = ctx.spec(self.of)
        if not isinstance(codes.init, CodeSource):
            raise SpecError(
                f"{ctx.op}.{spec.name}: {self.of} is drawn from {type(codes.init).__name__}, without scales"
            )
        return codes.init.pair(ctx, codes)[1].reshape(spec.shape)


def rows_in_use(count: Tensor, recv_max: int) -> Tensor:
    """Bool [E, RECV_MAX]: True in the first count[e] columns of row e."""
    return torch.arange(recv_max) < count.reshape(-1, 1)


def _quantised(ctx: DrawContext, spec: TensorSpec, values: Distribution, shape: tuple[int, ...]) -> Pair:
    source = spec.replace(name=f"{spec.name}_values", shape=shape, dtype=torch.bfloat16)
    codes, scales = quantize_rows(values.draw(ctx, source).float())
    return codes, scales.squeeze(-1)
