"""decode_attention_csa: attention sub-layer of a layer with compress ratio 4. Contract: decode_attention.md, section 7.

decode_attention_swa with decode_compressor_ratio4 and decode_indexer, and decode_sparse_attn_csa in place of its window
form. Between the spliced parts stand, besides rope rows and write-back,

    request rope rows   rotary rows of the group that a request is in       one task
    query rope rows     rotary rows of the tokens, FP32                     one task
    window columns      window rows, replaced by those of this step         block: OVERLAY_TOKENS tokens
    slot columns        what the indexer chose, as far as it is closed;     one task
                        which blocks of the list hold anything

The tile set decides the last two: #672 gave each token a block of its own for the window and one task to all slots;
before, a block did both for TOKENS tokens. The indexer's query is rotated at the position of its token and the new key
at the first position of its group, as the model is defined and as prefill does it.
"""

import pypto.language as pl

from kernels.decode_attention_hca import request_rope_rows
from kernels.decode_attention_swa import rope_rows, write_back
from kernels.decode_compressor_ratio4 import decode_compressor_ratio4_inline
from kernels.decode_indexer import decode_indexer_inline
from kernels.decode_sparse_attn_csa import BLOCKS, COLUMNS, decode_sparse_attn_csa_inline
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
    IDX_BLOCK_NUM,
    IDX_HEAD_DIM,
    IDX_MAX_BLOCKS,
    IDX_N_HEADS,
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
    SCORE_LEN,
    STATE4_BLOCK_NUM,
    STATE4_MAX_BLOCKS,
    STATE4_PAGE,
    WIN,
    B,
    D,
    S,
    T,
    choose,
)

RATIO = 4
RATIO_INV = 1.0 / RATIO
FIRST_SLOT = WIN + S  # number of compressed row 0 in a list
OVERLAY_TOKENS = choose(pr672=1, before_pr672=TOKENS)

if (BLOCKS - 1) * KEYS > SCORE_LEN:
    raise ValueError(f"decode_attention_csa: {BLOCKS - 1} blocks of {KEYS} are more than {SCORE_LEN} scores")


@pl.jit.inline
def query_rope_rows(
    rope_cos: pl.Tensor[[T, ROPE_DIM], pl.BF16],
    rope_sin: pl.Tensor[[T, ROPE_DIM], pl.BF16],
    idx_cos: pl.Out[pl.Tensor[[T, ROPE_HALF], pl.FP32]],
    idx_sin: pl.Out[pl.Tensor[[T, ROPE_HALF], pl.FP32]],
):
    """The tokens' rotary rows as the indexer takes them: FP32, without the repeated half."""
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="attention_query_rope_rows"):
        idx_cos[0:T, 0:ROPE_HALF] = pl.cast(rope_cos[0:T, 0:ROPE_HALF], pl.FP32)
        idx_sin[0:T, 0:ROPE_HALF] = pl.cast(rope_sin[0:T, 0:ROPE_HALF], pl.FP32)


@pl.jit.inline
def window_columns(
    position_ids: pl.Tensor[[T], pl.INT32],
    cmp_sparse_indices: pl.Out[pl.Tensor[[T, COLUMNS], pl.INT32]],
    t: pl.Scalar[pl.INDEX],
):
    """Columns 0 to WIN - 1 of token t: the ring row, or the row of this step that replaces it, or -1. FP32, exact."""
    s = t % S
    ramp = pl.cast(pl.arange(0, [1, WIN], dtype=pl.INT32), pl.FP32, mode="none")
    position = pl.cast(pl.read(position_ids, [t]), pl.FP32)
    reached = pl.minimum(pl.maximum(pl.add(pl.neg(ramp), position + 1.0), 0.0), 1.0)
    entry = pl.sub(pl.mul(reached, pl.add(ramp, 1.0)), 1.0)
    for u in pl.range(S):
        if u <= s:
            replaced = pl.cast(pl.read(position_ids, [t - s + u]), pl.INDEX) % WIN
            distance = pl.abs(pl.sub(ramp, pl.cast(replaced, pl.FP32)))
            other = pl.minimum(distance, 1.0)
            here = pl.add(pl.neg(other), 1.0)
            entry = pl.add(pl.mul(entry, other), pl.mul(here, pl.cast(WIN + u, pl.FP32)))
    cmp_sparse_indices[t : t + 1, 0:WIN] = pl.cast(entry, pl.INT32, mode="trunc")


