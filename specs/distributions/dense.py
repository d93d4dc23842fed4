"""Inputs of the dense ops: copies along an axis, rows by token, codes by column, rows of rotary tables."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from goldens.numerics.rope import rope_frequencies, rope_rows_at
from specs.distributions.basic import normals, require_float
from specs.distributions.quantised import Q8, Pair
from specs.streams import DrawContext
from specs.tensors import Distribution, TensorSpec

GROUP = 32
"""Consecutive elements that a large tensor takes from the pool together."""
POOL_GROUPS = 1 << 16
"""Groups in the pool; a tensor of no more groups than this has each of them drawn afresh."""


@dataclass(frozen=True)
class Equal:
    """Slices along `axis` that are all the same, drawn once from `base`."""

    base: Distribution
    axis: int

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """`base` fills a tensor without the axis."""
        shape = (*spec.shape[: self.axis], *spec.shape[self.axis + 1 :])
        one = self.base.draw(ctx, spec.replace(shape=shape, resident=None))
        return one.unsqueeze(self.axis).expand(spec.shape).contiguous()


@dataclass(frozen=True)
class PerToken:
    """`base` drawn for [B*S, ...] and viewed as [B, S, ...]: a pattern of rows goes by token."""

    base: Distribution

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """One row per token, whatever the number of requests."""
        requests, tokens, *rest = spec.shape
        return self.base.draw(ctx, spec.replace(shape=(requests * tokens, *rest))).view(spec.shape)


@dataclass(frozen=True)
class ColumnQ8:
    """Q8 codes [in, out] of BF16 values, per output column (contracts/dense.md 2.4, Q8col)."""

    values: Distribution

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT8 codes."""
        return self.pair(ctx, spec)[0]

    def pair(self, ctx: DrawContext, spec: TensorSpec) -> Pair:
        """Codes and the scale of every column."""
        rows, scales = Q8(self.values).pair(ctx, spec.replace(shape=spec.shape[::-1]))
        return rows.t().contiguous(), scales


@dataclass(frozen=True)
class RopeRows:
    """Rows of the rotary table of a layer with compress ratio `ratio`, consecutive positions, one per token.

    place   where they begin: 0 at the first position, 1 such that the last token has the last position
    """

    part: Literal["cos", "sin"]
    ratio: int
    place: float

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """Bit copies of the table (contracts/dense.md, 5), both halves equal."""
        first = int(self.place * (ctx.config.max_position_embeddings - spec.shape[0]))
        positions = torch.arange(first, first + spec.shape[0])
        cos, sin = rope_rows_at(positions, rope_frequencies(ctx.config, self.ratio), spec.dtype)
        return cos if self.part == "cos" else sin


@dataclass(frozen=True)
class HalfRead:
    """`base` in the first half of the columns, NaN in the other half, which nothing may read."""

    base: Distribution

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """The first half is that of `base` alone."""
        out = self.base.draw(ctx, spec)
        out[..., spec.shape[-1] // 2 :] = torch.nan
        return out


@dataclass(frozen=True)
class OneHot:
    """A single 1 in each row of the last axis, in columns spread over the whole width."""

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """Rows have different columns as long as there are no more rows than columns."""
        rows, width = math.prod(spec.shape[:-1]), spec.shape[-1]
        columns = torch.from_numpy(ctx.rng(spec.name).permutation(width))[torch.arange(rows) % width]
        return torch.nn.functional.one_hot(columns, width).to(spec.dtype).view(spec.shape)


@dataclass(frozen=True)
class PooledNormal:
    """std * N(0, 1) for tensors of any size.

    Up to POOL_GROUPS groups of 32 every element is drawn afresh. Beyond, groups come from a pool of freshly drawn ones,
    with replacement: every element keeps its distribution, and exact copies of a group occur in other places.
    """

    std: float

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """FP32, then the cast."""
        require_float(self, spec)
        elements = math.prod(spec.shape)
        if elements <= POOL_GROUPS * GROUP or elements % GROUP:
            return normals(ctx, spec.name, spec.shape).mul_(self.std).to(spec.dtype)
        pool = normals(ctx, spec.name, (POOL_GROUPS, GROUP)).mul_(self.std).to(spec.dtype)
        chosen = pooled_places(ctx, spec.name, elements // GROUP)
        return pool.view(torch.int64).index_select(0, chosen).view(spec.dtype).view(spec.shape)


def pooled_places(ctx: DrawContext, label: str, groups: int) -> Tensor:
    """INT32 [groups]: which of POOL_GROUPS groups stands in each place, uniform, with replacement."""
    raw = ctx.rng(f"{label}_groups").bit_generator.random_raw(-(-groups // 4))  # 4 indices of 16 bits each
    return torch.from_numpy(raw.astype("<u8", copy=False).view("<u2")[:groups].astype(np.int32))
