"""decode_compressor_ratio128: one pooled KV row per 128 positions. Contract: decode_compressor_indexer.md, section 3.

    project, scatter   as in decode_compressor_ratio4
    pool               softmax over the window of 128 rows    block: one request x COLS columns, by pages
    normalise, store   as in decode_compressor_ratio4

A window is whole state pages, since it starts at a multiple of RATIO. A page that the block table does not map (a
negative entry) has no weight. A request closes at most one block in a step: S is at most RATIO.
"""

import pypto.language as pl

from kernels.decode_compressor_ratio4 import normalise, project, scatter, store
from kernels.sizes import (
    BLOCK_SIZE,
    CMP_BLOCK_NUM,
    FP32_NEG_INF,
    HEAD_DIM,
    ROPE_DIM,
    STATE128_BLOCK_NUM,
    STATE128_MAX_BLOCKS,
    STATE128_PAGE,
    B,
    D,
    S,
    T,
)

RATIO = 128
BOX = 16  # rows of a cube tile
COLS = 64
ROPE_HALF = ROPE_DIM // 2

if S > RATIO:
    raise ValueError(f"decode_compressor_ratio128: S = {S} tokens can close more than one block of {RATIO}")
if RATIO % STATE128_PAGE:
    raise ValueError(f"decode_compressor_ratio128: pages of {STATE128_PAGE} rows do not fill a window of {RATIO}")
if HEAD_DIM % COLS:
    raise ValueError(f"decode_compressor_ratio128: HEAD_DIM = {HEAD_DIM} is not a multiple of {COLS}")

T_PADDED = (T + BOX - 1) // BOX * BOX
B_PADDED = (B + BOX - 1) // BOX * BOX
COL_TILES = HEAD_DIM // COLS
PAGES = RATIO // STATE128_PAGE
STATE_ROWS = STATE128_BLOCK_NUM * STATE128_PAGE
CACHE_ROWS = CMP_BLOCK_NUM * BLOCK_SIZE
HEAD_DIM_INV = 1.0 / HEAD_DIM