@pl.jit.inline
def slot_columns(
    topk_idxs: pl.Tensor[[T, SCORE_LEN], pl.INT32],
    position_ids: pl.Tensor[[1, T], pl.INT32],
    cmp_sparse_indices: pl.Out[pl.Tensor[[T, COLUMNS], pl.INT32]],
    valid_block_mask: pl.Out[pl.Tensor[[T, BLOCKS], pl.INT32]],
    t0: pl.Scalar[pl.INDEX],
):
    """The other columns of TOKENS tokens: what the indexer chose and is closed at the token's position, else -1; and
    which blocks of KEYS columns hold an entry. The window always does."""
    position = pl.cast(position_ids[0:1, t0 : t0 + TOKENS], pl.FP32, mode="none")
    closed = pl.cast(pl.mul(pl.add(position, 1.0), RATIO_INV), pl.INT32, mode="trunc")
    end = pl.reshape(pl.add(pl.cast(closed, pl.FP32, mode="none"), 1.0 * FIRST_SLOT), [TOKENS, 1])
    held = pl.full([TOKENS, 1], dtype=pl.INT32, value=1)
    valid_block_mask[t0 : t0 + TOKENS, 0:1] = held
    for k in pl.range(1, BLOCKS):
        chosen0 = (k - 1) * KEYS
        column0 = k * KEYS
        raw = pl.cast(topk_idxs[t0 : t0 + TOKENS, chosen0 : chosen0 + KEYS], pl.FP32, mode="none")
        is_slot = pl.minimum(pl.maximum(pl.add(raw, 1.0 - FIRST_SLOT), 0.0), 1.0)
        is_closed = pl.minimum(pl.maximum(pl.neg(pl.row_expand_sub(raw, end)), 0.0), 1.0)
        keep = pl.mul(is_slot, is_closed)
        kept = pl.sub(pl.mul(keep, pl.add(raw, 1.0)), 1.0)
        cmp_sparse_indices[t0 : t0 + TOKENS, column0 : column0 + KEYS] = pl.cast(kept, pl.INT32, mode="trunc")
        any_kept = pl.cast(pl.row_max(keep), pl.INT32, mode="trunc")
        valid_block_mask[t0 : t0 + TOKENS, k : k + 1] = any_kept


