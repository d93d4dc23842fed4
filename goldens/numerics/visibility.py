"""Which KV rows a decode token attends: the packed lists and the bias of contracts/decode_attention.md, CB-1 and CB-6.

A raw index below 0 names nothing, 0 to WIN - 1 a row of the request's ring, WIN to WIN + S - 1 a row of the overlay (KV
of this step, not yet in the ring), WIN + S + c slot c of the compressed pool. `positions` is [B, S], consecutive within
a request; token t = b * S + s.
"""

import torch
from torch import Tensor

MASKED = -1.0e20
"""Bias of a lane that has no weight. In FP32 it is -1.0000000200408773e20."""

BLOCK = 128
"""Rows of a block of the online softmax."""


def blocks(width: int) -> int:
    """Blocks of 128 columns for a list of `width` entries: at least two (decode_attention.md 0.4)."""
    return max(2, -(-width // BLOCK))


def csa_columns(win: int, idx_topk: int) -> int:
    """Columns of a ratio-4 list: WIN + IDX_TOPK, in whole blocks; those beyond hold -1."""
    return blocks(win + idx_topk) * BLOCK


def hca_slots(max_seq_len: int, idx_topk: int) -> int:
    """Compressed slots that a ratio-128 list has room for."""
    return min(max_seq_len // 128, idx_topk)


def hca_columns(win: int, seq: int, slots: int) -> int:
    """Columns of a ratio-128 list: WIN + S + slots, in whole blocks; those beyond hold -1."""
    return blocks(win + seq + slots) * BLOCK


def current_rows(positions: Tensor, win: int) -> Tensor:
    """INT64 [B, S, WIN]: u + 1 where ring row k belongs to token u <= s of this step, 0 where to none."""
    steps = torch.arange(1, positions.shape[1] + 1).reshape(1, -1, 1)
    own = (positions.long() % win).unsqueeze(2) == torch.arange(win)
    return (own * steps).cumsum(dim=1)


def ring_visible(positions: Tensor, win: int) -> Tensor:
    """Bool [B, S, WIN]: ring row k holds a position that the token sees: k <= p, and not a row of this step."""
    reached = torch.arange(win) <= positions.unsqueeze(2)
    return reached & (current_rows(positions, win) == 0)


def csa_window(positions: Tensor, win: int) -> Tensor:
    """INT32 [T, WIN], columns 0 to WIN - 1 of a ratio-4 list: physical order, overlay rows in place of ring rows."""
    current = current_rows(positions, win)
    rows = torch.where(current > 0, win + current - 1, torch.arange(win))
    rows = torch.where(torch.arange(win) <= positions.unsqueeze(2), rows, -1)
    return rows.reshape(-1, win).int()


def hca_list(positions: Tensor, kv_seq_lens: Tensor, win: int, slots: int) -> Tensor:
    """INT32 [T, columns], a ratio-128 list: ring rows in their own columns, the overlay behind, then the slots.

    Every slot below min(slots, (p + 1) div 128, kv_seq_lens div 128) is listed.
    """
    batch, seq = positions.shape
    listed = torch.full((batch, seq, hca_columns(win, seq, slots)), -1)
    listed[..., :win] = torch.where(ring_visible(positions, win), torch.arange(win), -1)
    step = torch.arange(seq)
    listed[..., win : win + seq] = torch.where(step <= step.unsqueeze(1), win + step, -1)
    closed = torch.minimum((positions.long() + 1) // 128, (kv_seq_lens.long() // 128).unsqueeze(1))
    slot = torch.arange(slots)
    tail = torch.where(slot < closed.unsqueeze(2), win + seq + slot, -1)
    listed[..., win + seq : win + seq + slots] = tail
    return listed.reshape(batch * seq, -1).int()


def window_bias(positions: Tensor, win: int) -> Tensor:
    """FP32 [T, WIN + 128], 0 or MASKED: the ring page's rows, then overlay rows by flat token."""
    batch, seq = positions.shape
    tokens = torch.arange(batch * seq).unsqueeze(1)
    overlay = torch.arange(BLOCK)
    own = (overlay <= tokens) & (overlay >= tokens - tokens % seq)
    visible = torch.cat([ring_visible(positions, win).reshape(-1, win), own], dim=1)
    return torch.where(visible, 0.0, MASKED)
