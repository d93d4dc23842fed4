"""decode_attention_hca: attention sub-layer of a layer with compress ratio 128. Contract: decode_attention.md,
section 6.

decode_attention_swa with decode_compressor_ratio128, and decode_sparse_attn_hca in place of its window form. Between
the spliced parts stand, besides rope rows and write-back,

    request rope rows   rotary rows of the window that a request is in      one task
    indices             the list of rows that a token sees                  block: TOKENS tokens

The number in a column of the list is that of the column: window rows, the rows of this step, compressed rows in order.
A token sees the compressed rows that are closed at its position and committed; one closed in this step is among them.
"""

import pypto.language as pl

from kernels.decode_attention_swa import ring_visibility, rope_rows, write_back
from kernels.decode_compressor_ratio128 import decode_compressor_ratio128_inline
from kernels.decode_sparse_attn_hca import BLOCKS, COLUMNS, RATIO, SLOTS, decode_sparse_attn_hca_inline
from kernels.decode_sparse_attn_swa import KEYS, LORA, ROPE_HALF, TOKENS
from kernels.hc_post import hc_post_inline
from kernels.hc_pre import hc_pre_inline
from kernels.qkv_proj_rope import qkv_proj_rope_inline
from kernels.rms_norm import rms_norm_inline
from kernels.sizes import (
    BLOCK_SIZE,
    CMP_BLOCK_NUM,
    CMP_MAX_BLOCKS,
    HC_DIM,
    HC_MULT,
    HEAD_DIM,
    MAX_SEQ_LEN,
    MIX_HC,
    N_HEADS,
    O_GROUP_IN,
    O_GROUPS,
    O_LORA,
    ORI_BLOCK_NUM,
    ORI_MAX_BLOCKS,
    Q_LORA,
    ROPE_DIM,
    STATE128_BLOCK_NUM,
    STATE128_MAX_BLOCKS,
    STATE128_PAGE,
    WIN,
    B,
    D,
    S,
    T,
)


@pl.jit.inline
def request_rope_rows(
    freqs_cos: pl.Tensor[[MAX_SEQ_LEN, ROPE_DIM], pl.BF16],
    freqs_sin: pl.Tensor[[MAX_SEQ_LEN, ROPE_DIM], pl.BF16],
    position_ids: pl.Tensor[[T], pl.INT32],
    ratio: pl.Scalar[pl.INDEX],
    cmp_cos: pl.Out[pl.Tensor[[B, ROPE_HALF], pl.FP32]],
    cmp_sin: pl.Out[pl.Tensor[[B, ROPE_HALF], pl.FP32]],
):
    """Rows of both tables at the start of the group of `ratio` positions that the first token of a request is in."""
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="attention_request_rope_rows"):
        for b in pl.range(B):
            position = pl.cast(pl.read(position_ids, [b * S]), pl.INDEX)
            p = position - position % ratio
            cmp_cos[b : b + 1, 0:ROPE_HALF] = pl.cast(freqs_cos[p : p + 1, 0:ROPE_HALF], pl.FP32)
            cmp_sin[b : b + 1, 0:ROPE_HALF] = pl.cast(freqs_sin[p : p + 1, 0:ROPE_HALF], pl.FP32)


