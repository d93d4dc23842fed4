"""Paged memory of a decode step: block tables, slot mappings, compressor states, compressed and window pools.

Block tables are random permutations of the whole pool, shared by all requests, with a hole (-1) wherever a request has
no page: beyond its length and, in a ring, behind its look-back. Whatever no reader may use (pages of no request, rows
that are not written yet) holds `dead` numbers, far from all others. Everything follows from the input `position_ids`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from goldens.numerics.paging import (
    PAGE,
    block_table,
    compressed_slots,
    flat_rows,
    mask_uncommitted,
    state_slots,
    window_slots,
)
from specs.distributions.basic import normals, unit_rows
from specs.distributions.positions import Starts, step_positions
from specs.streams import DrawContext
from specs.tensors import Distribution, Number, TensorSpec

HOLE = -1
STATE_REACH = {4: 8, 128: 128}
"""Positions up to and with the last of a step that a compressor of a ratio reads: its window."""

FP32_NEG = -3.4028234663852886e38
"""Score of a state row that was never written."""

DEAD_STATE = 1e30
DEAD_ROW = 9984.0


@dataclass(frozen=True)
class IdentityTable:
    """The table of the reference fixtures: request b owns the pages b * physical onward (goldens.numerics.paging).

    physical   pages of a request; None: as many as there are columns
    """

    physical: int | None = None
    permuted: bool = False

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT32."""
        return block_table(spec.shape[0], spec.shape[1], self.physical or spec.shape[1], self.permuted)


@dataclass(frozen=True)
class KvTable:
    """Pages of a KV pool: those of each request lie anywhere in the pool, in any order.

    ratio   positions per row: 4 or 128; 1 for the window pool, whose pages are all in use
    holes   False: every column has its page, as a serving system has that reserves them
    starts  of the step, where the op has no input that says
    """

    ratio: int
    holes: bool = True
    starts: Starts | None = None

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT32. Logical pages that hold no row up to the end of this step are holes."""
        batch, columns = spec.shape
        order = ctx.rng(spec.name).permutation(batch * columns).reshape(batch, columns)
        table = torch.from_numpy(order).to(torch.int32)
        if self.ratio == 1 or not self.holes:
            return table
        rows = (step_positions(ctx, self.starts)[:, -1:] + 1).div(self.ratio, rounding_mode="floor")
        return table.masked_fill(torch.arange(columns) * PAGE >= rows, HOLE)


@dataclass(frozen=True)
class StateTable:
    """Pages of a compressor state, a ring of `physical` pages of `page` rows for every request.

    Logical pages l and l + physical share a page; the pages of a ring lie anywhere in the pool. Pages that hold no
    position from the first that this step's window may reach to the last of the step are holes.

    hole_at   a position whose page is a hole in every request although the window reaches it (ratio 128 alone:
              contracts/decode_compressor_indexer.md 3.3), counted back from the last of the group; None for none
    """

    ratio: int
    page: int
    physical: int
    hole_at: int | None = None

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT32."""
        batch, columns = spec.shape
        order = ctx.rng(spec.name).permutation(batch * self.physical).reshape(batch, self.physical)
        column = torch.arange(columns)
        table = torch.from_numpy(order).to(torch.int32)[:, column % self.physical]
        positions = step_positions(ctx)
        first = reach(positions, self.ratio).div(self.page, rounding_mode="floor")
        last = positions[:, -1:].div(self.page, rounding_mode="floor")
        absent = (column < first) | (column > last)
        if self.hole_at is not None:
            start = positions[:, :1] - positions[:, :1] % self.ratio
            absent |= column == (start + self.ratio - 1 - self.hole_at).div(self.page, rounding_mode="floor")
        return table.masked_fill(absent, HOLE).contiguous()


@dataclass(frozen=True)
class Hidden:
    """A block table that is no input of the op: its slot mappings and pools come from it all the same."""

    name: str
    columns: int
    table: Distribution

    def drawn(self, ctx: DrawContext) -> Tensor:
        """INT32 [B, columns], the same for all tensors of the case."""
        shape = (ctx.deployment.batch, self.columns)
        spec = TensorSpec(self.name, shape, torch.int32, self.table, "in")
        table: Tensor = ctx.shared(self.name, lambda: self.table.draw(ctx, spec))
        return table


Table = str | Hidden
"""A block table: the name of an input, or one that is no input."""


def table_of(ctx: DrawContext, table: Table) -> Tensor:
    """The block table, INT32 [B, columns]. Read it, never write to it."""
    return ctx.tensor(table) if isinstance(table, str) else table.drawn(ctx)


@dataclass(frozen=True)
class StateSlots:
    """Row of the compressor state of every token, by the block table `table` of pages of `page` rows.

    drop_first   requests whose first token has no slot, by number modulo 4: its projection is dropped
    """

    table: Table
    page: int
    drop_first: tuple[int, ...] = ()

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT64."""
        slots = state_slots(step_positions(ctx), table_of(ctx, self.table), self.page)
        for request in self.drop_first:
            slots[request::4, 0] = -1
        return slots.reshape(spec.shape)


@dataclass(frozen=True)
class CompressedSlots:
    """Row of the compressed pool that every closing token writes, by the block table `table`; -1 for the others.

    commit_tokens   tokens of a step that are committed; None: all
    """

    table: Table
    ratio: int
    commit_tokens: int | None = None

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT64."""
        positions = step_positions(ctx)
        slots = compressed_slots(positions, table_of(ctx, self.table), self.ratio)
        return mask_uncommitted(slots, positions, self.ratio, self.commit_tokens).reshape(spec.shape)


