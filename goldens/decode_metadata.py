"""Golden of decode_metadata: positions, lengths and slot mappings of a decode step.

contracts/moe_and_layers.md 9, contracts/decode_compressor_indexer.md 6. Integer arithmetic alone; the rules are in
goldens/numerics/paging.py. The names are those of the decode layer (moe_and_layers.md 10.2).
"""

import torch
from torch import Tensor

from goldens.checks import expect, expect_range
from goldens.errors import GoldenInputError
from goldens.numerics import paging

STAGES = (
    "position_ids", "kv_seq_lens", "ori_slot_mapping", "hca_cmp_slot_mapping", "hca_state_slot_mapping",
    "csa_cmp_slot_mapping", "csa_idx_slot_mapping", "csa_state_slot_mapping", "csa_inner_state_slot_mapping",
)  # fmt: skip

STATE4_PAGE, STATE128_PAGE = 4, 8
"""Rows of a page of the compressor states."""


def decode_metadata(
    start_pos: Tensor,
    ori_block_table: Tensor,
    cmp_block_table: Tensor,
    idx_block_table: Tensor,
    hca_compress_state_block_table: Tensor,
    csa_compress_state_block_table: Tensor,
    csa_inner_compress_state_block_table: Tensor,
    commit_tokens: int,
    *,
    seq: int,
    window: int,
    max_seq_len: int,
    taps: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Lower a decode step of `seq` tokens per request, from start_pos [B] INT32, to what its kernels take.

    Block tables [B, columns] INT32; a negative entry is a hole, and a slot in it or beyond the table is -1.

    Returns position_ids [B, S] INT32 (start + s), kv_seq_lens [B] INT32 (start + commit_tokens), and INT64 [B, S] of
    flat rows, -1 for "do not write": ori_slot_mapping (ring of `window` positions); hca_cmp_slot_mapping,
    csa_cmp_slot_mapping and csa_idx_slot_mapping (a compressed row, for the last position of a group of 128, 4 and 4
    whose token is among the first commit_tokens); hca_state_slot_mapping, csa_state_slot_mapping and
    csa_inner_state_slot_mapping (state rows by absolute position, committed or not).

    Raises GoldenInputError for shapes and dtypes, a start below 0 or beyond max_seq_len - S, and commit_tokens outside
    0..S.
    """
    (batch,) = expect("decode_metadata: start_pos", start_pos, (None,), torch.int32)
    tables = {
        "ori_block_table": ori_block_table,
        "cmp_block_table": cmp_block_table,
        "idx_block_table": idx_block_table,
        "hca_compress_state_block_table": hca_compress_state_block_table,
        "csa_compress_state_block_table": csa_compress_state_block_table,
        "csa_inner_compress_state_block_table": csa_inner_compress_state_block_table,
    }
    for name, table in tables.items():
        expect(f"decode_metadata: {name}", table, (batch, None), torch.int32)
    if seq > max_seq_len:
        raise GoldenInputError(f"decode_metadata: {seq} tokens per request, expected at most {max_seq_len} positions")
    expect_range("decode_metadata: start_pos", start_pos, 0, max_seq_len - seq)

    positions = paging.position_ids(start_pos, seq)
    lengths = paging.kv_seq_lens(start_pos, seq, commit_tokens)

    def compressed(table: Tensor, ratio: int) -> Tensor:
        slots = paging.compressed_slots(positions, table, ratio)
        return paging.mask_uncommitted(slots, positions, ratio, commit_tokens)

    found = {
        "position_ids": positions,
        "kv_seq_lens": lengths,
        "ori_slot_mapping": paging.window_slots(positions, ori_block_table, window),
        "hca_cmp_slot_mapping": compressed(cmp_block_table, 128),
        "hca_state_slot_mapping": paging.state_slots(positions, hca_compress_state_block_table, STATE128_PAGE),
        "csa_cmp_slot_mapping": compressed(cmp_block_table, 4),
        "csa_idx_slot_mapping": compressed(idx_block_table, 4),
        "csa_state_slot_mapping": paging.state_slots(positions, csa_compress_state_block_table, STATE4_PAGE),
        "csa_inner_state_slot_mapping": paging.state_slots(
            positions, csa_inner_compress_state_block_table, STATE4_PAGE
        ),
    }
    if taps is not None:
        taps.update(found)
    return found