@pl.jit.inline
def csa_indices(
    topk_idxs: pl.Tensor[[T, SCORE_LEN], pl.INT32],
    position_ids: pl.Tensor[[T], pl.INT32],
    cmp_sparse_indices: pl.Out[pl.Tensor[[T, COLUMNS], pl.INT32]],
    valid_block_mask: pl.Out[pl.Tensor[[T, BLOCKS], pl.INT32]],
):
    """The list of each token and the mask of its blocks."""
    position_row = pl.reshape(position_ids, [1, T])
    if OVERLAY_TOKENS == 1:
        for t in pl.spmd(T, name_hint="csa_window_columns"):
            window_columns(position_ids, cmp_sparse_indices, t)
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="csa_slot_columns"):
            for i in pl.range(T // TOKENS):
                slot_columns(topk_idxs, position_row, cmp_sparse_indices, valid_block_mask, i * TOKENS)
    else:
        for block in pl.spmd(T // OVERLAY_TOKENS, name_hint="csa_indices"):
            t0 = block * OVERLAY_TOKENS
            for i in pl.range(OVERLAY_TOKENS):
                window_columns(position_ids, cmp_sparse_indices, t0 + i)
            slot_columns(topk_idxs, position_row, cmp_sparse_indices, valid_block_mask, t0)


@pl.jit.inline
def decode_attention_csa_inline(
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
    cmp_wkv: pl.Tensor[[2 * HEAD_DIM, D], pl.BF16],
    cmp_wgate: pl.Tensor[[2 * HEAD_DIM, D], pl.BF16],
    cmp_ape: pl.Tensor[[RATIO, 2 * HEAD_DIM], pl.FP32],
    cmp_norm_w: pl.Tensor[[HEAD_DIM], pl.BF16],
    compress_state: pl.InOut[pl.Tensor[[STATE4_BLOCK_NUM, STATE4_PAGE, 4 * HEAD_DIM], pl.FP32]],
    compress_state_block_table: pl.Tensor[[B, STATE4_MAX_BLOCKS], pl.INT32],
    idx_wq_b: pl.Tensor[[Q_LORA, IDX_N_HEADS * IDX_HEAD_DIM], pl.INT8],
    idx_wq_b_scale: pl.Tensor[[IDX_N_HEADS * IDX_HEAD_DIM], pl.FP32],
    weights_proj: pl.Tensor[[D, IDX_N_HEADS], pl.BF16],
    hadamard_idx: pl.Tensor[[IDX_HEAD_DIM, IDX_HEAD_DIM], pl.BF16],
    inner_wkv: pl.Tensor[[2 * IDX_HEAD_DIM, D], pl.BF16],
    inner_wgate: pl.Tensor[[2 * IDX_HEAD_DIM, D], pl.BF16],
    inner_ape: pl.Tensor[[RATIO, 2 * IDX_HEAD_DIM], pl.FP32],
    inner_norm_w: pl.Tensor[[IDX_HEAD_DIM], pl.BF16],
    inner_compress_state: pl.InOut[pl.Tensor[[STATE4_BLOCK_NUM, STATE4_PAGE, 4 * IDX_HEAD_DIM], pl.FP32]],
    inner_compress_state_block_table: pl.Tensor[[B, STATE4_MAX_BLOCKS], pl.INT32],
    kv_cache: pl.InOut[pl.Tensor[[ORI_BLOCK_NUM, BLOCK_SIZE, 1, HEAD_DIM], pl.BF16]],
    ori_block_table: pl.Tensor[[B, ORI_MAX_BLOCKS], pl.INT32],
    cmp_kv: pl.InOut[pl.Tensor[[CMP_BLOCK_NUM, BLOCK_SIZE, 1, HEAD_DIM], pl.BF16]],
    cmp_block_table: pl.Tensor[[B, CMP_MAX_BLOCKS], pl.INT32],
    idx_kv_cache: pl.InOut[pl.Tensor[[IDX_BLOCK_NUM, BLOCK_SIZE, 1, IDX_HEAD_DIM], pl.BF16]],
    idx_block_table: pl.Tensor[[B, IDX_MAX_BLOCKS], pl.INT32],
    ori_slot_mapping: pl.Tensor[[T], pl.INT64],
    cmp_slot_mapping: pl.Tensor[[T], pl.INT64],
    idx_slot_mapping: pl.Tensor[[T], pl.INT64],
    state_slot_mapping: pl.Tensor[[T], pl.INT64],
    inner_state_slot_mapping: pl.Tensor[[T], pl.INT64],
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
    idx_cos = pl.create_tensor([T, ROPE_HALF], dtype=pl.FP32)
    idx_sin = pl.create_tensor([T, ROPE_HALF], dtype=pl.FP32)
    x_normed = pl.create_tensor([T, D], dtype=pl.BF16)
    q = pl.create_tensor([T, N_HEADS, HEAD_DIM], dtype=pl.BF16)
    kv = pl.create_tensor([T, HEAD_DIM], dtype=pl.BF16)
    qr = pl.create_tensor([T, Q_LORA], dtype=pl.INT8)
    qr_scale = pl.create_tensor([T, 1], dtype=pl.FP32)
    pooled_kv = pl.create_tensor([B, S, HEAD_DIM], dtype=pl.FP32)
    inner_kv = pl.create_tensor([B, S, IDX_HEAD_DIM], dtype=pl.FP32)
    score = pl.create_tensor([B, S, SCORE_LEN], dtype=pl.FP32)
    topk_idxs = pl.create_tensor([B, S, SCORE_LEN], dtype=pl.INT32)
    cmp_sparse_indices = pl.create_tensor([T, COLUMNS], dtype=pl.INT32)
    valid_block_mask = pl.create_tensor([T, BLOCKS], dtype=pl.INT32)
    attn_out = pl.create_tensor([T, D], dtype=pl.BF16)
    x_normed_rows = pl.reshape(x_normed, [B, S, D])
    positions = pl.reshape(position_ids, [B, S])

    hc_pre_inline(x_hc, hc_attn_fn, hc_attn_scale, hc_attn_base, x_mixed, post, comb)
    rope_rows(freqs_cos, freqs_sin, position_ids, rope_cos, rope_sin)
    request_rope_rows(freqs_cos, freqs_sin, position_ids, RATIO, cmp_cos, cmp_sin)
    query_rope_rows(rope_cos, rope_sin, idx_cos, idx_sin)
    rms_norm_inline(x_mixed, attn_norm_w, x_normed)
    qkv_proj_rope_inline(
        x_normed, wq_a, wq_b, wq_b_scale, wkv, rope_cos, rope_sin, gamma_cq, gamma_ckv, q, kv, qr, qr_scale
    )
    decode_compressor_ratio4_inline(
        x_normed_rows,
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
        positions,
        pl.reshape(cmp_slot_mapping, [B, S]),
        pl.reshape(state_slot_mapping, [B, S]),
    )
    decode_indexer_inline(
        x_normed_rows,
        qr,
        qr_scale,
        idx_wq_b,
        idx_wq_b_scale,
        weights_proj,
        idx_cos,
        idx_sin,
        cmp_cos,
        cmp_sin,
        hadamard_idx,
        inner_kv,
        inner_compress_state,
        inner_compress_state_block_table,
        inner_wkv,
        inner_wgate,
        inner_ape,
        inner_norm_w,
        idx_kv_cache,
        idx_block_table,
        score,
        topk_idxs,
        positions,
        pl.reshape(idx_slot_mapping, [B, S]),
        pl.reshape(inner_state_slot_mapping, [B, S]),
        kv_seq_lens,
        FIRST_SLOT,
    )
    csa_indices(pl.reshape(topk_idxs, [T, SCORE_LEN]), position_ids, cmp_sparse_indices, valid_block_mask)
    decode_sparse_attn_csa_inline(
        q,
        kv_cache,
        ori_block_table,
        kv,
        cmp_kv,
        cmp_block_table,
        cmp_sparse_indices,
        valid_block_mask,
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
    return compress_state, inner_compress_state, kv_cache, cmp_kv, idx_kv_cache, x_out


@pl.jit
def decode_attention_csa(
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
    cmp_wkv: pl.Tensor[[2 * HEAD_DIM, D], pl.BF16],
    cmp_wgate: pl.Tensor[[2 * HEAD_DIM, D], pl.BF16],
    cmp_ape: pl.Tensor[[RATIO, 2 * HEAD_DIM], pl.FP32],
    cmp_norm_w: pl.Tensor[[HEAD_DIM], pl.BF16],
    compress_state: pl.InOut[pl.Tensor[[STATE4_BLOCK_NUM, STATE4_PAGE, 4 * HEAD_DIM], pl.FP32]],
    compress_state_block_table: pl.Tensor[[B, STATE4_MAX_BLOCKS], pl.INT32],
    idx_wq_b: pl.Tensor[[Q_LORA, IDX_N_HEADS * IDX_HEAD_DIM], pl.INT8],
    idx_wq_b_scale: pl.Tensor[[IDX_N_HEADS * IDX_HEAD_DIM], pl.FP32],
    weights_proj: pl.Tensor[[D, IDX_N_HEADS], pl.BF16],
    hadamard_idx: pl.Tensor[[IDX_HEAD_DIM, IDX_HEAD_DIM], pl.BF16],
    inner_wkv: pl.Tensor[[2 * IDX_HEAD_DIM, D], pl.BF16],
    inner_wgate: pl.Tensor[[2 * IDX_HEAD_DIM, D], pl.BF16],
    inner_ape: pl.Tensor[[RATIO, 2 * IDX_HEAD_DIM], pl.FP32],
    inner_norm_w: pl.Tensor[[IDX_HEAD_DIM], pl.BF16],
    inner_compress_state: pl.InOut[pl.Tensor[[STATE4_BLOCK_NUM, STATE4_PAGE, 4 * IDX_HEAD_DIM], pl.FP32]],
    inner_compress_state_block_table: pl.Tensor[[B, STATE4_MAX_BLOCKS], pl.INT32],
    kv_cache: pl.InOut[pl.Tensor[[ORI_BLOCK_NUM, BLOCK_SIZE, 1, HEAD_DIM], pl.BF16]],
    ori_block_table: pl.Tensor[[B, ORI_MAX_BLOCKS], pl.INT32],
    cmp_kv: pl.InOut[pl.Tensor[[CMP_BLOCK_NUM, BLOCK_SIZE, 1, HEAD_DIM], pl.BF16]],
    cmp_block_table: pl.Tensor[[B, CMP_MAX_BLOCKS], pl.INT32],
    idx_kv_cache: pl.InOut[pl.Tensor[[IDX_BLOCK_NUM, BLOCK_SIZE, 1, IDX_HEAD_DIM], pl.BF16]],
    idx_block_table: pl.Tensor[[B, IDX_MAX_BLOCKS], pl.INT32],
    ori_slot_mapping: pl.Tensor[[T], pl.INT64],
    cmp_slot_mapping: pl.Tensor[[T], pl.INT64],
    idx_slot_mapping: pl.Tensor[[T], pl.INT64],
    state_slot_mapping: pl.Tensor[[T], pl.INT64],
    inner_state_slot_mapping: pl.Tensor[[T], pl.INT64],
    position_ids: pl.Tensor[[T], pl.INT32],
    kv_seq_lens: pl.Tensor[[B], pl.INT32],
    attn_sink: pl.Tensor[[N_HEADS], pl.FP32],
    wo_a: pl.Tensor[[O_GROUPS, O_LORA, O_GROUP_IN], pl.BF16],
    wo_b: pl.Tensor[[D, LORA], pl.INT8],
    wo_b_scale: pl.Tensor[[D], pl.FP32],
    x_out: pl.Out[pl.Tensor[[T, HC_MULT, D], pl.BF16]],
):
    return decode_attention_csa_inline(
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
        idx_wq_b,
        idx_wq_b_scale,
        weights_proj,
        hadamard_idx,
        inner_wkv,
        inner_wgate,
        inner_ape,
        inner_norm_w,
        inner_compress_state,
        inner_compress_state_block_table,
        kv_cache,
        ori_block_table,
        cmp_kv,
        cmp_block_table,
        idx_kv_cache,
        idx_block_table,
        ori_slot_mapping,
        cmp_slot_mapping,
        idx_slot_mapping,
        state_slot_mapping,
        inner_state_slot_mapping,
        position_ids,
        kv_seq_lens,
        attn_sink,
        wo_a,
        wo_b,
        wo_b_scale,
        x_out,
    )