@pl.jit.inline
def hca_indices(
    position_ids: pl.Tensor[[T], pl.INT32],
    kv_seq_lens: pl.Tensor[[B], pl.INT32],
    cmp_sparse_indices: pl.Out[pl.Tensor[[T, COLUMNS], pl.INT32]],
):
    """The list of each token: its column's number for a row that it sees, -1 elsewhere. FP32, exact."""
    for block in pl.spmd(T // TOKENS, name_hint="hca_indices"):
        ramp = pl.cast(pl.arange(0, [1, KEYS], dtype=pl.INT32), pl.FP32, mode="none")
        for i in pl.range(TOKENS):
            t = block * TOKENS + i
            ring = ring_visibility(ramp, position_ids, t)
            numbered = pl.sub(pl.mul(ring, pl.add(ramp, 1.0)), 1.0)
            cmp_sparse_indices[t : t + 1, 0:KEYS] = pl.cast(numbered, pl.INT32, mode="trunc")

            position = pl.cast(pl.read(position_ids, [t]), pl.INDEX)
            length = pl.cast(pl.read(kv_seq_lens, [t // S]), pl.INDEX)
            slots = pl.min(pl.min((position + 1) // RATIO, length // RATIO), SLOTS)
            seen = pl.cast(t % S + 1, pl.FP32)
            end = pl.cast(S + slots, pl.FP32)
            for k in pl.range(1, BLOCKS):
                column0 = k * KEYS
                beyond = pl.add(ramp, pl.cast(column0 - WIN, pl.FP32))  # columns counted from the end of the window
                downward = pl.neg(beyond)
                overlay = pl.minimum(pl.maximum(pl.add(downward, seen), 0.0), 1.0)
                compressed = pl.minimum(pl.maximum(pl.add(downward, end), 0.0), 1.0)
                after_step = pl.minimum(pl.maximum(pl.sub(beyond, S - 1.0), 0.0), 1.0)
                keep = pl.add(overlay, pl.mul(after_step, compressed))
                column = pl.add(ramp, pl.cast(column0 + 1, pl.FP32))
                kept = pl.sub(pl.mul(keep, column), 1.0)
                cmp_sparse_indices[t : t + 1, column0 : column0 + KEYS] = pl.cast(kept, pl.INT32, mode="trunc")


@pl.jit.inline
def decode_attention_hca_inline(
    x_hc: pl.Tensor[[T, HC_MULT, D], pl.BF16],
    hc_attn_fn: pl.Tensor[[MIX_HC, HC_DIM], pl.FP32],
    hc_attn_scale: pl.Tensor[[3], pl.FP32],
    hc_attn_base: pl.Tensor[[MIX_HC], pl.FP32],
    attn_norm_w: pl.Tensor[[D], pl.BF16],
    wq_a: pl.Tensor[[D, Q_LORA], pl.BF16],
    wq_b: pl.Tensor[[Q_LORA, N_HEADS * HEAD_DIM], pl.INT8],
    wq_b_scale: pl.Tensor[[N_HEADS * HEAD_DIM], pl.FP32],
    wkv: pl.Tensor[[D, HEAD_DIM], pl.BF16],
    gamma_cq: pl.Tensor[[Q_LORA], pl.BF16],
    gamma_ckv: pl.Tensor[[HEAD_DIM], pl.BF16],
    freqs_cos: pl.Tensor[[MAX_SEQ_LEN, ROPE_DIM], pl.BF16],
    freqs_sin: pl.Tensor[[MAX_SEQ_LEN, ROPE_DIM], pl.BF16],
    cmp_wkv: pl.Tensor[[HEAD_DIM, D], pl.BF16],
    cmp_wgate: pl.Tensor[[HEAD_DIM, D], pl.BF16],
    cmp_ape: pl.Tensor[[RATIO, HEAD_DIM], pl.FP32],
    cmp_norm_w: pl.Tensor[[HEAD_DIM], pl.BF16],
    compress_state: pl.InOut[pl.Tensor[[STATE128_BLOCK_NUM, STATE128_PAGE, 2 * HEAD_DIM], pl.FP32]],
    compress_state_block_table: pl.Tensor[[B, STATE128_MAX_BLOCKS], pl.INT32],
    kv_cache: pl.InOut[pl.Tensor[[ORI_BLOCK_NUM, BLOCK_SIZE, 1, HEAD_DIM], pl.BF16]],
    ori_block_table: pl.Tensor[[B, ORI_MAX_BLOCKS], pl.INT32],
    cmp_kv: pl.InOut[pl.Tensor[[CMP_BLOCK_NUM, BLOCK_SIZE, 1, HEAD_DIM], pl.BF16]],
    cmp_block_table: pl.Tensor[[B, CMP_MAX_BLOCKS], pl.INT32],
    ori_slot_mapping: pl.Tensor[[T], pl.INT64],
    cmp_slot_mapping: pl.Tensor[[T], pl.INT64],
    state_slot_mapping: pl.Tensor[[T], pl.INT64],
    position_ids: pl.Tensor[[T], pl.INT32],
    kv_seq_lens: pl.Tensor[[B], pl.INT32],
    attn_sink: pl.Tensor[[N_HEADS], pl.FP32],
    wo_a: pl.Tensor[[O_GROUPS, O_LORA, O_GROUP_IN], pl.BF16],
    wo_b: pl.Tensor[[D, LORA], pl.INT8],
    wo_b_scale: pl.Tensor[[D], pl.FP32],
    x_out: pl.Out[pl.Tensor[[T, HC_MULT, D], pl.BF16]],
):
    x_mixed = pl.create_tensor([T, D], dtype=pl.BF16)
    post = pl.create_tensor([T, HC_MULT], dtype=pl.FP32)
    comb = pl.create_tensor([T, HC_MULT * HC_MULT], dtype=pl.FP32)
    rope_cos = pl.create_tensor([T, ROPE_DIM], dtype=pl.BF16)
    rope_sin = pl.create_tensor([T, ROPE_DIM], dtype=pl.BF16)
    cmp_cos = pl.create_tensor([B, ROPE_HALF], dtype=pl.FP32)
    cmp_sin = pl.create_tensor([B, ROPE_HALF], dtype=pl.FP32)
    x_normed = pl.create_tensor([T, D], dtype=pl.BF16)
    q = pl.create_tensor([T, N_HEADS, HEAD_DIM], dtype=pl.BF16)
    kv = pl.create_tensor([T, HEAD_DIM], dtype=pl.BF16)
    qr = pl.create_tensor([T, Q_LORA], dtype=pl.INT8)
    qr_scale = pl.create_tensor([T, 1], dtype=pl.FP32)
    pooled_kv = pl.create_tensor([B, S, HEAD_DIM], dtype=pl.FP32)
    cmp_sparse_indices = pl.create_tensor([T, COLUMNS], dtype=pl.INT32)
    attn_out = pl.create_tensor([T, D], dtype=pl.BF16)

    hc_pre_inline(x_hc, hc_attn_fn, hc_attn_scale, hc_attn_base, x_mixed, post, comb)
    rope_rows(freqs_cos, freqs_sin, position_ids, rope_cos, rope_sin)
    request_rope_rows(freqs_cos, freqs_sin, position_ids, RATIO, cmp_cos, cmp_sin)
    rms_norm_inline(x_mixed, attn_norm_w, x_normed)
    qkv_proj_rope_inline(
        x_normed, wq_a, wq_b, wq_b_scale, wkv, rope_cos, rope_sin, gamma_cq, gamma_ckv, q, kv, qr, qr_scale
    )
    decode_compressor_ratio128_inline(
        pl.reshape(x_normed, [B, S, D]),
        pooled_kv,
        compress_state,
        compress_state_block_table,
        cmp_wkv,
        cmp_wgate,
        cmp_ape,
        cmp_norm_w,
        cmp_cos,
        cmp_sin,
        cmp_kv,
        pl.reshape(position_ids, [B, S]),
        pl.reshape(cmp_slot_mapping, [B, S]),
        pl.reshape(state_slot_mapping, [B, S]),
    )
    hca_indices(position_ids, kv_seq_lens, cmp_sparse_indices)
    decode_sparse_attn_hca_inline(
        q,
        kv_cache,
        ori_block_table,
        kv,
        cmp_kv,
        cmp_block_table,
        cmp_sparse_indices,
        attn_sink,
        rope_cos,
        rope_sin,
        wo_a,
        wo_b,
        wo_b_scale,
        attn_out,
    )
    write_back(kv, attn_out, ori_slot_mapping, kv_cache)
    hc_post_inline(attn_out, x_hc, post, comb, x_out)
    return compress_state, kv_cache, cmp_kv, x_out


@pl.jit
def decode_attention_hca(
    x_hc: pl.Tensor[[T, HC_MULT, D], pl.BF16],
    hc_attn_fn: pl.Tensor[[MIX_HC, HC_DIM], pl.FP32],
    hc_attn_scale: pl.Tensor[[3], pl.FP32],
    hc_attn_base: pl.Tensor[[MIX_HC], pl.FP32],
    attn_norm_w: pl.Tensor[[D], pl.BF16],
    wq_a: pl.Tensor[[D, Q_LORA], pl.BF16],
    wq_b: pl.Tensor[[Q_LORA, N_HEADS * HEAD_DIM], pl.INT8],
    wq_b_scale: pl.Tensor[[N_HEADS * HEAD_DIM], pl.FP32],
    wkv: pl.Tensor[[D, HEAD_DIM], pl.BF16],
    gamma_cq: pl.Tensor[[Q_LORA], pl.BF16],
    gamma_ckv: pl.Tensor[[HEAD_DIM], pl.BF16],
    freqs_cos: pl.Tensor[[MAX_SEQ_LEN, ROPE_DIM], pl.BF16],
    freqs_sin: pl.Tensor[[MAX_SEQ_LEN, ROPE_DIM], pl.BF16],
    cmp_wkv: pl.Tensor[[HEAD_DIM, D], pl.BF16],
    cmp_wgate: pl.Tensor[[HEAD_DIM, D], pl.BF16],
    cmp_ape: pl.Tensor[[RATIO, HEAD_DIM], pl.FP32],
    cmp_norm_w: pl.Tensor[[HEAD_DIM], pl.BF16],
    compress_state: pl.InOut[pl.Tensor[[STATE128_BLOCK_NUM, STATE128_PAGE, 2 * HEAD_DIM], pl.FP32]],
    compress_state_block_table: pl.Tensor[[B, STATE128_MAX_BLOCKS], pl.INT32],
    kv_cache: pl.InOut[pl.Tensor[[ORI_BLOCK_NUM, BLOCK_SIZE, 1, HEAD_DIM], pl.BF16]],
    ori_block_table: pl.Tensor[[B, ORI_MAX_BLOCKS], pl.INT32],
    cmp_kv: pl.InOut[pl.Tensor[[CMP_BLOCK_NUM, BLOCK_SIZE, 1, HEAD_DIM], pl.BF16]],
    cmp_block_table: pl.Tensor[[B, CMP_MAX_BLOCKS], pl.INT32],
    ori_slot_mapping: pl.Tensor[[T], pl.INT64],
    cmp_slot_mapping: pl.Tensor[[T], pl.INT64],
    state_slot_mapping: pl.Tensor[[T], pl.INT64],
    position_ids: pl.Tensor[[T], pl.INT32],
    kv_seq_lens: pl.Tensor[[B], pl.INT32],
    attn_sink: pl.Tensor[[N_HEADS], pl.FP32],
    wo_a: pl.Tensor[[O_GROUPS, O_LORA, O_GROUP_IN], pl.BF16],
    wo_b: pl.Tensor[[D, LORA], pl.INT8],
    wo_b_scale: pl.Tensor[[D], pl.FP32],
    x_out: pl.Out[pl.Tensor[[T, HC_MULT, D], pl.BF16]],
):
    return decode_attention_hca_inline(
        x_hc,
        hc_attn_fn,
        hc_attn_scale,
        hc_attn_base,
        attn_norm_w,
        wq_a,
        wq_b,
        wq_b_scale,
        wkv,
        gamma_cq,
        gamma_ckv,
        freqs_cos,
        freqs_sin,
        cmp_wkv,
        cmp_wgate,
        cmp_ape,
        cmp_norm_w,
        compress_state,
        compress_state_block_table,
        kv_cache,
        ori_block_table,
        cmp_kv,
        cmp_block_table,
        ori_slot_mapping,
        cmp_slot_mapping,
        state_slot_mapping,
        position_ids,
        kv_seq_lens,
        attn_sink,
        wo_a,
        wo_b,
        wo_b_scale,
        x_out,
    )
