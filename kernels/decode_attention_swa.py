"""decode_attention_swa: attention sub-layer of a layer without compression. Contract: decode_attention.md, section 5.

hc_pre, rms_norm, qkv_proj_rope, decode_sparse_attn_swa and hc_post are spliced in; between them stand

    rope rows     rows of the rotary tables at the tokens' positions   one task
    window bias   0 for what a token sees, -MASKED for the rest        block: TOKENS tokens
    write-back    rows of this step into the ring                      block: TOKENS tokens

A token at position p sees ring rows k <= p, but not those that it and the tokens before it in this step are about to
replace: it sees their new rows in the overlay. The ring is written after all tokens have read it. The other two layers
splice rope rows and write-back from here.
"""

import pypto.language as pl

from kernels.decode_sparse_attn_swa import BLOCKS, KEYS, LORA, MASKED, TOKENS, decode_sparse_attn_swa_inline
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
    WIN,
    B,
    D,
    S,
    T,
)

GUARD = 16  # columns that carry the order of the write-back: the shortest BF16 row of a vector tile


@pl.jit.inline
def rope_rows(
    freqs_cos: pl.Tensor[[MAX_SEQ_LEN, ROPE_DIM], pl.BF16],
    freqs_sin: pl.Tensor[[MAX_SEQ_LEN, ROPE_DIM], pl.BF16],
    position_ids: pl.Tensor[[T], pl.INT32],
    rope_cos: pl.Out[pl.Tensor[[T, ROPE_DIM], pl.BF16]],
    rope_sin: pl.Out[pl.Tensor[[T, ROPE_DIM], pl.BF16]],
):
    """Rows of both tables at the position of each token."""
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="attention_rope_rows"):
        for t in pl.range(T):
            p = pl.cast(pl.read(position_ids, [t]), pl.INDEX)
            rope_cos[t : t + 1, 0:ROPE_DIM] = freqs_cos[p : p + 1, 0:ROPE_DIM]
            rope_sin[t : t + 1, 0:ROPE_DIM] = freqs_sin[p : p + 1, 0:ROPE_DIM]


@pl.jit.inline
def ring_visibility(
    ramp: pl.Tensor[[1, WIN], pl.FP32],
    position_ids: pl.Tensor[[T], pl.INT32],
    t: pl.Scalar[pl.INDEX],
):
    """[1, WIN], FP32: 1 for the ring rows that token t sees, 0 for the others. `ramp` numbers the rows."""
    s = t % S
    position = pl.cast(pl.read(position_ids, [t]), pl.FP32)
    visible = pl.minimum(pl.maximum(pl.add(pl.neg(ramp), position + 1.0), 0.0), 1.0)
    for u in pl.range(S):
        if u <= s:
            replaced = pl.cast(pl.read(position_ids, [t - s + u]), pl.INDEX) % WIN
            distance = pl.abs(pl.sub(ramp, pl.cast(replaced, pl.FP32)))
            visible = pl.mul(visible, pl.minimum(distance, 1.0))
    return visible


