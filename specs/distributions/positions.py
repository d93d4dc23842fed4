"""Positions of a decode step: where requests stand, their visible lengths, the rotary rows that belong to them.

The sets of start positions are those of contracts/moe_and_layers.md 9.2 and ours. Positions that a small preset does
not have are left out of a set, or folded back. Where an op has no positions among its inputs, `starts` gives them to
all that follows from them; otherwise every generator here but `Positions` needs an input `start_pos` or `position_ids`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from goldens.numerics.paging import kv_seq_lens, position_ids
from goldens.numerics.rope import rope_frequencies, rope_rows_at
from specs.errors import SpecError
from specs.model import Deployment, ModelConfig
from specs.streams import DrawContext
from specs.tensors import TensorSpec

Starts = tuple[int, ...]

LONG = -1_000_000
"""In a set of starts that is folded: the middle of the position range (8192 at FLASH)."""


@dataclass(frozen=True)
class Positions:
    """Consecutive positions of every request: `starts` repeats, or is cut off, to the number of requests.

    Fills start positions [B], and positions [B, S] or [B*S].
    """

    starts: Starts

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT32. Raises SpecError for a shape of neither and for positions that the model does not have."""
        batch, seq = ctx.deployment.batch, ctx.deployment.seq
        last = ctx.config.max_position_embeddings - seq
        for start in self.starts:
            if not 0 <= start <= last:
                raise SpecError(f"{ctx.op}.{spec.name}: start position {start} is outside 0..{last}")
        starts = torch.tensor([self.starts[b % len(self.starts)] for b in range(batch)], dtype=torch.int32)
        if spec.shape == (batch,) and spec.name != "position_ids":
            return starts
        if math.prod(spec.shape) != batch * seq:
            raise SpecError(f"{ctx.op}.{spec.name}: {spec.shape} has room for neither {batch} starts nor all tokens")
        return position_ids(starts, seq).reshape(spec.shape)


@dataclass(frozen=True)
class VisibleLengths:
    """kv_seq_lens [B]: the start of every request and its committed tokens, all of them for None."""

    commit_tokens: int | None = None

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT32."""
        return kv_seq_lens(step_positions(ctx)[:, 0], ctx.deployment.seq, self.commit_tokens).contiguous()


@dataclass(frozen=True)
class RopeAt:
    """Rows of the rotary table of a layer with compress ratio `ratio`, as wide as the tensor: whole or the first half,
    which the second repeats.

    at   "token": one row per token, at its position. "block": one per request, at the first position of the group of
         `ratio` that the step's first position lies in, where a compressed row is rotated
         (contracts/decode_compressor_indexer.md 1.5). "step": one per request, at the step's first position.
    starts   of the step, where the op has no input that says
    """

    part: Literal["cos", "sin"]
    ratio: int
    at: Literal["token", "block", "step"] = "block"
    starts: Starts | None = None

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """Values of the BF16 table, in `spec.dtype`."""
        positions = step_positions(ctx, self.starts)
        if self.at != "token":
            positions = positions[:, :1]
        if self.at == "block":
            positions = positions - positions % self.ratio
        cos, sin = rope_rows_at(positions.reshape(-1), rope_frequencies(ctx.config, self.ratio), torch.bfloat16)
        rows = cos if self.part == "cos" else sin
        return rows[:, : spec.shape[-1]].to(spec.dtype).contiguous()


def step_positions(ctx: DrawContext, starts: Starts | None = None) -> Tensor:
    """The positions of the case, INT32 [B, S]: from its `start_pos` or its `position_ids`, or from `starts`, folded."""
    if starts is not None:
        return position_ids(folded(starts, ctx.config, ctx.deployment), ctx.deployment.seq)
    if ctx.has("start_pos"):
        return position_ids(ctx.tensor("start_pos"), ctx.deployment.seq)
    return ctx.tensor("position_ids").view(ctx.deployment.batch, ctx.deployment.seq)


def csa_starts(config: ModelConfig, deployment: Deployment) -> Starts:
    """The set of the reference fixtures of ratio 4; the long position is half of the model's."""
    seq = deployment.seq
    listed = (_middle(config), 0, 4 - seq, 3, 7, config.sliding_window - 1, config.sliding_window, 127, 255, 511)
    return legal(listed, config, deployment)


def hca_starts(config: ModelConfig, deployment: Deployment) -> Starts:
    """The set of the reference fixtures of ratio 128."""
    return legal((_middle(config), 127, 128, 255, 7, 10), config, deployment)


def swa_starts(config: ModelConfig, deployment: Deployment) -> Starts:
    """The set of the reference fixtures of layers without compression."""
    return legal((_middle(config), config.sliding_window - 1, 31), config, deployment)


def mixed_starts(config: ModelConfig, deployment: Deployment, ratio: int) -> Starts:
    """Ours: most requests close a group of `ratio` in this step; a long one, a first group, the last position of all,
    and one that wrapped around the ring of the compressor state. The first four stand for all where B is 4.
    """
    middle, last = _middle(config), config.max_position_embeddings - deployment.seq
    if ratio == 4:
        return legal((middle - 1, 2, 263, last, 3, 7, 127, 510), config, deployment)
    return legal((middle - 1, 126, 639, last, 127, 128, 255, 10), config, deployment)


def folded(starts: Starts, config: ModelConfig, deployment: Deployment) -> Tensor:
    """INT32 [B]: `starts` repeated, or cut off, to the number of requests, so that one set serves every preset.

    LONG is half of all positions; a negative start counts back from the last legal one, MAX_SEQ_LEN - S (which is -1);
    a start beyond that is folded back.
    """
    last = config.max_position_embeddings - deployment.seq
    chosen = [starts[b % len(starts)] for b in range(deployment.batch)]
    places = [(last + 1) // 2 if s == LONG else s + last + 1 if s < 0 else s % (last + 1) for s in chosen]
    return torch.tensor(places, dtype=torch.int32)


def legal(starts: Starts, config: ModelConfig, deployment: Deployment) -> Starts:
    """Without repetitions, and without positions that the model does not have."""
    last = config.max_position_embeddings - deployment.seq
    return tuple(start for start in dict.fromkeys(starts) if 0 <= start <= last)


def _middle(config: ModelConfig) -> int:
    return config.max_position_embeddings // 2
