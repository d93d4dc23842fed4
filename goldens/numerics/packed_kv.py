"""KV rows behind raw indices: ring, overlay of this step, compressed pool (contracts/decode_attention.md, CB-1)."""

from typing import NamedTuple

import torch
from torch import Tensor

from goldens.checks import expect, expect_range
from goldens.errors import GoldenInputError
from goldens.numerics.attention import Block
from goldens.numerics.visibility import BLOCK


class KvSources(NamedTuple):
    """The three places KV rows come from, checked, for T = B * S tokens.

    ring, compressed   pools [pages, 128, 1, HEAD_DIM] BF16; tables [B, columns] INT32 of their pages
    overlay            [T, HEAD_DIM] BF16: the rows of this step
    """

    ring: Tensor
    ring_table: Tensor
    overlay: Tensor
    compressed: Tensor
    compressed_table: Tensor

    @property
    def seq(self) -> int:
        """S, tokens of a request in this step."""
        return self.overlay.shape[0] // self.ring_table.shape[0]


def expect_sources(
    op: str,
    q: Tensor,
    ori_kv: Tensor,
    ori_block_table: Tensor,
    mtp_kv_overlay: Tensor,
    cmp_kv: Tensor,
    cmp_block_table: Tensor,
    win: int,
) -> KvSources:
    """Check the first six parameters of a sparse attention op. Raises GoldenInputError."""
    t, _, head_dim = expect(f"{op}: q", q, (None, None, None), torch.bfloat16)
    pages, _, _, _ = expect(f"{op}: ori_kv", ori_kv, (None, BLOCK, 1, head_dim), torch.bfloat16)
    batch, _ = expect(f"{op}: ori_block_table", ori_block_table, (None, win // BLOCK), torch.int32)
    expect(f"{op}: mtp_kv_overlay", mtp_kv_overlay, (t, head_dim), torch.bfloat16)
    expect(f"{op}: cmp_kv", cmp_kv, (None, BLOCK, 1, head_dim), torch.bfloat16)
    expect(f"{op}: cmp_block_table", cmp_block_table, (batch, None), torch.int32)
    if win != BLOCK:
        raise GoldenInputError(f"{op}: win is {win}, expected {BLOCK}: the window is one page")
    if t % max(batch, 1) or (t and not batch):
        raise GoldenInputError(f"{op}: q has {t} tokens, expected a multiple of the {batch} requests of the tables")
    expect_range(f"{op}: ori_block_table", ori_block_table, 0, pages - 1)
    return KvSources(ori_kv, ori_block_table, mtp_kv_overlay, cmp_kv, cmp_block_table)


def ring_pages(sources: KvSources) -> Tensor:
    """The window page of each token's request, in physical order: [T, 128, HEAD_DIM] BF16."""
    page = sources.ring_table[:, 0].long().repeat_interleave(sources.seq)
    return sources.ring[page, :, 0]


def ring_block(sources: KvSources, visible: Tensor) -> Block:
    """The window page as a block, `visible` [T, 128]; rows that are not visible are replaced by zeros."""
    return Block(ring_pages(sources).masked_fill(~visible.unsqueeze(2), 0.0), visible)


def gathered_blocks(op: str, sources: KvSources, raw: Tensor, wanted: Tensor, win: int, first: int = 0) -> list[Block]:
    """The rows that raw indices [T, n] name where `wanted`, in blocks of 128 consecutive columns; zeros elsewhere.

    `first` is the column of the op's list that `raw` begins at. Raises GoldenInputError for a slot beyond the table and
    for a table entry that is no page of the pool.
    """
    rows = torch.zeros(*raw.shape, sources.overlay.shape[1], dtype=torch.bfloat16)
    seq = sources.seq
    token, column = wanted.nonzero(as_tuple=True)
    index = raw[token, column].long()
    request = token // max(seq, 1)

    in_ring = index < win
    page = sources.ring_table[request[in_ring], 0].long()
    rows[token[in_ring], column[in_ring]] = sources.ring[page, index[in_ring], 0]

    in_step = (index >= win) & (index < win + seq)
    rows[token[in_step], column[in_step]] = sources.overlay[request[in_step] * seq + index[in_step] - win]

    in_pool = index >= win + seq
    slot, where = index[in_pool] - (win + seq), (token[in_pool], column[in_pool])
    columns = sources.compressed_table.shape[1]
    if bool((slot >= columns * BLOCK).any()):
        worst = int(slot.argmax())
        raise GoldenInputError(
            f"{op}: cmp_sparse_indices[{int(where[0][worst])}, {first + int(where[1][worst])}] is "
            f"{int(slot[worst]) + win + seq}, expected below {win + seq + columns * BLOCK}: slots of {columns} pages"
        )
    logical = slot // BLOCK
    page = sources.compressed_table[request[in_pool], logical].long()
    wrong = (page < 0) | (page >= sources.compressed.shape[0])
    if bool(wrong.any()):
        at = int(wrong.nonzero()[0])
        raise GoldenInputError(
            f"{op}: cmp_block_table[{int(request[in_pool][at])}, {int(logical[at])}] is {int(page[at])}, expected "
            f"0..{sources.compressed.shape[0] - 1}: cmp_sparse_indices[{int(where[0][at])}, "
            f"{first + int(where[1][at])}] reads this page"
        )
    rows[where] = sources.compressed[page, slot % BLOCK, 0]
    return [
        Block(part, seen)
        for part, seen in zip(torch.split(rows, BLOCK, dim=1), torch.split(wanted, BLOCK, dim=1), strict=True)
    ]
