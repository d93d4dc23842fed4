"""decode_indexer_compressor: one index key per 4 positions. Contract: decode_compressor_indexer.md, section 4.

    project, scatter, pool, normalise   as in decode_compressor_ratio4, at the width of an index head
    hadamard                            the row rounded to BF16, times the rotation on the cube
                                                                block: BOX requests x HADAMARD_COLS columns
    store                               as in decode_compressor_ratio4

The cube works on boxes of BOX rows of which those of requests that close no block are rubbish: rows are independent.
"""

import pypto.language as pl

from kernels.decode_compressor_ratio4 import normalise, pool_overlapping, project, scatter, store
from kernels.sizes import (
    BLOCK_SIZE,
    IDX_BLOCK_NUM,
    IDX_HEAD_DIM,
    ROPE_DIM,
    STATE4_BLOCK_NUM,
    STATE4_MAX_BLOCKS,
    STATE4_PAGE,
    B,
    D,
    S,
    T,
    tile,
)

RATIO = 4
BOX = 16  # rows of a cube tile
ROPE_HALF = ROPE_DIM // 2

if S > RATIO:
    raise ValueError(f"decode_indexer_compressor: S = {S} tokens can close more than one block of {RATIO}")
if IDX_HEAD_DIM % ROPE_DIM:
    raise ValueError(f"decode_indexer_compressor: ROPE_DIM = {ROPE_DIM} does not divide IDX_HEAD_DIM = {IDX_HEAD_DIM}")

OUT = 2 * IDX_HEAD_DIM
T_PADDED = (T + BOX - 1) // BOX * BOX
B_PADDED = (B + BOX - 1) // BOX * BOX
HADAMARD_COLS = tile(IDX_HEAD_DIM, multiple=16, pr672=64)
HADAMARD_TILES = IDX_HEAD_DIM // HADAMARD_COLS
STATE_ROWS = STATE4_BLOCK_NUM * STATE4_PAGE
CACHE_ROWS = IDX_BLOCK_NUM * BLOCK_SIZE
IDX_HEAD_DIM_INV = 1.0 / IDX_HEAD_DIM


