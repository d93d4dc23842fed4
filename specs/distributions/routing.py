"""Who is sent where: expert tables of hash layers, router weights and biases, receive counts.

Skews share one vocabulary: uniform; Zipf(alpha), where the r-th most popular expert has a probability proportional to
r^-alpha and popularity is shuffled; one hot expert with a share of the tokens; the experts of one rank.
Tables are [VOCAB, K]; unless a name says otherwise the ids of a row are distinct, as dispatch demands
(contracts/hc_gate_experts.md, 3.4).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from specs.capacity import mixed_tokens
from specs.distributions.basic import Normal
from specs.errors import SpecError
from specs.streams import DrawContext
from specs.tensors import Distribution, TensorSpec

Ids = npt.NDArray[np.int64]
ROUTER_BIAS = Normal(std=0.1)


@dataclass(frozen=True)
class TokenIds:
    """Ids uniform over the vocabulary; the first row holds id 0 and the last the largest id."""

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT64 [T]."""
        ids = ctx.rng(spec.name).integers(ctx.config.vocab_size, size=spec.shape)
        ids[0], ids[-1] = 0, ctx.config.vocab_size - 1
        return torch.from_numpy(ids)


@dataclass(frozen=True)
class DistinctTable:
    """Every row an ordered K-subset of the experts, all equally likely."""

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT32 [VOCAB, K]."""
        return _table(distinct_rows(ctx.rng(spec.name), spec.shape[0], spec.shape[1], ctx.config.n_routed_experts))


@dataclass(frozen=True)
class RoundRobinTable:
    """Row v names the experts v*K, v*K + 1, ... modulo N: equal load, ids in order."""

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT32 [VOCAB, K]."""
        _require_experts(ctx, spec.shape[1], ctx.config.n_routed_experts)
        ids: Ids = np.arange(spec.shape[0] * spec.shape[1], dtype=np.int64) % ctx.config.n_routed_experts
        return _table(ids.reshape(spec.shape))


@dataclass(frozen=True)
class ZipfTable:
    """Distinct ids, drawn one after the other with Zipf(alpha) popularity."""

    alpha: float = 1.0

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT32 [VOCAB, K]. An id that a row already has is drawn again."""
        rng = ctx.rng(spec.name)
        probability = zipf(rng, ctx.config.n_routed_experts, self.alpha)
        return _table(_weighted_rows(rng, spec.shape[0], spec.shape[1], probability))


@dataclass(frozen=True)
class HotTable:
    """One expert, drawn once, is named by a share of the rows, at any of the K places; the others are uniform."""

    share: float

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT32 [VOCAB, K]."""
        rng = ctx.rng(spec.name)
        rows, width = spec.shape
        hot = int(rng.integers(ctx.config.n_routed_experts))
        ids = distinct_rows(rng, rows, width, ctx.config.n_routed_experts - 1)
        ids += ids >= hot
        chosen = np.flatnonzero(rng.random(rows) < self.share)
        ids[chosen, rng.integers(width, size=chosen.size)] = hot
        return _table(ids)


@dataclass(frozen=True)
class OneRankTable:
    """Distinct ids on rank `rank` only (on the next ranks too, if one holds fewer than K experts)."""

    rank: int = 0

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT32 [VOCAB, K]."""
        block = rank_block(ctx, self.rank)
        return _table(block[distinct_rows(ctx.rng(spec.name), spec.shape[0], spec.shape[1], len(block))])


@dataclass(frozen=True)
class DuplicateTable:
    """Every row names its first expert twice. Invalid: dispatch has room for one route per token and expert."""

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT32 [VOCAB, K]."""
        ids = distinct_rows(ctx.rng(spec.name), spec.shape[0], spec.shape[1], ctx.config.n_routed_experts)
        ids[:, -1] = ids[:, 0]
        return _table(ids)


@dataclass(frozen=True)
class OutOfRangeTable:
    """Every row names an expert that does not exist. Invalid."""

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT32 [VOCAB, K]."""
        ids = distinct_rows(ctx.rng(spec.name), spec.shape[0], spec.shape[1], ctx.config.n_routed_experts)
        ids[:, 0] = ctx.config.n_routed_experts
        return _table(ids)


@dataclass(frozen=True)
class ZipfBias:
    """Selection bias that falls with the expert's Zipf rank: strength * log(r^-alpha), ranks shuffled."""

    alpha: float = 1.0
    strength: float = 0.25

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """FP32 [N]; 0 for the most popular expert."""
        probability = zipf(ctx.rng(spec.name), spec.shape[0], self.alpha)
        return torch.from_numpy(self.strength * np.log(probability / probability.max())).float()


