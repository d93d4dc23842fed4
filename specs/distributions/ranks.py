"""Inputs of multi-rank programs: draws per rank, and routings of the tokens of all ranks.

A tensor of a host program has a leading rank axis. `PerRank` draws each slice for itself; `Equal(base, 0)` and
`EqualCodes` copy one draw to all ranks. Ids of routes are [EP, T, K] (contracts/moe_and_layers.md, 3 and 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from goldens.numerics.routes import compact, lane_loads, meta_of
from specs.distributions.quantised import CodeSource, Pair
from specs.distributions.routing import Ids, distinct_rows, rank_block
from specs.errors import SpecError
from specs.streams import DrawContext
from specs.tensors import Distribution, TensorSpec


@dataclass(frozen=True)
class PerRank:
    """Slice r of the first axis is drawn by `base` from a stream of its own."""

    base: Distribution

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """`base` fills tensors without the rank axis."""
        one = spec.replace(shape=spec.shape[1:], resident=None)
        ranks = range(spec.shape[0])
        return torch.stack([self.base.draw(ctx, one.replace(name=f"{spec.name}_rank{rank}")) for rank in ranks])


@dataclass(frozen=True)
class EqualCodes:
    """Codes [EP, ...] and scales that are the same on every rank, drawn once from `base`."""

    base: CodeSource

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT8 codes."""
        return self.pair(ctx, spec)[0]

    def pair(self, ctx: DrawContext, spec: TensorSpec) -> Pair:
        """Codes and scales of all ranks."""
        codes, scales = self.base.pair(ctx, spec.replace(shape=spec.shape[1:], resident=None))
        ranks = spec.shape[0]
        return codes.expand(ranks, *codes.shape).contiguous(), scales.expand(ranks, *scales.shape).contiguous()


@dataclass(frozen=True)
class TokenRoutes:
    """Ids [EP, T, K] from a table distribution: one row per token, the tokens of rank 0 first."""

    table: Distribution

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT32 ids."""
        ranks, tokens, width = spec.shape
        return self.table.draw(ctx, spec.replace(shape=(ranks * tokens, width))).reshape(spec.shape)


@dataclass(frozen=True)
class LowestTable:
    """Every row names the experts 0..K-1: what a router chooses when all scores are equal."""

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT32 rows of K ids."""
        return torch.arange(spec.shape[-1], dtype=torch.int32).expand(spec.shape).contiguous()


@dataclass(frozen=True)
class NextRankRoutes:
    """Ids [EP, T, K], distinct per token, all of rank r on rank r + 1 (cyclically): every lane but one is empty."""

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT32 ids."""
        ranks, tokens, width = spec.shape
        rows = [rows_on_rank(ctx, f"{spec.name}_rank{rank}", tokens, width, rank + 1) for rank in range(ranks)]
        return torch.from_numpy(np.stack(rows).astype(np.int32))


@dataclass(frozen=True)
class RankRowsTable:
    """Row v of a table [VOCAB, K] names distinct experts of rank v modulo EP."""

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT32 [VOCAB, K]."""
        rows, width = spec.shape
        ranks = ctx.deployment.ep_world_size
        ids: Ids = np.empty((rows, width), dtype=np.int64)
        for rank in range(ranks):
            part = ids[rank::ranks]
            part[:] = rows_on_rank(ctx, f"{spec.name}_rank{rank}", len(part), width, rank)
        return torch.from_numpy(ids.astype(np.int32))


@dataclass(frozen=True)
class NextRankTokens:
    """Token ids [EP, T] of which a `RankRowsTable` sends those of rank r to rank r + 1 (cyclically)."""

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT64 ids."""
        ranks = spec.shape[0]
        rank = np.arange(ranks).reshape(-1, 1)
        rows = ctx.rng(spec.name).integers(ctx.config.vocab_size // ranks, size=spec.shape)
        return torch.from_numpy(rows * ranks + (rank + 1) % ranks)


@dataclass(frozen=True)
class RouteKeys:
    """Route keys [EP, N_LOCAL, RECV_MAX] of compact rows, as dispatch leaves them for ids drawn from `ids`.

    num_tokens   name of the input with the active tokens [EP, 1]
    tail         what stands beyond the counts
    """

    ids: Distribution
    num_tokens: str
    tail: Distribution

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT32 keys, valid at the source rank of each row."""
        ranks, local, _ = spec.shape
        keys = self.tail.draw(ctx, spec.replace(name=f"{spec.name}_tail"))
        routes = compact(self._indices(ctx, spec), ctx.tensor(self.num_tokens), ranks * local)
        keys[routes.expert // local, routes.expert % local, routes.row] = routes.key.to(torch.int32)
        return keys

    def counts(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT32 [EP, EP, N_LOCAL]: on every rank, rows per source and local expert."""
        experts = spec.shape[0] * spec.shape[1]
        return meta_of(lane_loads(self._indices(ctx, spec), ctx.tensor(self.num_tokens), experts))

    def _indices(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        shape = (spec.shape[0], ctx.deployment.tokens, ctx.config.num_experts_per_tok)
        routed = spec.replace(name=f"{spec.name}_ids", shape=shape)
        return ctx.shared(f"{spec.name}:ids", lambda: self.ids.draw(ctx, routed))


@dataclass(frozen=True)
class MatchingCounts:
    """The counts [EP, EP, N_LOCAL] that belong to the route keys in the tensor `of`."""

    of: str

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT32. Raises SpecError if `of` does not hold route keys."""
        keys = ctx.spec(self.of)
        init: Any = keys.init
        if not isinstance(init, RouteKeys):
            raise SpecError(f"{ctx.op}.{spec.name}: {self.of} is drawn from {type(init).__name__}, without counts")
        return init.counts(ctx, keys)


@dataclass(frozen=True)
class CompactRows:
    """`values` in the rows [EP, N_LOCAL, RECV_MAX, ...] that the route keys in `keys` count, `tail` in the others."""

    keys: str
    values: Distribution
    tail: Distribution

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """Both parts have streams of their own, so that another tail leaves the rows in use as they were."""
        counts = MatchingCounts(self.keys).draw(ctx, ctx.spec(self.keys)).sum(1)
        used = torch.arange(spec.shape[2]) < counts.unsqueeze(2)
        out = self.values.draw(ctx, spec)
        tail = self.tail.draw(ctx, spec.replace(name=f"{spec.name}_tail"))
        return torch.where(used.reshape(*used.shape, *[1] * (len(spec.shape) - 3)), out, tail)


def rows_on_rank(ctx: DrawContext, label: str, rows: int, width: int, rank: int) -> Ids:
    """[rows, width] ids, distinct in each row, of experts on `rank` (modulo EP; of the next ranks too if need be)."""
    block = rank_block(ctx, rank % ctx.deployment.ep_world_size)
    return block[distinct_rows(ctx.rng(label), rows, width, len(block))]