@pl.jit.inline
def mix_by_hadamard(
    rows: pl.Tensor[[B_PADDED, IDX_HEAD_DIM], pl.FP32],
    hadamard: pl.Tensor[[IDX_HEAD_DIM, IDX_HEAD_DIM], pl.BF16],
    mixed: pl.Out[pl.Tensor[[B_PADDED, IDX_HEAD_DIM], pl.FP32]],
):
    """Rows rounded to BF16, times the matrix, whose row is the input lane."""
    for block in pl.spmd(B_PADDED // BOX * HADAMARD_TILES, name_hint="compressor_hadamard"):
        b0 = block // HADAMARD_TILES * BOX
        n0 = block % HADAMARD_TILES * HADAMARD_COLS
        rounded = pl.cast(rows[b0 : b0 + BOX, 0:IDX_HEAD_DIM], pl.BF16, mode="rint")
        columns = hadamard[0:IDX_HEAD_DIM, n0 : n0 + HADAMARD_COLS]
        mixed[b0 : b0 + BOX, n0 : n0 + HADAMARD_COLS] = pl.matmul(rounded, columns, out_dtype=pl.FP32)


@pl.jit.inline
def decode_indexer_compressor_inline(
    x: pl.Tensor[[B, S, D], pl.BF16],
    kv: pl.Out[pl.Tensor[[B, S, IDX_HEAD_DIM], pl.FP32]],
    compress_state: pl.InOut[pl.Tensor[[STATE4_BLOCK_NUM, STATE4_PAGE, 2 * OUT], pl.FP32]],
    compress_state_block_table: pl.Tensor[[B, STATE4_MAX_BLOCKS], pl.INT32],
    wkv: pl.Tensor[[OUT, D], pl.BF16],
    wgate: pl.Tensor[[OUT, D], pl.BF16],
    ape: pl.Tensor[[RATIO, OUT], pl.FP32],
    norm_w: pl.Tensor[[IDX_HEAD_DIM], pl.BF16],
    cos: pl.Tensor[[B, ROPE_HALF], pl.FP32],
    sin: pl.Tensor[[B, ROPE_HALF], pl.FP32],
    hadamard: pl.Tensor[[IDX_HEAD_DIM, IDX_HEAD_DIM], pl.BF16],
    idx_kv_cache: pl.InOut[pl.Tensor[[IDX_BLOCK_NUM, BLOCK_SIZE, 1, IDX_HEAD_DIM], pl.BF16]],
    position_ids: pl.Tensor[[B, S], pl.INT32],
    idx_slot_mapping: pl.Tensor[[B, S], pl.INT64],
    inner_state_slot_mapping: pl.Tensor[[B, S], pl.INT64],
):
    x_rows = pl.reshape(x, [T, D])
    kv_rows = pl.reshape(kv, [T, IDX_HEAD_DIM])
    state = pl.reshape(compress_state, [STATE_ROWS, 2 * OUT])
    cache = pl.reshape(idx_kv_cache, [CACHE_ROWS, IDX_HEAD_DIM])
    kv_projected = pl.create_tensor([T_PADDED, OUT], dtype=pl.FP32)
    score_projected = pl.create_tensor([T_PADDED, OUT], dtype=pl.FP32)
    pooled_rows = pl.create_tensor([B_PADDED, IDX_HEAD_DIM], dtype=pl.FP32)
    rotated_rows = pl.create_tensor([B_PADDED, IDX_HEAD_DIM], dtype=pl.FP32)
    mixed_rows = pl.create_tensor([B_PADDED, IDX_HEAD_DIM], dtype=pl.FP32)

    project(x_rows, wkv, wgate, kv_projected, score_projected)
    scatter(kv_projected, score_projected, ape, position_ids, inner_state_slot_mapping, state)
    pool_overlapping(state, compress_state_block_table, position_ids, pooled_rows)
    normalise(pooled_rows, norm_w, IDX_HEAD_DIM_INV, cos, sin, rotated_rows)
    mix_by_hadamard(rotated_rows, hadamard, mixed_rows)
    store(mixed_rows, position_ids, idx_slot_mapping, RATIO, kv_rows, cache)
    return kv, compress_state, idx_kv_cache


@pl.jit
def decode_indexer_compressor(
    x: pl.Tensor[[B, S, D], pl.BF16],
    kv: pl.Out[pl.Tensor[[B, S, IDX_HEAD_DIM], pl.FP32]],
    compress_state: pl.InOut[pl.Tensor[[STATE4_BLOCK_NUM, STATE4_PAGE, 2 * OUT], pl.FP32]],
    compress_state_block_table: pl.Tensor[[B, STATE4_MAX_BLOCKS], pl.INT32],
    wkv: pl.Tensor[[OUT, D], pl.BF16],
    wgate: pl.Tensor[[OUT, D], pl.BF16],
    ape: pl.Tensor[[RATIO, OUT], pl.FP32],
    norm_w: pl.Tensor[[IDX_HEAD_DIM], pl.BF16],
    cos: pl.Tensor[[B, ROPE_HALF], pl.FP32],
    sin: pl.Tensor[[B, ROPE_HALF], pl.FP32],
    hadamard: pl.Tensor[[IDX_HEAD_DIM, IDX_HEAD_DIM], pl.BF16],
    idx_kv_cache: pl.InOut[pl.Tensor[[IDX_BLOCK_NUM, BLOCK_SIZE, 1, IDX_HEAD_DIM], pl.BF16]],
    position_ids: pl.Tensor[[B, S], pl.INT32],
    idx_slot_mapping: pl.Tensor[[B, S], pl.INT64],
    inner_state_slot_mapping: pl.Tensor[[B, S], pl.INT64],
):
    return decode_indexer_compressor_inline(
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
        hadamard,
        idx_kv_cache,
        position_ids,
        idx_slot_mapping,
        inner_state_slot_mapping,
    )
