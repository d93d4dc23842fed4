"""decode_sparse_attn_swa: attention over window and overlay. Contract: decode_attention.md, section 4.

One scope per stage, ordered by the data alone (no barrier):

    overlay    the rows of this step, zero-padded to a block            one task
    attend     scores, softmax and weighted sum of each block of KEYS   block: one token, by HEAD_BATCH heads
    merge      blocks merged, sink, division, rotation back, BF16       block: one token x HEAD_TILE heads
    project    packed heads times wo_a, FP32                            block: one group x LORA_COLS columns
    quantise   INT8 codes and scale of a token's group                  block: TOKENS rows x one group
    expand     INT8 matmul with wo_b, exact in INT32                    block: one group x EXPAND_COLS columns
    output     groups added in ascending order, scaled, BF16 rint       block: TOKENS rows x OUT_COLS columns

From `attend` on the stages are those of all three forms of sparse attention; the other two splice them from here. A
probability is rounded to BF16 relative to the maximum of its block of KEYS rows, and the sum it is divided by is that
of the unrounded ones. A row that a token does not see has the bias MASKED, which absorbs any score: its probability is
zero, and a block of such rows alone vanishes in the merge. T is a multiple of TOKENS up to BOX.
"""

import pypto.language as pl

from kernels.sizes import (
    BLOCK_SIZE,
    CMP_BLOCK_NUM,
    CMP_MAX_BLOCKS,
    HEAD_DIM,
    INT8_AMAX_EPS,
    INT8_SCALE_MAX,
    N_HEADS,
    NOPE_DIM,
    O_GROUP_IN,
    O_GROUPS,
    O_LORA,
    ORI_BLOCK_NUM,
    ORI_MAX_BLOCKS,
    ROPE_DIM,
    SOFTMAX_SCALE,
    WIN,
    B,
    D,
    S,
    T,
    tile,
)

TOKENS = 8
BOX = 16  # rows of a cube tile
KEYS = 128  # rows of a block: part of the contract, since probabilities are rounded per block
BLOCKS = 2  # the ring page and the overlay
MASKED = 1.0e20

if WIN != KEYS or BLOCK_SIZE != KEYS or ORI_MAX_BLOCKS != 1:
    raise ValueError(f"sparse attention: a window of {WIN} rows is not one page of {KEYS}")
if T % TOKENS or T > BOX:
    raise ValueError(f"sparse attention: T = {T} is not a multiple of {TOKENS} up to {BOX}")
if NOPE_DIM + ROPE_DIM != HEAD_DIM or ROPE_DIM % 32:
    raise ValueError(f"sparse attention: NOPE_DIM = {NOPE_DIM} and ROPE_DIM = {ROPE_DIM} do not fill {HEAD_DIM}")
if N_HEADS % O_GROUPS:
    raise ValueError(f"sparse attention: {N_HEADS} heads do not make {O_GROUPS} groups")

ROPE_HALF = ROPE_DIM // 2
GROUP_HEADS = N_HEADS // O_GROUPS
HEAD_BATCH = tile(N_HEADS, multiple=8, pr672=32)
HEAD_BOX = max(HEAD_BATCH, BOX)
HEAD_TILE = tile(N_HEADS, multiple=8, pr672=16)
HEAD_TILES = N_HEADS // HEAD_TILE
TILE_GROUPS = HEAD_TILE // GROUP_HEADS

if HEAD_BOX % BOX:
    raise ValueError(f"sparse attention: a batch of {HEAD_BATCH} heads is not a multiple of {BOX}")
if HEAD_TILE % GROUP_HEADS:
    raise ValueError(f"sparse attention: a tile of {HEAD_TILE} heads cuts a group of {GROUP_HEADS}")