@dataclass(frozen=True)
class HotBias:
    """Selection bias under which one expert, drawn once, is selected by a share of the tokens, to the nearest token.

    The router scores of this very case decide how large that expert's bias must be; it is put half way between the two
    tokens that it separates.
    """

    share: float
    base: Distribution = ROUTER_BIAS

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """FP32 [N]."""
        bias = self.base.draw(ctx, spec)
        hot = int(ctx.rng(f"{spec.name}_hot").integers(spec.shape[0]))
        score = router_scores(ctx)
        others = score + bias.double()
        others[:, hot] = -torch.inf
        cut_off = others.topk(ctx.config.num_experts_per_tok, dim=1).values[:, -1]
        needed = (cut_off - score[:, hot]).sort().values
        selected = round(self.share * len(needed))
        below = needed[selected - 1] if selected else needed[0] - 2.0
        above = needed[selected] if selected < len(needed) else needed[-1] + 2.0
        bias[hot] = float((below + above) / 2)
        return bias


@dataclass(frozen=True)
class OneRankBias:
    """`base` plus `lift` for the experts of one rank (of the next ranks too, if one holds fewer than K experts)."""

    rank: int = 0
    lift: float = 8.0
    base: Distribution = ROUTER_BIAS

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """FP32 [N]. No score of unit-variance logits reaches `lift`."""
        bias = self.base.draw(ctx, spec)
        bias[torch.from_numpy(rank_block(ctx, self.rank))] += self.lift
        return bias


@dataclass(frozen=True)
class Tied:
    """Row e equals row e modulo (rows / copies): every row occurs `copies` times, far apart; 0: all are equal."""

    base: Distribution
    copies: int

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """Raises SpecError unless `copies` divides the number of rows."""
        rows = spec.shape[0]
        if self.copies and rows % self.copies:
            raise SpecError(f"{ctx.op}.{spec.name}: {rows} rows are not {self.copies} copies of anything")
        period = rows // self.copies if self.copies else 1
        distinct = self.base.draw(ctx, spec.replace(shape=(period, *spec.shape[1:])))
        return distinct[torch.arange(rows) % period].contiguous()


@dataclass(frozen=True)
class HistogramCounts:
    """Rows per local expert: the histogram of `tokens * K` ids, at most RECV_MAX each.

    alpha   0 for uniform ids, else Zipf(alpha) over the local experts
    """

    alpha: float = 0.0

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT32 [E, 1]."""
        rng = ctx.rng(spec.name)
        experts = spec.shape[0]
        ids = rng.choice(experts, size=_routes(ctx), p=zipf(rng, experts, self.alpha))
        return _counts(ctx, np.bincount(ids, minlength=experts), spec)


@dataclass(frozen=True)
class HotCounts:
    """One local expert, drawn once, receives a share of the `tokens * K` rows, the others a uniform rest."""

    share: float

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT32 [E, 1]."""
        rng = ctx.rng(spec.name)
        experts = spec.shape[0]
        hot = int(rng.integers(experts))
        hot_rows = round(self.share * _routes(ctx))
        rest = rng.integers(experts - 1, size=_routes(ctx) - hot_rows)
        counts = np.bincount(rest + (rest >= hot), minlength=experts)
        counts[hot] = hot_rows
        return _counts(ctx, counts, spec)


