"""decode_compressor_ratio4: one pooled KV row per 4 positions, overlapping windows. Contract:
decode_compressor_indexer.md, section 2.

    project    FP32 rows of both projections on the cube     block: BOX rows x PROJECT_COLS columns, by PROJECT_CHUNK
    scatter    kv and biased score into the paged state      block: one request, by COLS
    pool       running softmax over the window of 8 rows     block: one request x COLS columns
    normalise  RMSNorm, then rotation of the last lanes      block: ROWS requests, by COLS
    store      the row as FP32 and, rounded once, as BF16    block: one request, by COLS

A request closes at most one block in a step: S is at most RATIO. Rows of a request that closes none are rubbish up to
the store, which leaves them out; every stage between works on rows by themselves. The pools are written through slot
mappings (-1: not at all) and read through the block table, by absolute position.

The stages are also those of decode_compressor_ratio128 and decode_indexer_compressor, which have a pool or a store of
their own: WIDTH is the width of a projection, of a state's half or of a row, RATIO_DYN the positions of a block.
"""

import pypto.language as pl

from kernels.sizes import (
    BLOCK_SIZE,
    CMP_BLOCK_NUM,
    FP32_NEG_INF,
    HEAD_DIM,
    RMS_EPS,
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
ROWS = 8  # requests that are normalised at once
COLS = ROPE_DIM  # so that the last chunk of a row is the one that rotates
ROPE_HALF = ROPE_DIM // 2
PROJECT_COLS = 64

if S > RATIO:
    raise ValueError(f"decode_compressor_ratio4: S = {S} tokens can close more than one block of {RATIO}")
if HEAD_DIM % COLS or COLS % 32:
    raise ValueError(f"decode_compressor_ratio4: ROPE_DIM = {COLS} is no multiple of 32 that divides {HEAD_DIM}")

OUT = 2 * HEAD_DIM
BOXES = (T + BOX - 1) // BOX
T_PADDED = BOXES * BOX
B_PADDED = (B + BOX - 1) // BOX * BOX
PROJECT_CHUNK = tile(D, multiple=16, pr672=512)
STATE_ROWS = STATE4_BLOCK_NUM * STATE4_PAGE
CACHE_ROWS = CMP_BLOCK_NUM * BLOCK_SIZE
HEAD_DIM_INV = 1.0 / HEAD_DIM

WIDTH = pl.dynamic("WIDTH")
STATE_WIDTH = pl.dynamic("STATE_WIDTH")
STATE_DYN = pl.dynamic("STATE_DYN")
CACHE_DYN = pl.dynamic("CACHE_DYN")
RATIO_DYN = pl.dynamic("RATIO_DYN")


@pl.jit.inline
def project(
    x: pl.Tensor[[T, D], pl.BF16],
    wkv: pl.Tensor[[WIDTH, D], pl.BF16],
    wgate: pl.Tensor[[WIDTH, D], pl.BF16],
    kv_projected: pl.Out[pl.Tensor[[T_PADDED, WIDTH], pl.FP32]],
    score_projected: pl.Out[pl.Tensor[[T_PADDED, WIDTH], pl.FP32]],
):
    """x times both weights, which are stored [out, in], added in ascending K order. Pad rows are rubbish."""
    for block in pl.spmd(BOXES * (WIDTH // PROJECT_COLS), name_hint="compressor_project"):
        t0 = block // (WIDTH // PROJECT_COLS) * BOX
        n0 = block % (WIDTH // PROJECT_COLS) * PROJECT_COLS
        rows = pl.min(BOX, T - t0)
        x_first = pl.slice(x, [BOX, PROJECT_CHUNK], [t0, 0], valid_shape=[rows, PROJECT_CHUNK])
        kv = pl.matmul(x_first, wkv[n0 : n0 + PROJECT_COLS, 0:PROJECT_CHUNK], out_dtype=pl.FP32, b_trans=True)
        score = pl.matmul(x_first, wgate[n0 : n0 + PROJECT_COLS, 0:PROJECT_CHUNK], out_dtype=pl.FP32, b_trans=True)
        for c in pl.pipeline(1, D // PROJECT_CHUNK, stage=2):
            d0 = c * PROJECT_CHUNK
            x_next = pl.slice(x, [BOX, PROJECT_CHUNK], [t0, d0], valid_shape=[rows, PROJECT_CHUNK])
            kv = pl.matmul_acc(kv, x_next, wkv[n0 : n0 + PROJECT_COLS, d0 : d0 + PROJECT_CHUNK], b_trans=True)
            score = pl.matmul_acc(score, x_next, wgate[n0 : n0 + PROJECT_COLS, d0 : d0 + PROJECT_CHUNK], b_trans=True)
        kv_projected[t0 : t0 + BOX, n0 : n0 + PROJECT_COLS] = kv
        score_projected[t0 : t0 + BOX, n0 : n0 + PROJECT_COLS] = score


@pl.jit.inline
def scatter(
    kv_projected: pl.Tensor[[T_PADDED, WIDTH], pl.FP32],
    score_projected: pl.Tensor[[T_PADDED, WIDTH], pl.FP32],
    ape: pl.Tensor[[RATIO_DYN, WIDTH], pl.FP32],
    position_ids: pl.Tensor[[B, S], pl.INT32],
    state_slot_mapping: pl.Tensor[[B, S], pl.INT64],
    state: pl.InOut[pl.Tensor[[STATE_DYN, STATE_WIDTH], pl.FP32]],
):
    """State rows [kv | score] of all tokens that have a slot; the score carries the encoding of its own position."""
    for b in pl.spmd(B, name_hint="compressor_scatter"):
        for s in pl.pipeline(S, stage=2):
            slot = pl.cast(pl.read(state_slot_mapping, [b, s]), pl.INDEX)
            if slot >= 0:
                phase = pl.cast(pl.read(position_ids, [b, s]), pl.INDEX) % RATIO_DYN
                t = b * S + s
                for c in pl.range(WIDTH // COLS):
                    n0 = c * COLS
                    m0 = WIDTH + n0
                    state[slot : slot + 1, n0 : n0 + COLS] = kv_projected[t : t + 1, n0 : n0 + COLS]
                    score = score_projected[t : t + 1, n0 : n0 + COLS]
                    state[slot : slot + 1, m0 : m0 + COLS] = pl.add(score, ape[phase : phase + 1, n0 : n0 + COLS])


@pl.jit.inline
def state_row(
    block_table: pl.Tensor[[B, STATE4_MAX_BLOCKS], pl.INT32],
    b: pl.Scalar[pl.INDEX],
    position: pl.Scalar[pl.INDEX],
):
    """Flat row of a position of request b."""
    page = pl.cast(pl.read(block_table, [b, position // STATE4_PAGE]), pl.INDEX)
    return page * STATE4_PAGE + position % STATE4_PAGE


@pl.jit.inline
def fold(
    largest: pl.Tensor[[1, COLS], pl.FP32],
    weight: pl.Tensor[[1, COLS], pl.FP32],
    total: pl.Tensor[[1, COLS], pl.FP32],
    score: pl.Tensor[[1, COLS], pl.FP32],
    kv: pl.Tensor[[1, COLS], pl.FP32],
):
    """One more row of a running softmax: largest score, sum of weights and weighted sum so far."""
    raised = pl.maximum(largest, score)
    kept = pl.exp(pl.sub(largest, raised))
    added = pl.exp(pl.sub(score, raised))
    new_weight = pl.add(pl.mul(kept, weight), added)
    new_total = pl.add(pl.mul(total, kept), pl.mul(kv, added))
    return raised, new_weight, new_total


@pl.jit.inline
def pool_overlapping(
    state: pl.Tensor[[STATE_DYN, STATE_WIDTH], pl.FP32],
    block_table: pl.Tensor[[B, STATE4_MAX_BLOCKS], pl.INT32],
    position_ids: pl.Tensor[[B, S], pl.INT32],
    pooled: pl.Out[pl.Tensor[[B_PADDED, WIDTH], pl.FP32]],
):
    """Softmax per column over the front halves of the previous block and the back halves of the one that closes.

    A state row is [kv front | kv back | score front | score back]. The fold starts from the closing row; the first
    block of a request has no previous one.
    """
    for block in pl.spmd(B * (WIDTH // COLS), name_hint="compressor_pool"):
        b = block // (WIDTH // COLS)
        n0 = block % (WIDTH // COLS) * COLS
        kv_back = WIDTH + n0
        score_front = 2 * WIDTH + n0
        score_back = 3 * WIDTH + n0
        first = pl.cast(pl.read(position_ids, [b, 0]), pl.INDEX)
        phase = first % RATIO
        if phase + S >= RATIO:
            start = first - phase
            closing = state_row(block_table, b, start + RATIO - 1)
            largest = state[closing : closing + 1, score_back : score_back + COLS]
            weight = pl.full([1, COLS], dtype=pl.FP32, value=1.0)
            total = state[closing : closing + 1, kv_back : kv_back + COLS]
            for i in pl.range(RATIO):
                score = pl.full([1, COLS], dtype=pl.FP32, value=FP32_NEG_INF)
                kv = pl.full([1, COLS], dtype=pl.FP32, value=0.0)
                if start >= RATIO:
                    front = state_row(block_table, b, start - RATIO + i)
                    score = state[front : front + 1, score_front : score_front + COLS]
                    kv = state[front : front + 1, n0 : n0 + COLS]
                largest, weight, total = fold(largest, weight, total, score, kv)
            for i in pl.range(RATIO - 1):
                back = state_row(block_table, b, start + i)
                score = state[back : back + 1, score_back : score_back + COLS]
                kv = state[back : back + 1, kv_back : kv_back + COLS]
                largest, weight, total = fold(largest, weight, total, score, kv)
            pooled[b : b + 1, n0 : n0 + COLS] = pl.div(total, weight)


@pl.jit.inline
def pair_of_lane():
    """[1, ROPE_DIM], FP32: the pair that each lane belongs to."""
    lane = pl.cast(pl.arange(0, [1, ROPE_DIM], dtype=pl.INT32), pl.FP32, mode="none")
    return pl.cast(pl.cast(pl.mul(lane, 0.5), pl.INT32, mode="trunc"), pl.FP32, mode="none")


@pl.jit.inline
def side_of_lane():
    """[1, ROPE_DIM], FP32: -1 for the even lane of a pair, +1 for the odd one."""
    lane = pl.cast(pl.arange(0, [1, ROPE_DIM], dtype=pl.INT32), pl.FP32, mode="none")
    pair = pair_of_lane()
    return pl.sub(pl.mul(pl.sub(lane, pl.mul(pair, 2.0)), 2.0), 1.0)


@pl.jit.inline
def per_lane(angles: pl.Tensor[[ROWS, ROPE_HALF], pl.FP32], lanes: pl.Tensor[[ROWS, ROPE_DIM], pl.FP32]):
    """cos or sin of every row, for both lanes of each pair. `lanes` gives the shape."""
    pair = pair_of_lane()
    index = pl.cast(pl.col_expand(lanes, pair), pl.INT32, mode="trunc")
    return pl.gather(angles, dim=-1, index=index)


@pl.jit.inline
def signed(lanes: pl.Tensor[[ROWS, ROPE_DIM], pl.FP32]):
    """Even lanes negated: the sign that the product with the partner has in a rotation."""
    side = side_of_lane()
    return pl.col_expand_mul(lanes, side)


@pl.jit.inline
def partners(lanes: pl.Tensor[[ROWS, ROPE_DIM], pl.FP32]):
    """Lanes 2i and 2i + 1 exchanged."""
    lane = pl.cast(pl.arange(0, [1, ROPE_DIM], dtype=pl.INT32), pl.FP32, mode="none")
    side = side_of_lane()
    index = pl.cast(pl.col_expand(lanes, pl.sub(lane, side)), pl.INT32, mode="trunc")
    return pl.gather(lanes, dim=-1, index=index)


@pl.jit.inline
def normalise(
    pooled: pl.Tensor[[B_PADDED, WIDTH], pl.FP32],
    norm_w: pl.Tensor[[WIDTH], pl.BF16],
    width_inv: pl.Scalar[pl.FP32],
    cos: pl.Tensor[[B, ROPE_HALF], pl.FP32],
    sin: pl.Tensor[[B, ROPE_HALF], pl.FP32],
    rotated: pl.Out[pl.Tensor[[B_PADDED, WIDTH], pl.FP32]],
):
    """Pooled rows over their RMS, times norm_w; then the last ROPE_DIM lanes rotated by the angles of the request."""
    gamma = pl.reshape(norm_w, [1, WIDTH])
    for block in pl.spmd((B + ROWS - 1) // ROWS, name_hint="compressor_normalise"):
        b0 = block * ROWS
        rows = pl.min(ROWS, B - b0)
        square_sum = pl.full([1, ROWS], dtype=pl.FP32, value=0.0)
        for c in pl.pipeline(WIDTH // COLS, stage=2):
            n0 = c * COLS
            chunk = pooled[b0 : b0 + ROWS, n0 : n0 + COLS]
            square_sum = pl.add(square_sum, pl.reshape(pl.row_sum(pl.mul(chunk, chunk)), [1, ROWS]))
        mean_square = pl.mul(square_sum, width_inv)
        inv_rms = pl.reshape(pl.recip(pl.sqrt(pl.add(mean_square, RMS_EPS))), [ROWS, 1])
        for c in pl.pipeline(WIDTH // COLS, stage=2):
            n0 = c * COLS
            again = pl.row_expand_mul(pooled[b0 : b0 + ROWS, n0 : n0 + COLS], inv_rms)
            scaled = pl.col_expand_mul(again, pl.cast(gamma[0:1, n0 : n0 + COLS], pl.FP32))
            if n0 == WIDTH - ROPE_DIM:
                cos_rows = pl.slice(cos, [ROWS, ROPE_HALF], [b0, 0], valid_shape=[rows, ROPE_HALF])
                sin_rows = pl.slice(sin, [ROWS, ROPE_HALF], [b0, 0], valid_shape=[rows, ROPE_HALF])
                cos_lanes = per_lane(pl.fillpad(cos_rows, pad_value=pl.PadValue.zero), scaled)
                sin_lanes = per_lane(pl.fillpad(sin_rows, pad_value=pl.PadValue.zero), scaled)
                swapped = partners(scaled)
                turned = signed(swapped)
                scaled = pl.add(pl.mul(scaled, cos_lanes), pl.mul(turned, sin_lanes))
            rotated[b0 : b0 + ROWS, n0 : n0 + COLS] = scaled


@pl.jit.inline
def store(
    rows: pl.Tensor[[B_PADDED, WIDTH], pl.FP32],
    position_ids: pl.Tensor[[B, S], pl.INT32],
    slot_mapping: pl.Tensor[[B, S], pl.INT64],
    ratio: pl.Scalar[pl.INDEX],
    kv: pl.Out[pl.Tensor[[T, WIDTH], pl.FP32]],
    cache: pl.InOut[pl.Tensor[[CACHE_DYN, WIDTH], pl.BF16]],
):
    """Rows of the requests that close a block and have a slot: FP32 at the request's first token, BF16 at the slot."""
    for b in pl.spmd(B, name_hint="compressor_store"):
        phase = pl.cast(pl.read(position_ids, [b, 0]), pl.INDEX) % ratio
        if phase + S >= ratio:
            slot = pl.cast(pl.read(slot_mapping, [b, ratio - 1 - phase]), pl.INDEX)
            if slot >= 0:
                t = b * S
                for c in pl.range(WIDTH // COLS):
                    n0 = c * COLS
                    row = rows[b : b + 1, n0 : n0 + COLS]
                    kv[t : t + 1, n0 : n0 + COLS] = row
                    cache[slot : slot + 1, n0 : n0 + COLS] = pl.cast(row, pl.BF16, mode="rint")


@pl.jit.inline
def decode_compressor_ratio4_inline(
    x: pl.Tensor[[B, S, D], pl.BF16],
    kv: pl.Out[pl.Tensor[[B, S, HEAD_DIM], pl.FP32]],
    compress_state: pl.InOut[pl.Tensor[[STATE4_BLOCK_NUM, STATE4_PAGE, 2 * OUT], pl.FP32]],
    compress_state_block_table: pl.Tensor[[B, STATE4_MAX_BLOCKS], pl.INT32],
    wkv: pl.Tensor[[OUT, D], pl.BF16],
    wgate: pl.Tensor[[OUT, D], pl.BF16],
    ape: pl.Tensor[[RATIO, OUT], pl.FP32],
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
    state = pl.reshape(compress_state, [STATE_ROWS, 2 * OUT])
    cache = pl.reshape(cmp_kv_cache, [CACHE_ROWS, HEAD_DIM])
    kv_projected = pl.create_tensor([T_PADDED, OUT], dtype=pl.FP32)
    score_projected = pl.create_tensor([T_PADDED, OUT], dtype=pl.FP32)
    pooled_rows = pl.create_tensor([B_PADDED, HEAD_DIM], dtype=pl.FP32)
    rotated_rows = pl.create_tensor([B_PADDED, HEAD_DIM], dtype=pl.FP32)

    project(x_rows, wkv, wgate, kv_projected, score_projected)
    scatter(kv_projected, score_projected, ape, position_ids, state_slot_mapping, state)
    pool_overlapping(state, compress_state_block_table, position_ids, pooled_rows)
    normalise(pooled_rows, norm_w, HEAD_DIM_INV, cos, sin, rotated_rows)
    store(rotated_rows, position_ids, cmp_slot_mapping, RATIO, kv_rows, cache)
    return kv, compress_state, cmp_kv_cache


@pl.jit
def decode_compressor_ratio4(
    x: pl.Tensor[[B, S, D], pl.BF16],
    kv: pl.Out[pl.Tensor[[B, S, HEAD_DIM], pl.FP32]],
    compress_state: pl.InOut[pl.Tensor[[STATE4_BLOCK_NUM, STATE4_PAGE, 2 * OUT], pl.FP32]],
    compress_state_block_table: pl.Tensor[[B, STATE4_MAX_BLOCKS], pl.INT32],
    wkv: pl.Tensor[[OUT, D], pl.BF16],
    wgate: pl.Tensor[[OUT, D], pl.BF16],
    ape: pl.Tensor[[RATIO, OUT], pl.FP32],
    norm_w: pl.Tensor[[HEAD_DIM], pl.BF16],
    cos: pl.Tensor[[B, ROPE_HALF], pl.FP32],
    sin: pl.Tensor[[B, ROPE_HALF], pl.FP32],
    cmp_kv_cache: pl.InOut[pl.Tensor[[CMP_BLOCK_NUM, BLOCK_SIZE, 1, HEAD_DIM], pl.BF16]],
    position_ids: pl.Tensor[[B, S], pl.INT32],
    cmp_slot_mapping: pl.Tensor[[B, S], pl.INT64],
    state_slot_mapping: pl.Tensor[[B, S], pl.INT64],
):
    return decode_compressor_ratio4_inline(
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