@dataclass(frozen=True)
class WindowSlots:
    """Row of the window pool that every token writes, by the block table `table`."""

    table: Table

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT64."""
        slots = window_slots(step_positions(ctx), table_of(ctx, self.table), ctx.config.sliding_window)
        return slots.reshape(spec.shape)


@dataclass(frozen=True)
class StateRows:
    """A compressor state [pages, page, 2 * width]: kv in the first half of a row, scores in the second.

    The positions before the step that its window reaches were written: kv_std * N(0, 1) and score_std * N(0, 1) +
    score_mean. All other rows are dead.

    dead   "poison": DEAD_STATE in every column, which would be seen in any sum. "empty": kv 0 and the score
           FP32_NEG, a state that was never written. "zero": 0 in both
    """

    table: Table
    ratio: int
    kv_std: float = 1.6
    score_std: float = 2.5
    score_mean: float = 0.0
    dead: Literal["poison", "empty", "zero"] = "poison"

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """FP32."""
        pages, page, both = spec.shape
        half = both // 2
        kv, score = {"poison": (DEAD_STATE, DEAD_STATE), "empty": (0.0, FP32_NEG), "zero": (0.0, 0.0)}[self.dead]
        out = torch.empty(pages * page, both)
        out[:, :half], out[:, half:] = kv, score
        rows = self._written(ctx, page)
        fresh = normals(ctx, spec.name, (len(rows), both))
        fresh[:, :half] *= self.kv_std
        fresh[:, half:].mul_(self.score_std).add_(self.score_mean)
        out[rows] = fresh
        return out.view(spec.shape)

    def _written(self, ctx: DrawContext, page: int) -> Tensor:
        positions = step_positions(ctx)
        back = torch.arange(1, STATE_REACH[self.ratio] + 1)
        before = positions[:, :1] - back
        rows = flat_rows(before.clamp(min=0), table_of(ctx, self.table), page)
        return rows[(before >= reach(positions, self.ratio)) & (rows >= 0)]


@dataclass(frozen=True)
class CompressedRows:
    """A compressed pool [pages, 128, 1, width], BF16: N(0, 1) rows divided by their RMS, times `scale`, in every slot
    of every request whose group was complete before the step. All other rows are `dead`.

    copies   each row stands in as many consecutive slots: ties of the selection
    """

    table: Table
    ratio: int
    scale: float = 1.0
    copies: int = 1
    dead: Number = DEAD_ROW

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """One rounding to BF16."""
        complete = step_positions(ctx)[:, :1].div(self.ratio, rounding_mode="floor")
        slot = torch.arange(int(complete.max()) + 1).expand(len(complete), -1)
        rows = flat_rows(slot, table_of(ctx, self.table), PAGE)[slot < complete]
        return _pool_with(ctx, spec, rows, self.scale, self.copies, self.dead)


@dataclass(frozen=True)
class WindowRows:
    """A window pool [pages, 128, 1, width], BF16: N(0, 1) rows divided by their RMS for the last positions before the
    step, up to a window of them. All other rows are `dead`.
    """

    table: Table
    scale: float = 1.0
    dead: Number = DEAD_ROW

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """One rounding to BF16."""
        window = ctx.config.sliding_window
        before = step_positions(ctx)[:, :1] - torch.arange(1, window + 1)
        rows = window_slots(before.clamp(min=0), table_of(ctx, self.table), window)[before >= 0]
        return _pool_with(ctx, spec, rows, self.scale, 1, self.dead)


@dataclass(frozen=True)
class Sylvester:
    """The Hadamard matrix of Sylvester's construction, times 1/sqrt(n): [n, n], n a power of two."""

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """Entry (i, j) has the sign of the parity of the bits that i and j share."""
        n = spec.shape[0]
        i = torch.arange(n)
        shared = i.unsqueeze(1) & i
        odd = torch.zeros_like(shared)
        for bit in range(n.bit_length()):
            odd ^= (shared >> bit) & 1
        matrix: Tensor = (1.0 - 2.0 * odd) * n**-0.5
        return matrix.to(spec.dtype)


def reach(positions: Tensor, ratio: int) -> Tensor:
    """The first position whose state row a step at `positions` [B, S] may read, INT32 [B, 1].

    That of the group of its first token; with the overlap of ratio 4 that of the group before.
    """
    start = positions[:, :1] - positions[:, :1] % ratio
    return (start - (STATE_REACH[ratio] - ratio)).clamp(min=0)


def _pool_with(ctx: DrawContext, spec: TensorSpec, rows: Tensor, scale: float, copies: int, dead: Number) -> Tensor:
    width = spec.shape[-1]
    out = torch.full((spec.shape[0] * spec.shape[1], width), dead, dtype=spec.dtype)
    fresh = unit_rows(ctx, spec.name, -(-len(rows) // copies), width, spec.dtype, scale)
    out[rows] = fresh.repeat_interleave(copies, dim=0)[: len(rows)]
    return out.view(spec.shape)