LORA = O_GROUPS * O_LORA
LORA_COLS = tile(O_LORA, multiple=16, pr672=128)
LORA_BLOCKS = O_LORA // LORA_COLS
PROJECT_CHUNK = tile(O_GROUP_IN, multiple=16, pr672=256)
QUANT_CHUNK = tile(O_LORA, multiple=32, pr672=512)
EXPAND_COLS = tile(D, multiple=64, pr672=1024)
EXPAND_BLOCKS = D // EXPAND_COLS
EXPAND_TILE = tile(EXPAND_COLS, multiple=32, pr672=256)
EXPAND_CHUNK = tile(O_LORA, multiple=32, pr672=256)
OUT_COLS = tile(D, multiple=32, pr672=512)
OUT_BLOCKS = D // OUT_COLS

ROWS_DYN = pl.dynamic("ROWS_DYN")  # T x blocks x N_HEADS


@pl.jit.inline
def attend_block(
    heads: pl.Tensor[[T * N_HEADS, HEAD_DIM], pl.BF16],
    kv_rows: pl.Tensor[[KEYS, HEAD_DIM], pl.BF16],
    bias: pl.Tensor[[1, KEYS], pl.FP32],
    block_max: pl.Out[pl.Tensor[[ROWS_DYN, 1], pl.FP32]],
    block_sum: pl.Out[pl.Tensor[[ROWS_DYN, 1], pl.FP32]],
    block_out: pl.Out[pl.Tensor[[ROWS_DYN, HEAD_DIM], pl.FP32]],
    t: pl.Scalar[pl.INDEX],
    row0: pl.Scalar[pl.INDEX],
):
    """All heads of token t over one block of rows, which are keys and values: maximum of the scores, sum of the
    probabilities, sum of the values, into N_HEADS rows from row0 on."""
    for batch in pl.pipeline(N_HEADS // HEAD_BATCH, stage=2):
        head0 = t * N_HEADS + batch * HEAD_BATCH
        row = row0 + batch * HEAD_BATCH
        query = pl.slice(heads, [HEAD_BOX, HEAD_DIM], [head0, 0], valid_shape=[HEAD_BATCH, HEAD_DIM])
        products = pl.matmul(query, kv_rows, out_dtype=pl.FP32, b_trans=True)
        scores = pl.col_expand_add(pl.mul(products, SOFTMAX_SCALE), bias)
        score_max = pl.row_max(scores)
        weights = pl.exp(pl.row_expand_sub(scores, score_max))
        block_max[row : row + HEAD_BATCH, 0:1] = score_max
        block_sum[row : row + HEAD_BATCH, 0:1] = pl.row_sum(weights)
        rounded = pl.cast(weights, pl.BF16, mode="rint")
        block_out[row : row + HEAD_BATCH, 0:HEAD_DIM] = pl.matmul(rounded, kv_rows, out_dtype=pl.FP32)


@pl.jit.inline
def merge_blocks(
    block_max: pl.Tensor[[ROWS_DYN, 1], pl.FP32],
    block_sum: pl.Tensor[[ROWS_DYN, 1], pl.FP32],
    block_out: pl.Tensor[[ROWS_DYN, HEAD_DIM], pl.FP32],
    attn_sink: pl.Tensor[[N_HEADS], pl.FP32],
    freqs_cos: pl.Tensor[[T, ROPE_DIM], pl.BF16],
    freqs_sin: pl.Tensor[[T, ROPE_DIM], pl.BF16],
    o_packed: pl.Out[pl.Tensor[[O_GROUPS * T, O_GROUP_IN], pl.BF16]],
):
    """Attention of every head from its blocks, in ascending order; the rotation of the values undone; row g*T + t of
    `o_packed` holds the heads of group g of token t."""
    rows = pl.tensor.dim(block_max, 0)
    blocks = rows // (T * N_HEADS)
    max_rows = pl.reshape(block_max, [rows // HEAD_TILE, HEAD_TILE])
    sum_rows = pl.reshape(block_sum, [rows // HEAD_TILE, HEAD_TILE])
    sinks = pl.reshape(attn_sink, [1, N_HEADS])
    packed_heads = pl.reshape(o_packed, [O_GROUPS * T * GROUP_HEADS, HEAD_DIM])

    for block in pl.spmd(T * HEAD_TILES, name_hint="sparse_attn_merge"):
        t = block // HEAD_TILES
        head_tile = block % HEAD_TILES
        head0 = head_tile * HEAD_TILE
        first = t * blocks * HEAD_TILES + head_tile
        running_max = max_rows[first : first + 1, 0:HEAD_TILE]
        running_sum = sum_rows[first : first + 1, 0:HEAD_TILE]
        out = block_out[first * HEAD_TILE : first * HEAD_TILE + HEAD_TILE, 0:HEAD_DIM]
        for k in pl.range(1, blocks):
            row = first + k * HEAD_TILES
            next_max = max_rows[row : row + 1, 0:HEAD_TILE]
            new_max = pl.maximum(running_max, next_max)
            old_weight = pl.exp(pl.sub(running_max, new_max))
            next_weight = pl.exp(pl.sub(next_max, new_max))
            next_sum = pl.mul(next_weight, sum_rows[row : row + 1, 0:HEAD_TILE])
            running_sum = pl.add(pl.mul(old_weight, running_sum), next_sum)
            next_out = block_out[row * HEAD_TILE : row * HEAD_TILE + HEAD_TILE, 0:HEAD_DIM]
            next_part = pl.row_expand_mul(next_out, pl.reshape(next_weight, [HEAD_TILE, 1]))
            old_part = pl.row_expand_mul(out, pl.reshape(old_weight, [HEAD_TILE, 1]))
            out = pl.add(old_part, next_part)
            running_max = new_max
        sink_weight = pl.exp(pl.sub(sinks[0:1, head0 : head0 + HEAD_TILE], running_max))
        total = pl.add(running_sum, sink_weight)
        y = pl.row_expand_div(out, pl.reshape(total, [HEAD_TILE, 1]))

        nope = pl.cast(y[0:HEAD_TILE, 0:NOPE_DIM], pl.BF16, mode="rint")
        rope = y[0:HEAD_TILE, NOPE_DIM:HEAD_DIM]
        even = pl.gather(rope, mask_pattern=pl.tile.MaskPattern.P0101)
        odd = pl.gather(rope, mask_pattern=pl.tile.MaskPattern.P1010)
        cos = pl.cast(freqs_cos[t : t + 1, 0:ROPE_HALF], pl.FP32)
        sin = pl.cast(freqs_sin[t : t + 1, 0:ROPE_HALF], pl.FP32)
        back_even = pl.add(pl.col_expand_mul(even, cos), pl.col_expand_mul(odd, sin))
        back_odd = pl.sub(pl.col_expand_mul(odd, cos), pl.col_expand_mul(even, sin))
        blank = pl.full([HEAD_TILE, ROPE_DIM], dtype=pl.BF16, value=0.0)
        half_filled = pl.tensor.scatter(
            pl.cast(back_even, pl.BF16, mode="rint"), mask_pattern=pl.tile.MaskPattern.P0101, dst=blank
        )
        rotated = pl.tensor.scatter(
            pl.cast(back_odd, pl.BF16, mode="rint"), mask_pattern=pl.tile.MaskPattern.P1010, dst=half_filled
        )

        for i in pl.unroll(TILE_GROUPS):
            group = head_tile * TILE_GROUPS + i
            packed0 = (group * T + t) * GROUP_HEADS
            nope_group = pl.slice(nope, [GROUP_HEADS, NOPE_DIM], [i * GROUP_HEADS, 0])
            rope_group = pl.slice(rotated, [GROUP_HEADS, ROPE_DIM], [i * GROUP_HEADS, 0])
            packed_heads[packed0 : packed0 + GROUP_HEADS, 0:NOPE_DIM] = nope_group
            packed_heads[packed0 : packed0 + GROUP_HEADS, NOPE_DIM:HEAD_DIM] = rope_group


@pl.jit.inline
def output_projection(
    o_packed: pl.Tensor[[O_GROUPS * T, O_GROUP_IN], pl.BF16],
    wo_a: pl.Tensor[[O_GROUPS, O_LORA, O_GROUP_IN], pl.BF16],
    wo_b: pl.Tensor[[D, LORA], pl.INT8],
    wo_b_scale: pl.Tensor[[D], pl.FP32],
    attn_out: pl.Out[pl.Tensor[[T, D], pl.BF16]],
):
    """Packed heads through wo_a, quantised per token and group, through wo_b, added over the groups."""
    down = pl.reshape(wo_a, [LORA, O_GROUP_IN])
    column_scale = pl.reshape(wo_b_scale, [1, D])
    o_r = pl.create_tensor([T, LORA], dtype=pl.FP32)
    o_codes = pl.create_tensor([T, LORA], dtype=pl.INT8)
    o_scale = pl.create_tensor([T, O_GROUPS], dtype=pl.FP32)
    partials = pl.create_tensor([T, O_GROUPS * D], dtype=pl.INT32)

    for block in pl.spmd(O_GROUPS * LORA_BLOCKS, name_hint="sparse_attn_project"):
        group = block // LORA_BLOCKS
        n0 = block * LORA_COLS
        o_first = pl.slice(o_packed, [BOX, PROJECT_CHUNK], [group * T, 0], valid_shape=[T, PROJECT_CHUNK])
        w_first = down[n0 : n0 + LORA_COLS, 0:PROJECT_CHUNK]
        acc = pl.matmul(o_first, w_first, out_dtype=pl.FP32, b_trans=True)
        for c in pl.pipeline(1, O_GROUP_IN // PROJECT_CHUNK, stage=2):
            k0 = c * PROJECT_CHUNK
            o_next = pl.slice(o_packed, [BOX, PROJECT_CHUNK], [group * T, k0], valid_shape=[T, PROJECT_CHUNK])
            w_next = down[n0 : n0 + LORA_COLS, k0 : k0 + PROJECT_CHUNK]
            acc = pl.matmul_acc(acc, o_next, w_next, b_trans=True)
        o_r[0:T, n0 : n0 + LORA_COLS] = acc

    for block in pl.spmd(T // TOKENS * O_GROUPS, name_hint="sparse_attn_quantise"):
        t0 = block // O_GROUPS * TOKENS
        group = block % O_GROUPS
        amax = pl.full([1, TOKENS], dtype=pl.FP32, value=INT8_AMAX_EPS)
        for c in pl.pipeline(O_LORA // QUANT_CHUNK, stage=2):
            n0 = group * O_LORA + c * QUANT_CHUNK
            chunk_max = pl.row_max(pl.abs(o_r[t0 : t0 + TOKENS, n0 : n0 + QUANT_CHUNK]))
            amax = pl.maximum(amax, pl.reshape(chunk_max, [1, TOKENS]))
        gain = pl.div(pl.full([1, TOKENS], dtype=pl.FP32, value=INT8_SCALE_MAX), amax)
        gain_column = pl.reshape(gain, [TOKENS, 1])
        for c in pl.pipeline(O_LORA // QUANT_CHUNK, stage=2):
            n0 = group * O_LORA + c * QUANT_CHUNK
            scaled = pl.row_expand_mul(o_r[t0 : t0 + TOKENS, n0 : n0 + QUANT_CHUNK], gain_column)
            code = pl.cast(pl.cast(scaled, pl.INT32, mode="rint"), pl.FP16, mode="round")
            o_codes[t0 : t0 + TOKENS, n0 : n0 + QUANT_CHUNK] = pl.cast(code, pl.INT8, mode="trunc")
        o_scale[t0 : t0 + TOKENS, group : group + 1] = pl.reshape(pl.recip(gain), [TOKENS, 1])

    for block in pl.spmd(O_GROUPS * EXPAND_BLOCKS, name_hint="sparse_attn_expand"):
        group = block // EXPAND_BLOCKS
        r0 = group * O_LORA
        for c in pl.range(EXPAND_COLS // EXPAND_TILE):
            d0 = block % EXPAND_BLOCKS * EXPAND_COLS + c * EXPAND_TILE
            code_first = pl.slice(o_codes, [BOX, EXPAND_CHUNK], [0, r0], valid_shape=[T, EXPAND_CHUNK])
            w_first = wo_b[d0 : d0 + EXPAND_TILE, r0 : r0 + EXPAND_CHUNK]
            acc = pl.matmul(code_first, w_first, out_dtype=pl.INT32, b_trans=True)
            for k in pl.pipeline(1, O_LORA // EXPAND_CHUNK, stage=2):
                k0 = r0 + k * EXPAND_CHUNK
                code_next = pl.slice(o_codes, [BOX, EXPAND_CHUNK], [0, k0], valid_shape=[T, EXPAND_CHUNK])
                w_next = wo_b[d0 : d0 + EXPAND_TILE, k0 : k0 + EXPAND_CHUNK]
                acc = pl.matmul_acc(acc, code_next, w_next, b_trans=True)
            partials[0:T, group * D + d0 : group * D + d0 + EXPAND_TILE] = acc

    for block in pl.spmd(T // TOKENS * OUT_BLOCKS, name_hint="sparse_attn_output"):
        t0 = block // OUT_BLOCKS * TOKENS
        d0 = block % OUT_BLOCKS * OUT_COLS
        total = pl.full([TOKENS, OUT_COLS], dtype=pl.FP32, value=0.0)
        for group in pl.pipeline(O_GROUPS, stage=2):
            n0 = group * D + d0
            partial = pl.cast(partials[t0 : t0 + TOKENS, n0 : n0 + OUT_COLS], pl.FP32, mode="none")
            scaled = pl.row_expand_mul(partial, o_scale[t0 : t0 + TOKENS, group : group + 1])
            total = pl.add(total, scaled)
        out = pl.col_expand_mul(total, column_scale[0:1, d0 : d0 + OUT_COLS])
        attn_out[t0 : t0 + TOKENS, d0 : d0 + OUT_COLS] = pl.cast(out, pl.BF16, mode="rint")


@pl.jit.inline
def decode_sparse_attn_swa_inline(
    q: pl.Tensor[[T, N_HEADS, HEAD_DIM], pl.BF16],
    ori_kv: pl.Tensor[[ORI_BLOCK_NUM, BLOCK_SIZE, 1, HEAD_DIM], pl.BF16],
    ori_block_table: pl.Tensor[[B, ORI_MAX_BLOCKS], pl.INT32],
    mtp_kv_overlay: pl.Tensor[[T, HEAD_DIM], pl.BF16],
    cmp_kv: pl.Tensor[[CMP_BLOCK_NUM, BLOCK_SIZE, 1, HEAD_DIM], pl.BF16],
    cmp_block_table: pl.Tensor[[B, CMP_MAX_BLOCKS], pl.INT32],
    cmp_sparse_indices: pl.Tensor[[T, WIN], pl.INT32],
    win_bias: pl.Tensor[[T, BLOCKS * KEYS], pl.FP32],
    attn_sink: pl.Tensor[[N_HEADS], pl.FP32],
    freqs_cos: pl.Tensor[[T, ROPE_DIM], pl.BF16],
    freqs_sin: pl.Tensor[[T, ROPE_DIM], pl.BF16],
    wo_a: pl.Tensor[[O_GROUPS, O_LORA, O_GROUP_IN], pl.BF16],
    wo_b: pl.Tensor[[D, LORA], pl.INT8],
    wo_b_scale: pl.Tensor[[D], pl.FP32],
    attn_out: pl.Out[pl.Tensor[[T, D], pl.BF16]],
):
    """cmp_kv, cmp_block_table and cmp_sparse_indices are not read: what a token sees is in win_bias."""
    heads = pl.reshape(q, [T * N_HEADS, HEAD_DIM])
    ring = pl.reshape(ori_kv, [ORI_BLOCK_NUM * BLOCK_SIZE, HEAD_DIM])
    overlay = pl.create_tensor([KEYS, HEAD_DIM], dtype=pl.BF16)
    block_max = pl.create_tensor([T * BLOCKS * N_HEADS, 1], dtype=pl.FP32)
    block_sum = pl.create_tensor([T * BLOCKS * N_HEADS, 1], dtype=pl.FP32)
    block_out = pl.create_tensor([T * BLOCKS * N_HEADS, HEAD_DIM], dtype=pl.FP32)
    o_packed = pl.create_tensor([O_GROUPS * T, O_GROUP_IN], dtype=pl.BF16)

    with pl.at(level=pl.Level.CORE_GROUP, name_hint="swa_overlay"):
        overlay[0:T, 0:HEAD_DIM] = mtp_kv_overlay[0:T, 0:HEAD_DIM]
        blank = pl.full([TOKENS, HEAD_DIM], dtype=pl.BF16, value=0.0)
        for r in pl.range(T // TOKENS, KEYS // TOKENS):
            overlay[r * TOKENS : r * TOKENS + TOKENS, 0:HEAD_DIM] = blank

    for t in pl.spmd(T, name_hint="swa_attend"):
        page = pl.cast(pl.read(ori_block_table, [t // S, 0]), pl.INDEX) * BLOCK_SIZE
        ring_rows = ring[page : page + KEYS, 0:HEAD_DIM]
        ring_bias = win_bias[t : t + 1, 0:KEYS]
        attend_block(heads, ring_rows, ring_bias, block_max, block_sum, block_out, t, t * BLOCKS * N_HEADS)
        overlay_rows = overlay[0:KEYS, 0:HEAD_DIM]
        overlay_bias = win_bias[t : t + 1, KEYS : 2 * KEYS]
        attend_block(heads, overlay_rows, overlay_bias, block_max, block_sum, block_out, t, (t * BLOCKS + 1) * N_HEADS)

    merge_blocks(block_max, block_sum, block_out, attn_sink, freqs_cos, freqs_sin, o_packed)
    output_projection(o_packed, wo_a, wo_b, wo_b_scale, attn_out)
    return attn_out


@pl.jit
def decode_sparse_attn_swa(
    q: pl.Tensor[[T, N_HEADS, HEAD_DIM], pl.BF16],
    ori_kv: pl.Tensor[[ORI_BLOCK_NUM, BLOCK_SIZE, 1, HEAD_DIM], pl.BF16],
    ori_block_table: pl.Tensor[[B, ORI_MAX_BLOCKS], pl.INT32],
    mtp_kv_overlay: pl.Tensor[[T, HEAD_DIM], pl.BF16],
    cmp_kv: pl.Tensor[[CMP_BLOCK_NUM, BLOCK_SIZE, 1, HEAD_DIM], pl.BF16],
    cmp_block_table: pl.Tensor[[B, CMP_MAX_BLOCKS], pl.INT32],
    cmp_sparse_indices: pl.Tensor[[T, WIN], pl.INT32],
    win_bias: pl.Tensor[[T, BLOCKS * KEYS], pl.FP32],
    attn_sink: pl.Tensor[[N_HEADS], pl.FP32],
    freqs_cos: pl.Tensor[[T, ROPE_DIM], pl.BF16],
    freqs_sin: pl.Tensor[[T, ROPE_DIM], pl.BF16],
    wo_a: pl.Tensor[[O_GROUPS, O_LORA, O_GROUP_IN], pl.BF16],
    wo_b: pl.Tensor[[D, LORA], pl.INT8],
    wo_b_scale: pl.Tensor[[D], pl.FP32],
    attn_out: pl.Out[pl.Tensor[[T, D], pl.BF16]],
):
    return decode_sparse_attn_swa_inline(
        q,
        ori_kv,
        ori_block_table,
        mtp_kv_overlay,
        cmp_kv,
        cmp_block_table,
        cmp_sparse_indices,
        win_bias,
        attn_sink,
        freqs_cos,
        freqs_sin,
        wo_a,
        wo_b,
        wo_b_scale,
        attn_out,
    )