@pl.jit.inline
def pool_window(
    state: pl.Tensor[[STATE_ROWS, 2 * HEAD_DIM], pl.FP32],
    block_table: pl.Tensor[[B, STATE128_MAX_BLOCKS], pl.INT32],
    position_ids: pl.Tensor[[B, S], pl.INT32],
    pooled: pl.Out[pl.Tensor[[B_PADDED, HEAD_DIM], pl.FP32]],
):
    """Softmax per column over the rows [kv | score] of the block that closes; weights by reciprocal of their sum."""
    for block in pl.spmd(B * COL_TILES, name_hint="compressor_pool"):
        b = block // COL_TILES
        n0 = block % COL_TILES * COLS
        m0 = HEAD_DIM + n0
        first = pl.cast(pl.read(position_ids, [b, 0]), pl.INDEX)
        if first % RATIO + S >= RATIO:
            score = pl.full([RATIO, COLS], dtype=pl.FP32, value=FP32_NEG_INF)
            kv = pl.full([RATIO, COLS], dtype=pl.FP32, value=0.0)
            for i in pl.pipeline(PAGES, stage=2):
                page = pl.cast(pl.read(block_table, [b, first // RATIO * PAGES + i]), pl.INDEX)
                if page >= 0:
                    row = page * STATE128_PAGE
                    r0 = i * STATE128_PAGE
                    score[r0 : r0 + STATE128_PAGE, 0:COLS] = state[row : row + STATE128_PAGE, m0 : m0 + COLS]
                    kv[r0 : r0 + STATE128_PAGE, 0:COLS] = state[row : row + STATE128_PAGE, n0 : n0 + COLS]
            weight = pl.col_expand_expdif(score, pl.col_max(score))
            share = pl.col_expand_mul(weight, pl.recip(pl.col_sum(weight)))
            pooled[b : b + 1, n0 : n0 + COLS] = pl.col_sum(pl.mul(kv, share))


@pl.jit.inline
def decode_compressor_ratio128_inline(
    x: pl.Tensor[[B, S, D], pl.BF16],
    kv: pl.Out[pl.Tensor[[B, S, HEAD_DIM], pl.FP32]],
    compress_state: pl.InOut[pl.Tensor[[STATE128_BLOCK_NUM, STATE128_PAGE, 2 * HEAD_DIM], pl.FP32]],
    compress_state_block_table: pl.Tensor[[B, STATE128_MAX_BLOCKS], pl.INT32],
    wkv: pl.Tensor[[HEAD_DIM, D], pl.BF16],
    wgate: pl.Tensor[[HEAD_DIM, D], pl.BF16],
    ape: pl.Tensor[[RATIO, HEAD_DIM], pl.FP32],
    norm_w: pl.Tensor[[HEAD_DIM], pl.BF16],
    cos: pl.Tensor[[B, ROPE_HALF], pl.FP32],
    sin: pl.Tensor[[B, ROPE_HALF], pl.FP32],
    cmp_kv_cache: pl.InOut[pl.Tensor[[CMP_BLOCK_NUM, BLOCK_SIZE, 1, HEAD_DIM], pl.BF16]],
    position_ids: pl.Tensor[[B, S], pl.INT32],
    cmp_slot_mapping: pl.Tensor[[B, S], pl.INT64],
    state_slot_mapping: pl.Tensor[[B, S], pl.INT64],
):
    x_rows = pl.reshape(x, [T, D])
    kv_rows = pl.reshape(kv, [T, HEAD_DIM])
    state = pl.reshape(compress_state, [STATE_ROWS, 2 * HEAD_DIM])
    cache = pl.reshape(cmp_kv_cache, [CACHE_ROWS, HEAD_DIM])
    kv_projected = pl.create_tensor([T_PADDED, HEAD_DIM], dtype=pl.FP32)
    score_projected = pl.create_tensor([T_PADDED, HEAD_DIM], dtype=pl.FP32)
    pooled_rows = pl.create_tensor([B_PADDED, HEAD_DIM], dtype=pl.FP32)
    rotated_rows = pl.create_tensor([B_PADDED, HEAD_DIM], dtype=pl.FP32)

    project(x_rows, wkv, wgate, kv_projected, score_projected)
    scatter(kv_projected, score_projected, ape, position_ids, state_slot_mapping, state)
    pool_window(state, compress_state_block_table, position_ids, pooled_rows)
    normalise(pooled_rows, norm_w, HEAD_DIM_INV, cos, sin, rotated_rows)
    store(rotated_rows, position_ids, cmp_slot_mapping, RATIO, kv_rows, cache)
    return kv, compress_state, cmp_kv_cache


@pl.jit
def decode_compressor_ratio128(
    x: pl.Tensor[[B, S, D], pl.BF16],
    kv: pl.Out[pl.Tensor[[B, S, HEAD_DIM], pl.FP32]],
    compress_state: pl.InOut[pl.Tensor[[STATE128_BLOCK_NUM, STATE128_PAGE, 2 * HEAD_DIM], pl.FP32]],
    compress_state_block_table: pl.Tensor[[B, STATE128_MAX_BLOCKS], pl.INT32],
    wkv: pl.Tensor[[HEAD_DIM, D], pl.BF16],
    wgate: pl.Tensor[[HEAD_DIM, D], pl.BF16],
    ape: pl.Tensor[[RATIO, HEAD_DIM], pl.FP32],
    norm_w: pl.Tensor[[HEAD_DIM], pl.BF16],
    cos: pl.Tensor[[B, ROPE_HALF], pl.FP32],
    sin: pl.Tensor[[B, ROPE_HALF], pl.FP32],
    cmp_kv_cache: pl.InOut[pl.Tensor[[CMP_BLOCK_NUM, BLOCK_SIZE, 1, HEAD_DIM], pl.BF16]],
    position_ids: pl.Tensor[[B, S], pl.INT32],
    cmp_slot_mapping: pl.Tensor[[B, S], pl.INT64],
    state_slot_mapping: pl.Tensor[[B, S], pl.INT64],
):
    return decode_compressor_ratio128_inline(
        x,
        kv,
        compress_state,
        compress_state_block_table,
        wkv,
        wgate,
        ape,
        norm_w,
        cos,
        sin,
        cmp_kv_cache,
        position_ids,
        cmp_slot_mapping,
        state_slot_mapping,
    )
