"""Where a position lives in paged memory: block tables, flat rows, slot mappings.

contracts/decode_compressor_indexer.md 1.6 and 6.3, contracts/moe_and_layers.md 9. A pool is a list of pages; row r of
page g has the flat row g * page + r. A block table [B, columns] INT32 maps a request's logical page to a page of the
pool; a negative entry is a hole. A slot mapping holds flat rows as INT64; -1 means "do not write".
"""

import torch
from torch import Tensor

from goldens.checks import expect, expect_integer
from goldens.errors import GoldenInputError

PAGE = 128
"""Rows of a page of every KV pool."""

NO_SLOT = -1


def block_table(batch: int, columns: int, physical: int, permuted: bool = False) -> Tensor:
    """The block table of the reference fixtures, INT32 [batch, columns]: request b owns the pages b*physical onward.

    Column c holds page c mod physical of its request, or with `permuted` page (7 (c mod physical) + 3) mod physical.
    More columns than pages make a ring. Raises GoldenInputError where 7 divides `physical`: pages would collide.
    """
    column = torch.arange(columns) % physical
    if permuted and physical > 1:
        if physical % 7 == 0:
            raise GoldenInputError(f"block table: {physical} physical pages are a multiple of 7, pages would collide")
        column = (column * 7 + 3) % physical
    return (torch.arange(batch).unsqueeze(1) * physical + column).to(torch.int32)


def position_ids(starts: Tensor, seq: int) -> Tensor:
    """starts [B] INT32 -> starts[b] + s, INT32 [B, seq]."""
    return starts.unsqueeze(1) + torch.arange(seq, dtype=torch.int32)


def kv_seq_lens(starts: Tensor, seq: int, commit_tokens: int | None = None) -> Tensor:
    """Visible length of every request, INT32 [B]: its start plus the committed tokens, all `seq` of them by default.

    Raises GoldenInputError unless 0 <= commit_tokens <= seq.
    """
    return starts + _committed(commit_tokens, seq)


def flat_rows(columns: Tensor, table: Tensor, page: int) -> Tensor:
    """The flat rows of logical rows `columns` [B, n] (each >= 0), INT64; -1 beyond the table and in its holes."""
    logical = columns.long().div(page, rounding_mode="floor")
    pages = table.long().gather(1, logical.clamp(max=table.shape[1] - 1))
    absent = (logical >= table.shape[1]) | (pages < 0)
    return (pages * page + columns.long() % page).masked_fill(absent, NO_SLOT)


def state_slots(positions: Tensor, table: Tensor, page: int) -> Tensor:
    """State row of every position [B, S] by its absolute position: INT64 [B, S]."""
    return flat_rows(positions, table, page)


def window_slots(positions: Tensor, table: Tensor, window: int, page: int = PAGE) -> Tensor:
    """Row of the window pool, a ring of `window` positions: INT64 [B, S]."""
    return flat_rows(positions % window, table, page)


def compressed_slots(positions: Tensor, table: Tensor, ratio: int, page: int = PAGE) -> Tensor:
    """Row of the compressed pool that the last position of a group of `ratio` writes, else -1: INT64 [B, S]."""
    rows = flat_rows(positions.div(ratio, rounding_mode="floor"), table, page)
    return rows.masked_fill(~closes_group(positions, ratio), NO_SLOT)


def closes_group(positions: Tensor, ratio: int) -> Tensor:
    """Whether a position is the last of its group: bool, of the same shape."""
    return (positions + 1) % ratio == 0


def mask_uncommitted(mapping: Tensor, positions: Tensor, ratio: int, commit_tokens: int | None) -> Tensor:
    """A copy of `mapping` [B, S] with -1 where an uncommitted token (column >= commit_tokens) closes a group.

    None commits all. Raises GoldenInputError for shapes that differ or are not 2-D and unless 0 <= commit_tokens <= S.
    """
    _, seq = expect("mask_uncommitted: mapping", mapping, (None, None), torch.int64)
    expect("mask_uncommitted: positions", positions, tuple(mapping.shape), torch.int32)
    uncommitted = torch.arange(seq) >= _committed(commit_tokens, seq)
    return mapping.masked_fill(uncommitted & closes_group(positions, ratio), NO_SLOT)


def _committed(commit_tokens: int | None, seq: int) -> int:
    if commit_tokens is None:
        return seq
    if not 0 <= expect_integer("commit_tokens", commit_tokens) <= seq:
        raise GoldenInputError(f"commit_tokens is {commit_tokens}, expected 0..{seq}")
    return commit_tokens