@pl.jit.inline
def window_bias(
    position_ids: pl.Tensor[[T], pl.INT32],
    win_bias: pl.Out[pl.Tensor[[T, BLOCKS * KEYS], pl.FP32]],
):
    """What each token sees: of the ring page, and of the overlay, whose row o is that of flat token o."""
    for block in pl.spmd(T // TOKENS, name_hint="swa_window_bias"):
        ramp = pl.cast(pl.arange(0, [1, WIN], dtype=pl.INT32), pl.FP32, mode="none")
        for i in pl.range(TOKENS):
            t = block * TOKENS + i
            ring = ring_visibility(ramp, position_ids, t)
            win_bias[t : t + 1, 0:KEYS] = pl.mul(pl.sub(ring, 1.0), MASKED)
            token = pl.cast(t, pl.FP32)
            first = pl.cast(t - t % S, pl.FP32)
            from_first = pl.minimum(pl.maximum(pl.add(pl.sub(ramp, first), 1.0), 0.0), 1.0)
            up_to_token = pl.minimum(pl.maximum(pl.add(pl.neg(ramp), token + 1.0), 0.0), 1.0)
            overlay = pl.mul(from_first, up_to_token)
            win_bias[t : t + 1, KEYS : 2 * KEYS] = pl.mul(pl.sub(overlay, 1.0), MASKED)


@pl.jit.inline
def write_back(
    kv: pl.Tensor[[T, HEAD_DIM], pl.BF16],
    attn_out: pl.Tensor[[T, D], pl.BF16],
    ori_slot_mapping: pl.Tensor[[T], pl.INT64],
    kv_cache: pl.InOut[pl.Tensor[[ORI_BLOCK_NUM, BLOCK_SIZE, 1, HEAD_DIM], pl.BF16]],
):
    """The row of every token that has a slot, into the ring. The first columns take 0 * attn_out in: a task waits for
    what wrote its inputs, not for those who still read what it overwrites."""
    ring = pl.reshape(kv_cache, [ORI_BLOCK_NUM * BLOCK_SIZE, HEAD_DIM])
    for block in pl.spmd(T // TOKENS, name_hint="attention_write_back"):
        for i in pl.range(TOKENS):
            t = block * TOKENS + i
            row = pl.cast(pl.read(ori_slot_mapping, [t]), pl.INDEX)
            if row >= 0:
                nothing = pl.mul(pl.cast(attn_out[t : t + 1, 0:GUARD], pl.FP32), 0.0)
                guarded = pl.add(pl.cast(kv[t : t + 1, 0:GUARD], pl.FP32), nothing)
                ring[row : row + 1, 0:GUARD] = pl.cast(guarded, pl.BF16, mode="rint")
                ring[row : row + 1, GUARD:HEAD_DIM] = kv[t : t + 1, GUARD:HEAD_DIM]


@pl.jit.inline
def decode_attention_swa_inline(
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
    kv_cache: pl.InOut[pl.Tensor[[ORI_BLOCK_NUM, BLOCK_SIZE, 1, HEAD_DIM], pl.BF16]],
    block_table: pl.Tensor[[B, ORI_MAX_BLOCKS], pl.INT32],
    ori_slot_mapping: pl.Tensor[[T], pl.INT64],
    position_ids: pl.Tensor[[T], pl.INT32],
    cmp_kv: pl.Tensor[[CMP_BLOCK_NUM, BLOCK_SIZE, 1, HEAD_DIM], pl.BF16],
    cmp_block_table: pl.Tensor[[B, CMP_MAX_BLOCKS], pl.INT32],
    attn_sink: pl.Tensor[[N_HEADS], pl.FP32],
    wo_a: pl.Tensor[[O_GROUPS, O_LORA, O_GROUP_IN], pl.BF16],
    wo_b: pl.Tensor[[D, LORA], pl.INT8],
    wo_b_scale: pl.Tensor[[D], pl.FP32],
    x_out: pl.Out[pl.Tensor[[T, HC_MULT, D], pl.BF16]],
):
    """cmp_kv and cmp_block_table are not read."""
    x_mixed = pl.create_tensor([T, D], dtype=pl.BF16)
    post = pl.create_tensor([T, HC_MULT], dtype=pl.FP32)
    comb = pl.create_tensor([T, HC_MULT * HC_MULT], dtype=pl.FP32)
    rope_cos = pl.create_tensor([T, ROPE_DIM], dtype=pl.BF16)
    rope_sin = pl.create_tensor([T, ROPE_DIM], dtype=pl.BF16)
    x_normed = pl.create_tensor([T, D], dtype=pl.BF16)
    q = pl.create_tensor([T, N_HEADS, HEAD_DIM], dtype=pl.BF16)
    kv = pl.create_tensor([T, HEAD_DIM], dtype=pl.BF16)
    qr = pl.create_tensor([T, Q_LORA], dtype=pl.INT8)
    qr_scale = pl.create_tensor([T, 1], dtype=pl.FP32)
    win_bias = pl.create_tensor([T, BLOCKS * KEYS], dtype=pl.FP32)
    no_indices = pl.create_tensor([T, WIN], dtype=pl.INT32)
    attn_out = pl.create_tensor([T, D], dtype=pl.BF16)

    hc_pre_inline(x_hc, hc_attn_fn, hc_attn_scale, hc_attn_base, x_mixed, post, comb)
    rope_rows(freqs_cos, freqs_sin, position_ids, rope_cos, rope_sin)
    rms_norm_inline(x_mixed, attn_norm_w, x_normed)
    qkv_proj_rope_inline(
        x_normed, wq_a, wq_b, wq_b_scale, wkv, rope_cos, rope_sin, gamma_cq, gamma_ckv, q, kv, qr, qr_scale
    )
    window_bias(position_ids, win_bias)
    decode_sparse_attn_swa_inline(
        q,
        kv_cache,
        block_table,
        kv,
        cmp_kv,
        cmp_block_table,
        no_indices,
        win_bias,
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
    return kv_cache, x_out


@pl.jit
def decode_attention_swa(
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
    kv_cache: pl.InOut[pl.Tensor[[ORI_BLOCK_NUM, BLOCK_SIZE, 1, HEAD_DIM], pl.BF16]],
    block_table: pl.Tensor[[B, ORI_MAX_BLOCKS], pl.INT32],
    ori_slot_mapping: pl.Tensor[[T], pl.INT64],
    position_ids: pl.Tensor[[T], pl.INT32],
    cmp_kv: pl.Tensor[[CMP_BLOCK_NUM, BLOCK_SIZE, 1, HEAD_DIM], pl.BF16],
    cmp_block_table: pl.Tensor[[B, CMP_MAX_BLOCKS], pl.INT32],
    attn_sink: pl.Tensor[[N_HEADS], pl.FP32],
    wo_a: pl.Tensor[[O_GROUPS, O_LORA, O_GROUP_IN], pl.BF16],
    wo_b: pl.Tensor[[D, LORA], pl.INT8],
    wo_b_scale: pl.Tensor[[D], pl.FP32],
    x_out: pl.Out[pl.Tensor[[T, HC_MULT, D], pl.BF16]],
):
    return decode_attention_swa_inline(
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
        kv_cache,
        block_table,
        ori_slot_mapping,
        position_ids,
        cmp_kv,
        cmp_block_table,
        attn_sink,
        wo_a,
        wo_b,
        wo_b_scale,
        x_out,
    )
