"""Inputs of decode attention: packed KV lists, KV rows of unit RMS, quantised projections.

contracts/decode_attention.md, CB-1, CB-6 and appendices A and C.2. All draws are vectorised over tokens and rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from goldens.numerics.visibility import (
    BLOCK,
    MASKED,
    csa_window,
    hca_list,
    hca_slots,
    window_bias,
)
from specs.distributions.basic import normals, unit_rows
from specs.distributions.dense import GROUP, POOL_GROUPS, ColumnQ8, PooledNormal, pooled_places
from specs.distributions.positions import Starts, step_positions
from specs.distributions.quantised import Q8, Pair
from specs.streams import DrawContext
from specs.tensors import Distribution, TensorSpec


@dataclass(frozen=True)
class UnitRows:
    """N(0, 1) rows along the last axis, each divided by its own RMS, times `gain`."""

    gain: float = 1.0

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """One rounding from FP32."""
        width = spec.shape[-1]
        rows = math.prod(spec.shape) // width
        return unit_rows(ctx, spec.name, rows, width, spec.dtype, self.gain).view(spec.shape)


@dataclass(frozen=True)
class PooledQ8:
    """Codes of N(0, std^2), quantised per output channel, and a matching scale for each.

    outputs   "rows": codes [out, in]; "columns": codes [in, out]

    Up to POOL_GROUPS groups of 32 this is Q8 of BF16 values, drawn afresh. Beyond, groups of codes come from a pool of
    that size, and the scales, which an honest draw makes nearly equal, spread by 15 % either way: an exchange is seen.
    """

    std: float
    outputs: Literal["rows", "columns"] = "rows"

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT8 codes."""
        return self.pair(ctx, spec)[0]

    def pair(self, ctx: DrawContext, spec: TensorSpec) -> Pair:
        """Codes and the FP32 scale of every output channel."""
        return ctx.shared(f"{spec.name}:pair", lambda: self._draw_pair(ctx, spec))

    def _draw_pair(self, ctx: DrawContext, spec: TensorSpec) -> Pair:
        elements = math.prod(spec.shape)
        if elements <= POOL_GROUPS * GROUP or elements % GROUP:
            values = PooledNormal(self.std)
            exact = Q8(values) if self.outputs == "rows" else ColumnQ8(values)
            # Under a label of its own: the pair of this tensor is what is being drawn.
            return exact.pair(ctx, spec.replace(name=f"{spec.name}_exact"))
        width, channels = spec.shape[::-1] if self.outputs == "rows" else spec.shape
        unit = math.sqrt(2.0 * math.log(width)) / 127.0  # of code 1: the largest of a row of normal numbers, nearly
        pool = normals(ctx, spec.name, (POOL_GROUPS, GROUP)).div_(unit).round_().clamp_(-127.0, 127.0)
        chosen = pooled_places(ctx, spec.name, elements // GROUP)
        codes = pool.to(torch.int8).view(torch.int64).index_select(0, chosen).view(torch.int8).view(spec.shape)
        spread = torch.from_numpy(ctx.rng(f"{spec.name}_spread").random(channels, dtype=np.float32))
        return codes, (0.85 + 0.3 * spread) * (self.std * unit)


@dataclass(frozen=True)
class CsaList:
    """Raw indices of a ratio-4 layer at these starts: the window in physical order, then a random selection.

    As many of the visible slots as there is room for, distinct, in random order (that of their scores).
    """

    starts: Starts

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT32 [T, columns]."""
        config = ctx.config
        win, room = config.sliding_window, config.index_topk
        positions = step_positions(ctx, self.starts)
        out = torch.full(spec.shape, -1, dtype=torch.int32)
        out[:, :win] = csa_window(positions, win)
        visible = (positions.flatten() + 1) // 4
        keys = torch.from_numpy(ctx.rng(spec.name).random((len(visible), int(visible.max()) or 1)))
        keys = keys.masked_fill(torch.arange(keys.shape[1]) >= visible.unsqueeze(1), 2.0)
        slots = keys.argsort(dim=1)[:, :room]
        kept = torch.arange(slots.shape[1]) < visible.unsqueeze(1)
        first = win + ctx.deployment.seq
        out[:, win : win + slots.shape[1]] = torch.where(kept, first + slots, -1).int()
        return out


@dataclass(frozen=True)
class HcaList:
    """Raw indices of a ratio-128 layer at these starts, every closed slot listed."""

    starts: Starts

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT32 [T, columns]."""
        config = ctx.config
        positions = step_positions(ctx, self.starts)
        slots = hca_slots(config.max_position_embeddings, config.index_topk)
        return hca_list(positions, positions[:, -1] + 1, config.sliding_window, slots)


@dataclass(frozen=True)
class WindowBias:
    """The additive bias [T, WIN + 128] of a ratio-0 layer at these starts: 0 or -1e20."""

    starts: Starts

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """FP32."""
        return window_bias(step_positions(ctx, self.starts), ctx.config.sliding_window)


@dataclass(frozen=True)
class BlockMask:
    """1 where a block of 128 columns of the list holds an index >= 0; 0, or `empty`, where it does not.

    `drops`: block k of token t is 0 although it holds one, where t + k is odd: a kernel leaves such a block out.
    """

    of: str
    empty: int = 0
    drops: bool = False

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT32 [T, blocks]."""
        listed = ctx.tensor(self.of)
        filled = (listed.reshape(listed.shape[0], -1, BLOCK) >= 0).any(dim=2)
        mask = torch.where(filled, 1, self.empty).int()
        if self.drops:
            tokens, blocks = (torch.arange(n) for n in mask.shape)
            mask[(tokens.unsqueeze(1) + blocks) % 2 == 1] = 0
        return mask


@dataclass(frozen=True)
class Entries:
    """How many rows of each kind a token attends, in fixtures that do not follow positions. One entry per token,
    repeated.

    ring      the first rows of the request's ring
    overlay   whether the request's first overlay row is attended
    slots     the first slots of the compressed pool; capped by the room there is
    """

    ring: tuple[int, ...] = (0,)
    overlay: tuple[bool, ...] = (False,)
    slots: tuple[int, ...] = (0,)

    def per_token(self, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """ring, overlay and slots as columns [T, 1]."""

        def column(pattern: tuple[int, ...] | tuple[bool, ...]) -> Tensor:
            return torch.tensor([pattern[t % len(pattern)] for t in range(tokens)]).unsqueeze(1)

        return column(self.ring), column(self.overlay), column(self.slots)


@dataclass(frozen=True)
class EntryList:
    """The packed list of `entries`, in the form of a ratio-4 layer (csa) or a ratio-128 layer (hca).

    Ring rows lie in their own columns. The overlay row follows them (csa) or lies in column WIN (hca). Slots begin at
    column WIN (csa) or WIN + S (hca).
    """

    form: Literal["csa", "hca"]
    entries: Entries

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT32 [T, columns]."""
        win, seq = ctx.config.sliding_window, ctx.deployment.seq
        room = ctx.config.index_topk
        if self.form == "hca":
            room = hca_slots(ctx.config.max_position_embeddings, room)
        ring, overlay, slots = self.entries.per_token(spec.shape[0])
        column = torch.arange(spec.shape[1])
        out = torch.where(column < ring.clamp(max=win), column, -1)
        place = ring if self.form == "csa" else torch.full_like(ring, win)
        out = torch.where((column == place) & overlay, win, out)
        first = win if self.form == "csa" else win + seq
        slot = column - first
        listed = (slot >= 0) & (slot < slots.clamp(max=room))
        return torch.where(listed, win + seq + slot, out).int()


@dataclass(frozen=True)
class EntryBias:
    """The additive bias [T, WIN + 128] of `entries`, of which a ratio-0 layer has no slots."""

    entries: Entries

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """FP32, 0 or -1e20."""
        win, seq = ctx.config.sliding_window, ctx.deployment.seq
        tokens = torch.arange(spec.shape[0]).unsqueeze(1)
        ring, overlay, _ = self.entries.per_token(spec.shape[0])
        column = torch.arange(spec.shape[1])
        visible = (column < ring) | ((column - win == tokens - tokens % seq) & overlay)
        return torch.where(visible, 0.0, MASKED)


@dataclass(frozen=True)
class NamedRows:
    """KV rows of a paged pool: `base` where a token's list names the row, `unnamed` everywhere else.

    pool    "ring" or "compressed": which raw indices name rows of this pool
    table   the pool's block table
    of      the lists; for "ring" a bias [T, WIN + 128] will do, too
    """

    base: Distribution
    unnamed: Distribution
    pool: Literal["ring", "compressed"]
    table: str
    of: str

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """Both parts have streams of their own, so that another `unnamed` leaves the named rows as they were."""
        out = self.unnamed.draw(ctx, spec.replace(name=f"{spec.name}_unnamed"))
        named = self._physical_rows(ctx)
        out.view(-1, spec.shape[-1])[named] = self.base.draw(ctx, spec).view(-1, spec.shape[-1])[named]
        return out

    def _physical_rows(self, ctx: DrawContext) -> Tensor:
        listed, table = ctx.tensor(self.of), ctx.tensor(self.table)
        win, seq = ctx.config.sliding_window, ctx.deployment.seq
        if listed.is_floating_point():
            raw = torch.where(listed[:, :win] == 0, torch.arange(win), -1)
        else:
            raw = listed
        first, past = (0, win) if self.pool == "ring" else (win + seq, torch.iinfo(torch.int32).max)
        token, column = ((raw >= first) & (raw < past)).nonzero(as_tuple=True)
        row = raw[token, column].long() - first
        return table[token // seq, row // BLOCK].long() * BLOCK + row % BLOCK


@dataclass(frozen=True)
class DominantRow:
    """`base`, but one row of every page holds `value` in all columns."""

    base: Distribution
    row: int
    value: float

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """[pages, BLOCK, 1, HEAD_DIM]."""
        out = self.base.draw(ctx, spec)
        out[:, self.row] = self.value
        return out
