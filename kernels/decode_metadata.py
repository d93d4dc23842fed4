"""decode_metadata: positions, lengths and slot mappings of a step. Contract: moe_and_layers.md, section 9;
decode_compressor_indexer.md, section 6.

One task of scalar arithmetic: neighbouring elements of an output must not be written by different cores. A slot is a
flat row of a pool, page * rows of a page + row in the page; -1 means "do not write". Slots are computed in 64 bits.
"""

import pypto.language as pl

from kernels.sizes import (
    BLOCK_SIZE,
    CMP_MAX_BLOCKS,
    IDX_MAX_BLOCKS,
    ORI_MAX_BLOCKS,
    STATE4_MAX_BLOCKS,
    STATE4_PAGE,
    STATE128_MAX_BLOCKS,
    STATE128_PAGE,
    WIN,
    B,
    S,
)

if WIN % BLOCK_SIZE:
    raise ValueError(f"decode_metadata: a window of WIN = {WIN} rows is not whole pages of {BLOCK_SIZE}")

RATIO_CSA = 4
RATIO_HCA = 128
COLUMNS = pl.dynamic("COLUMNS")


@pl.jit.inline
def slot_of(
    table: pl.Tensor[[B, COLUMNS], pl.INT32],
    b: pl.Scalar[pl.INDEX],
    row: pl.Scalar[pl.INDEX],
    page_rows: pl.Scalar[pl.INDEX],
):
    """Slot of a logical row of request b; -1 where the table ends before it or has no page for it."""
    slot = pl.const(-1, pl.INT64)
    column = row // page_rows
    if column < COLUMNS:
        page = pl.cast(pl.read(table, [b, column]), pl.INT64)
        if page >= 0:
            slot = pl.cast(page * page_rows + row % page_rows, pl.INT64)
    return slot


@pl.jit.inline
def closing_slot(
    table: pl.Tensor[[B, COLUMNS], pl.INT32],
    b: pl.Scalar[pl.INDEX],
    position: pl.Scalar[pl.INDEX],
    ratio: pl.Scalar[pl.INDEX],
    committed: pl.Scalar[pl.BOOL],
):
    """Slot of the compressed row that a committed token writes when its position is the last of a group; else -1."""
    slot = pl.const(-1, pl.INT64)
    if committed and (position + 1) % ratio == 0:
        slot = slot_of(table, b, position // ratio, BLOCK_SIZE)
    return slot


@pl.jit.inline
def decode_metadata_inline(
    start_pos: pl.Tensor[[B], pl.INT32],
    ori_block_table: pl.Tensor[[B, ORI_MAX_BLOCKS], pl.INT32],
    cmp_block_table: pl.Tensor[[B, CMP_MAX_BLOCKS], pl.INT32],
    idx_block_table: pl.Tensor[[B, IDX_MAX_BLOCKS], pl.INT32],
    hca_compress_state_block_table: pl.Tensor[[B, STATE128_MAX_BLOCKS], pl.INT32],
    csa_compress_state_block_table: pl.Tensor[[B, STATE4_MAX_BLOCKS], pl.INT32],
    csa_inner_compress_state_block_table: pl.Tensor[[B, STATE4_MAX_BLOCKS], pl.INT32],
    commit_tokens: pl.Scalar[pl.INT32],
    position_ids: pl.Out[pl.Tensor[[B, S], pl.INT32]],
    kv_seq_lens: pl.Out[pl.Tensor[[B], pl.INT32]],
    ori_slot_mapping: pl.Out[pl.Tensor[[B, S], pl.INT64]],
    hca_cmp_slot_mapping: pl.Out[pl.Tensor[[B, S], pl.INT64]],
    hca_state_slot_mapping: pl.Out[pl.Tensor[[B, S], pl.INT64]],
    csa_cmp_slot_mapping: pl.Out[pl.Tensor[[B, S], pl.INT64]],
    csa_idx_slot_mapping: pl.Out[pl.Tensor[[B, S], pl.INT64]],
    csa_state_slot_mapping: pl.Out[pl.Tensor[[B, S], pl.INT64]],
    csa_inner_state_slot_mapping: pl.Out[pl.Tensor[[B, S], pl.INT64]],
):
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="decode_metadata"):
        for b in pl.range(B):
            start = pl.cast(pl.read(start_pos, [b]), pl.INDEX)
            pl.write(kv_seq_lens, [b], pl.cast(start + commit_tokens, pl.INT32))
            for s in pl.range(S):
                position = start + s
                committed = s < commit_tokens
                ori = slot_of(ori_block_table, b, position % WIN, BLOCK_SIZE)
                hca_cmp = closing_slot(cmp_block_table, b, position, RATIO_HCA, committed)
                hca_state = slot_of(hca_compress_state_block_table, b, position, STATE128_PAGE)
                csa_cmp = closing_slot(cmp_block_table, b, position, RATIO_CSA, committed)
                csa_idx = closing_slot(idx_block_table, b, position, RATIO_CSA, committed)
                csa_state = slot_of(csa_compress_state_block_table, b, position, STATE4_PAGE)
                csa_inner = slot_of(csa_inner_compress_state_block_table, b, position, STATE4_PAGE)
                pl.write(position_ids, [b, s], pl.cast(position, pl.INT32))
                pl.write(ori_slot_mapping, [b, s], ori)
                pl.write(hca_cmp_slot_mapping, [b, s], hca_cmp)
                pl.write(hca_state_slot_mapping, [b, s], hca_state)
                pl.write(csa_cmp_slot_mapping, [b, s], csa_cmp)
                pl.write(csa_idx_slot_mapping, [b, s], csa_idx)
                pl.write(csa_state_slot_mapping, [b, s], csa_state)
                pl.write(csa_inner_state_slot_mapping, [b, s], csa_inner)

    return (
        position_ids,
        kv_seq_lens,
        ori_slot_mapping,
        hca_cmp_slot_mapping,
        hca_state_slot_mapping,
        csa_cmp_slot_mapping,
        csa_idx_slot_mapping,
        csa_state_slot_mapping,
        csa_inner_state_slot_mapping,
    )