@dataclass(frozen=True)
class ListedCounts:
    """The listed counts for the first experts, `rest` for the others; each at most RECV_MAX.

    A negative count is taken from RECV_MAX: -1 is RECV_MAX - 1, and FULL is RECV_MAX itself.
    """

    counts: tuple[int, ...]
    rest: int = 0

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT32 [E, 1]. Raises SpecError if there are fewer experts than counts: one would not occur."""
        experts = spec.shape[0]
        if experts < len(self.counts):
            raise SpecError(f"{ctx.op}.{spec.name}: {len(self.counts)} counts listed for {experts} local experts")
        listed = [*self.counts, *[self.rest] * (experts - len(self.counts))]
        recv_max = ctx.deployment.recv_max
        return _counts(ctx, np.array([max(recv_max + c, 0) if c < 0 else c for c in listed]), spec)


FULL = 1 << 30
"""In ListedCounts: all RECV_MAX rows."""


def distinct_rows(rng: np.random.Generator, rows: int, width: int, experts: int) -> Ids:
    """[rows, width] ids below `experts`, distinct in each row, every ordered choice equally likely.

    Column j is a uniform number below experts - j, read as a place among the ids that the row does not have yet.
    """
    if width > experts:
        raise SpecError(f"{width} distinct ids cannot be drawn from {experts} experts")
    ids = np.empty((rows, width), dtype=np.int64)
    taken = np.empty((rows, 0), dtype=np.int64)
    for column in range(width):
        free = rng.integers(experts - column, size=rows)
        for smaller in range(column):
            free += free >= taken[:, smaller]
        ids[:, column] = free
        taken = np.sort(ids[:, : column + 1], axis=1)
    return ids


def zipf(rng: np.random.Generator, experts: int, alpha: float) -> npt.NDArray[np.float64]:
    """Probabilities proportional to r^-alpha, in an order drawn from `rng`. alpha 0 is uniform."""
    weight = np.arange(1, experts + 1, dtype=np.float64) ** -alpha
    shuffled: npt.NDArray[np.float64] = rng.permutation(weight / weight.sum())
    return shuffled


def rank_block(ctx: DrawContext, rank: int) -> Ids:
    """The experts of as many ranks from `rank` on as hold K experts, cyclically."""
    config, ranks = ctx.config, ctx.deployment.ep_world_size
    local = ctx.deployment.local_experts(config)
    _require_experts(ctx, config.num_experts_per_tok, config.n_routed_experts)
    needed = -(-config.num_experts_per_tok // local)
    return np.concatenate([np.arange(local) + (rank + r) % ranks * local for r in range(needed)])


def router_scores(ctx: DrawContext) -> Tensor:
    """sqrt(softplus(logits)) of a case of `gate`, or of the tokens of all ranks of a case of `moe`, FP64 [rows, N].

    Close to the golden's, for choosing inputs only.
    """
    ranked = ctx.has("x_hc")
    norm_w, gate_w = (ctx.tensor(name)[0] if ranked else ctx.tensor(name) for name in ("norm_w", "gate_w"))
    x = (_mixed_tokens(ctx) if ranked else ctx.tensor("x_mixed")).double()
    inverse = 1.0 / (x.square().mean(dim=1, keepdim=True) + ctx.config.rms_norm_eps).sqrt()
    normed = (x * inverse * norm_w.double()).bfloat16().double()
    return torch.nn.functional.softplus(normed @ gate_w.double().T).sqrt()


def _mixed_tokens(ctx: DrawContext) -> Tensor:
    """x_mixed of the tokens of all ranks of a case of `moe`. [EP*T, D] BF16"""
    parameters = [ctx.tensor(name)[0] for name in ("hc_ffn_fn", "hc_ffn_scale", "hc_ffn_base")]
    return mixed_tokens(ctx.tensor("x_hc"), parameters, ctx.config).flatten(0, 1)


def _weighted_rows(rng: np.random.Generator, rows: int, width: int, probability: npt.NDArray[np.float64]) -> Ids:
    if width > len(probability):
        raise SpecError(f"{width} distinct ids cannot be drawn from {len(probability)} experts")
    upper = probability.cumsum()
    upper[-1] = 1.0
    ids = np.full((rows, width), -1, dtype=np.int64)
    for column in range(width):
        pending = np.arange(rows)
        while pending.size:
            drawn = np.searchsorted(upper, rng.random(pending.size), side="right")
            new = (ids[pending, :column] != drawn[:, None]).all(axis=1)
            ids[pending[new], column] = drawn[new]
            pending = pending[~new]
    return ids


def _routes(ctx: DrawContext) -> int:
    return ctx.deployment.tokens * ctx.config.num_experts_per_tok


def _counts(ctx: DrawContext, counts: Ids, spec: TensorSpec) -> Tensor:
    limited = np.minimum(counts, ctx.deployment.recv_max)
    return torch.from_numpy(limited.astype(np.int32)).reshape(spec.shape)


def _table(ids: Ids) -> Tensor:
    return torch.from_numpy(ids.astype(np.int32))


def _require_experts(ctx: DrawContext, width: int, experts: int) -> None:
    if width > experts:
        raise SpecError(f"{ctx.op}: a token cannot name {width} distinct experts of {experts}")
