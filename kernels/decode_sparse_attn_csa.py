"""decode_sparse_attn_csa: attention over a list of KV rows per token. Contract: decode_attention.md, section 2.

Two stages of its own, then merge and output projection as in decode_sparse_attn_swa:

    bias      0 for a listed row, -MASKED for a lane without one        block: TOKENS rows of the list
    attend    rows gathered block by block, then scores, softmax, sum   block: one token, by KEYS columns of the list

A list entry r names a row of the window (r < WIN), of this step (r < WIN + S) or of the compressed pool; negative
entries name none. A block of rows starts as zeros, so that a lane without a row is finite whatever the pools hold. A
block that valid_block_mask rules out is not gathered: its maximum lies below any score and it adds nothing.
"""

import pypto.language as pl

from kernels.decode_sparse_attn_swa import (
    KEYS,
    LORA,
    MASKED,
    TOKENS,
    attend_block,
    merge_blocks,
    output_projection,
)
from kernels.sizes import (
    BLOCK_SIZE,
    CMP_BLOCK_NUM,
    CMP_MAX_BLOCKS,
    HEAD_DIM,
    IDX_TOPK,
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
    tile,
)

BLOCKS = max(2, (WIN + IDX_TOPK + KEYS - 1) // KEYS)
COLUMNS = BLOCKS * KEYS
NO_SCORE = -3.0e38
NEUTRAL_HEADS = tile(N_HEADS, multiple=8, pr672=32)

COLUMNS_DYN = pl.dynamic("COLUMNS_DYN")
ROWS_DYN = pl.dynamic("ROWS_DYN")


@pl.jit.inline
def list_bias(
    cmp_sparse_indices: pl.Tensor[[T, COLUMNS_DYN], pl.INT32],
    bias: pl.Out[pl.Tensor[[T, COLUMNS_DYN], pl.FP32]],
):
    """0 where a list names a row, -MASKED where the entry is negative; KEYS columns at a time."""
    for block in pl.spmd(T // TOKENS, name_hint="sparse_attn_bias"):
        t0 = block * TOKENS
        for c in pl.pipeline(pl.tensor.dim(bias, 1) // KEYS, stage=2):
            column0 = c * KEYS
            entries = cmp_sparse_indices[t0 : t0 + TOKENS, column0 : column0 + KEYS]
            above = pl.add(pl.cast(entries, pl.FP32, mode="none"), 1.0)
            named = pl.minimum(pl.maximum(above, 0.0), 1.0)
            bias[t0 : t0 + TOKENS, column0 : column0 + KEYS] = pl.mul(pl.sub(named, 1.0), MASKED)


@pl.jit.inline
def gather_listed(
    kv_rows: pl.Tensor[[KEYS, HEAD_DIM], pl.BF16],
    blank: pl.Tensor[[KEYS, HEAD_DIM], pl.BF16],
    ring: pl.Tensor[[ORI_BLOCK_NUM * BLOCK_SIZE, HEAD_DIM], pl.BF16],
    ori_block_table: pl.Tensor[[B, ORI_MAX_BLOCKS], pl.INT32],
    overlay: pl.Tensor[[T, HEAD_DIM], pl.BF16],
    compressed: pl.Tensor[[CMP_BLOCK_NUM * BLOCK_SIZE, HEAD_DIM], pl.BF16],
    cmp_block_table: pl.Tensor[[B, CMP_MAX_BLOCKS], pl.INT32],
    cmp_sparse_indices: pl.Tensor[[T, COLUMNS_DYN], pl.INT32],
    t: pl.Scalar[pl.INDEX],
    column0: pl.Scalar[pl.INDEX],
    count: pl.Scalar[pl.INDEX],
):
    """The rows that `count` columns of token t's list name, from column0 on, into `kv_rows`; zeros elsewhere."""
    request = t // S
    pl.gather_row(kv_rows, blank, [0, 0], [0, 0], [KEYS, HEAD_DIM])
    for lane in pl.range(count):
        entry = pl.cast(pl.read(cmp_sparse_indices, [t, column0 + lane]), pl.INDEX)
        if entry >= 0:
            if entry < WIN:
                page = pl.cast(pl.read(ori_block_table, [request, 0]), pl.INDEX)
                pl.gather_row(kv_rows, ring, [lane, 0], [page * BLOCK_SIZE + entry, 0], [1, HEAD_DIM])
            elif entry < WIN + S:
                pl.gather_row(kv_rows, overlay, [lane, 0], [request * S + entry - WIN, 0], [1, HEAD_DIM])
            else:
                slot = entry - (WIN + S)
                page = pl.cast(pl.read(cmp_block_table, [request, slot // BLOCK_SIZE]), pl.INDEX)
                row = page * BLOCK_SIZE + slot % BLOCK_SIZE
                pl.gather_row(kv_rows, compressed, [lane, 0], [row, 0], [1, HEAD_DIM])


@pl.jit.inline
def neutral_block(
    block_max: pl.Out[pl.Tensor[[ROWS_DYN, 1], pl.FP32]],
    block_sum: pl.Out[pl.Tensor[[ROWS_DYN, 1], pl.FP32]],
    block_out: pl.Out[pl.Tensor[[ROWS_DYN, HEAD_DIM], pl.FP32]],
    row0: pl.Scalar[pl.INDEX],
):
    """A block that changes nothing when it is merged, for all heads of a token."""
    no_score = pl.full([NEUTRAL_HEADS, 1], dtype=pl.FP32, value=NO_SCORE)
    no_weight = pl.full([NEUTRAL_HEADS, 1], dtype=pl.FP32, value=0.0)
    no_value = pl.full([NEUTRAL_HEADS, HEAD_DIM], dtype=pl.FP32, value=0.0)
    for batch in pl.range(N_HEADS // NEUTRAL_HEADS):
        row = row0 + batch * NEUTRAL_HEADS
        block_max[row : row + NEUTRAL_HEADS, 0:1] = no_score
        block_sum[row : row + NEUTRAL_HEADS, 0:1] = no_weight
        block_out[row : row + NEUTRAL_HEADS, 0:HEAD_DIM] = no_value


@pl.jit.inline
def decode_sparse_attn_csa_inline(
    q: pl.Tensor[[T, N_HEADS, HEAD_DIM], pl.BF16],
    ori_kv: pl.Tensor[[ORI_BLOCK_NUM, BLOCK_SIZE, 1, HEAD_DIM], pl.BF16],
    ori_block_table: pl.Tensor[[B, ORI_MAX_BLOCKS], pl.INT32],
    mtp_kv_overlay: pl.Tensor[[T, HEAD_DIM], pl.BF16],
    cmp_kv: pl.Tensor[[CMP_BLOCK_NUM, BLOCK_SIZE, 1, HEAD_DIM], pl.BF16],
    cmp_block_table: pl.Tensor[[B, CMP_MAX_BLOCKS], pl.INT32],
    cmp_sparse_indices: pl.Tensor[[T, COLUMNS], pl.INT32],
    valid_block_mask: pl.Tensor[[T, BLOCKS], pl.INT32],
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

    for t in pl.spmd(T, name_hint="csa_attend"):
        for k in pl.range(BLOCKS):
            row0 = (t * BLOCKS + k) * N_HEADS
            column0 = k * KEYS
            if pl.read(valid_block_mask, [t, k]) > 0:
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
                    KEYS,
                )
                lane_bias = bias[t : t + 1, column0 : column0 + KEYS]
                attend_block(heads, kv_rows, lane_bias, block_max, block_sum, block_out, t, row0)
            else:
                neutral_block(block_max, block_sum, block_out, row0)

    merge_blocks(block_max, block_sum, block_out, attn_sink, freqs_cos, freqs_sin, o_packed)
    output_projection(o_packed, wo_a, wo_b, wo_b_scale, attn_out)
    return attn_out


@pl.jit
def decode_sparse_attn_csa(
    q: pl.Tensor[[T, N_HEADS, HEAD_DIM], pl.BF16],
    ori_kv: pl.Tensor[[ORI_BLOCK_NUM, BLOCK_SIZE, 1, HEAD_DIM], pl.BF16],
    ori_block_table: pl.Tensor[[B, ORI_MAX_BLOCKS], pl.INT32],
    mtp_kv_overlay: pl.Tensor[[T, HEAD_DIM], pl.BF16],
    cmp_kv: pl.Tensor[[CMP_BLOCK_NUM, BLOCK_SIZE, 1, HEAD_DIM], pl.BF16],
    cmp_block_table: pl.Tensor[[B, CMP_MAX_BLOCKS], pl.INT32],
    cmp_sparse_indices: pl.Tensor[[T, COLUMNS], pl.INT32],
    valid_block_mask: pl.Tensor[[T, BLOCKS], pl.INT32],
    attn_sink: pl.Tensor[[N_HEADS], pl.FP32],
    freqs_cos: pl.Tensor[[T, ROPE_DIM], pl.BF16],
    freqs_sin: pl.Tensor[[T, ROPE_DIM], pl.BF16],
    wo_a: pl.Tensor[[O_GROUPS, O_LORA, O_GROUP_IN], pl.BF16],
    wo_b: pl.Tensor[[D, LORA], pl.INT8],
    wo_b_scale: pl.Tensor[[D], pl.FP32],
    attn_out: pl.Out[pl.Tensor[[T, D], pl.BF16]],
):
    return decode_sparse_attn_csa_inline(
        q,
        ori_kv,
        ori_block_table,
        mtp_kv_overlay,
        cmp_kv,
        cmp_block_table,
        cmp_sparse_indices,
        valid_block_mask,
        attn_sink,
        freqs_cos,
        freqs_sin,
        wo_a,
        wo_b,
        wo_b_scale,
        attn_out,
    )