@pl.jit
def decode_metadata(
    start_pos: pl.Tensor[[B], pl.INT32],
    ori_block_table: pl.Tensor[[B, ORI_MAX_BLOCKS], pl.INT32],
    cmp_block_table: pl.Tensor[[B, CMP_MAX_BLOCKS], pl.INT32],
    idx_block_table: pl.Tensor[[B, IDX_MAX_BLOCKS], pl.INT32],
    hca_compress_state_block_table: pl.Tensor[[B, STATE128_MAX_BLOCKS], pl.INT32],
    csa_compress_state_block_table: pl.Tensor[[B, STATE4_MAX_BLOCKS], pl.INT32],
    csa_inner_compress_state_block_table: pl.Tensor[[B, STATE4_MAX_BLOCKS], pl.INT32],
    commit_tokens: pl.Scalar[pl.INT32],
    position_ids: pl.Out[pl.Tensor[[B, S], pl.INT32]],
    kv_seq_lens: pl.Out[pl.Tensor[[B], pl.INT32]],
    ori_slot_mapping: pl.Out[pl.Tensor[[B, S], pl.INT64]],
    hca_cmp_slot_mapping: pl.Out[pl.Tensor[[B, S], pl.INT64]],
    hca_state_slot_mapping: pl.Out[pl.Tensor[[B, S], pl.INT64]],
    csa_cmp_slot_mapping: pl.Out[pl.Tensor[[B, S], pl.INT64]],
    csa_idx_slot_mapping: pl.Out[pl.Tensor[[B, S], pl.INT64]],
    csa_state_slot_mapping: pl.Out[pl.Tensor[[B, S], pl.INT64]],
    csa_inner_state_slot_mapping: pl.Out[pl.Tensor[[B, S], pl.INT64]],
):
    return decode_metadata_inline(
        start_pos,
        ori_block_table,
        cmp_block_table,
        idx_block_table,
        hca_compress_state_block_table,
        csa_compress_state_block_table,
        csa_inner_compress_state_block_table,
        commit_tokens,
        position_ids,
        kv_seq_lens,
        ori_slot_mapping,
        hca_cmp_slot_mapping,
        hca_state_slot_mapping,
        csa_cmp_slot_mapping,
        csa_idx_slot_mapping,
        csa_state_slot_mapping,
        csa_inner_state_slot_mapping,
    )
