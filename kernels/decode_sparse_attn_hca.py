"""decode_sparse_attn_hca: attention over the window in place and a list of KV rows. Contract: decode_attention.md,
section 3.

Two stages of its own, then merge and output projection as in decode_sparse_attn_swa:

    bias      0 for a listed row, -MASKED for a lane without one     block: TOKENS rows of the list
    attend    the window's page, then the blocks that are gathered   block: one token

Column k of the first KEYS holds k or -1, so the first block is the page of the window as it lies. The others are
gathered as in decode_sparse_attn_csa, up to the last column in use; lanes behind it are zeros.
"""

import pypto.language as pl

from kernels.decode_sparse_attn_csa import gather_listed, list_bias
from kernels.decode_sparse_attn_swa import KEYS, LORA, attend_block, merge_blocks, output_projection
from kernels.sizes import (
    BLOCK_SIZE,
    CMP_BLOCK_NUM,
    CMP_MAX_BLOCKS,
    HEAD_DIM,
    IDX_TOPK,
    MAX_SEQ_LEN,
    N_HEADS,
    O_GROUP_IN,
    O_GROUPS,
    O_LORA,
    ORI_BLOCK_NUM,
    ORI_MAX_BLOCKS,
    ROPE_DIM,
    WIN,
    B,
    D,
    S,
    T,
)

RATIO = 128
SLOTS = min(MAX_SEQ_LEN // RATIO, IDX_TOPK)  # compressed rows that a token can see
COLUMNS_USED = WIN + S + SLOTS
BLOCKS = max(2, (COLUMNS_USED + KEYS - 1) // KEYS)
COLUMNS = BLOCKS * KEYS


@pl.jit.inline
def decode_sparse_attn_hca_inline(
    q: pl.Tensor[[T, N_HEADS, HEAD_DIM], pl.BF16],
    ori_kv: pl.Tensor[[ORI_BLOCK_NUM, BLOCK_SIZE, 1, HEAD_DIM], pl.BF16],
    ori_block_table: pl.Tensor[[B, ORI_MAX_BLOCKS], pl.INT32],
    mtp_kv_overlay: pl.Tensor[[T, HEAD_DIM], pl.BF16],
    cmp_kv: pl.Tensor[[CMP_BLOCK_NUM, BLOCK_SIZE, 1, HEAD_DIM], pl.BF16],
    cmp_block_table: pl.Tensor[[B, CMP_MAX_BLOCKS], pl.INT32],
    cmp_sparse_indices: pl.Tensor[[T, COLUMNS], pl.INT32],
    attn_sink: pl.Tensor[[N_HEADS], pl.FP32],
    freqs_cos: pl.Tensor[[T, ROPE_DIM], pl.BF16],
    freqs_sin: pl.Tensor[[T, ROPE_DIM], pl.BF16],
    wo_a: pl.Tensor[[O_GROUPS, O_LORA, O_GROUP_IN], pl.BF16],
    wo_b: pl.Tensor[[D, LORA], pl.INT8],
    wo_b_scale: pl.Tensor[[D], pl.FP32],
    attn_out: pl.Out[pl.Tensor[[T, D], pl.BF16]],
):
    heads = pl.reshape(q, [T * N_HEADS, HEAD_DIM])
    ring = pl.reshape(ori_kv, [ORI_BLOCK_NUM * BLOCK_SIZE, HEAD_DIM])
    compressed = pl.reshape(cmp_kv, [CMP_BLOCK_NUM * BLOCK_SIZE, HEAD_DIM])
    bias = pl.create_tensor([T, COLUMNS], dtype=pl.FP32)
    blank = pl.create_tensor([KEYS, HEAD_DIM], dtype=pl.BF16, init_value=0.0)
    block_max = pl.create_tensor([T * BLOCKS * N_HEADS, 1], dtype=pl.FP32)
    block_sum = pl.create_tensor([T * BLOCKS * N_HEADS, 1], dtype=pl.FP32)
    block_out = pl.create_tensor([T * BLOCKS * N_HEADS, HEAD_DIM], dtype=pl.FP32)
    o_packed = pl.create_tensor([O_GROUPS * T, O_GROUP_IN], dtype=pl.BF16)

    list_bias(cmp_sparse_indices, bias)

    for t in pl.spmd(T, name_hint="hca_attend"):
        page = pl.cast(pl.read(ori_block_table, [t // S, 0]), pl.INDEX) * BLOCK_SIZE
        ring_rows = ring[page : page + KEYS, 0:HEAD_DIM]
        ring_bias = bias[t : t + 1, 0:KEYS]
        attend_block(heads, ring_rows, ring_bias, block_max, block_sum, block_out, t, t * BLOCKS * N_HEADS)
        for k in pl.range(1, BLOCKS):
            row0 = (t * BLOCKS + k) * N_HEADS
            column0 = k * KEYS
            count = pl.min(KEYS, COLUMNS_USED - column0)
            kv_rows = pl.create_l1([KEYS, HEAD_DIM], dtype=pl.BF16)
            gather_listed(
                kv_rows,
                blank,
                ring,
                ori_block_table,
                mtp_kv_overlay,
                compressed,
                cmp_block_table,
                cmp_sparse_indices,
                t,
                column0,
                count,
            )
            lane_bias = bias[t : t + 1, column0 : column0 + KEYS]
            attend_block(heads, kv_rows, lane_bias, block_max, block_sum, block_out, t, row0)

    merge_blocks(block_max, block_sum, block_out, attn_sink, freqs_cos, freqs_sin, o_packed)
    output_projection(o_packed, wo_a, wo_b, wo_b_scale, attn_out)
    return attn_out


@pl.jit
def decode_sparse_attn_hca(
    q: pl.Tensor[[T, N_HEADS, HEAD_DIM], pl.BF16],
    ori_kv: pl.Tensor[[ORI_BLOCK_NUM, BLOCK_SIZE, 1, HEAD_DIM], pl.BF16],
    ori_block_table: pl.Tensor[[B, ORI_MAX_BLOCKS], pl.INT32],
    mtp_kv_overlay: pl.Tensor[[T, HEAD_DIM], pl.BF16],
    cmp_kv: pl.Tensor[[CMP_BLOCK_NUM, BLOCK_SIZE, 1, HEAD_DIM], pl.BF16],
    cmp_block_table: pl.Tensor[[B, CMP_MAX_BLOCKS], pl.INT32],
    cmp_sparse_indices: pl.Tensor[[T, COLUMNS], pl.INT32],
    attn_sink: pl.Tensor[[N_HEADS], pl.FP32],
    freqs_cos: pl.Tensor[[T, ROPE_DIM], pl.BF16],
    freqs_sin: pl.Tensor[[T, ROPE_DIM], pl.BF16],
    wo_a: pl.Tensor[[O_GROUPS, O_LORA, O_GROUP_IN], pl.BF16],
    wo_b: pl.Tensor[[D, LORA], pl.INT8],
    wo_b_scale: pl.Tensor[[D], pl.FP32],
    attn_out: pl.Out[pl.Tensor[[T, D], pl.BF16]],
):
    return decode_sparse_attn_hca_inline(
        q,
        ori_kv,
        ori_block_table,
        mtp_kv_overlay,
        cmp_kv,
        cmp_block_table,
        cmp_sparse_indices,
        attn_sink,
        freqs_cos,
        freqs_sin,
        wo_a,
        wo_b,
        wo_b_scale,
        attn_out,
    )
