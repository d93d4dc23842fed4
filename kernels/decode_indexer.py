"""decode_indexer: scores of all visible index keys of every token, and the best of them. Contract:
decode_compressor_indexer.md, section 5.

    project_query      INT8 matmul with wq_b, exact in INT32       block: BOX rows x QUERY_COLS, by QUERY_CHUNK
    dequantise_query   scale of the token, then of the column      block: TOKENS rows x DEQUANT_COLS
    rotate_query       the last lanes of every head, BF16 rint     block: ROPE_BLOCK_ROWS heads, by ROPE_ROWS
    quantise_query     Hadamard on the cube, INT8 codes and scale  block: HADAMARD_ROWS heads
    weigh_heads        x times weights_proj, times a constant      block: BOX rows, by WEIGHTS_CHUNK
    decode_indexer_compressor   the keys of the groups that close in this step
    quantise_keys      INT8 codes and scale of the cached keys     block: a request's tiles of KEY_ROWS, one of LANES
    multiply           codes of keys times codes of heads, INT32   block: one token, by MULTIPLY_ROWS keys
    reduce             relu, weighted sum over heads, key scale    block: a token's tiles of REDUCE_ROWS, one of LANES
    select             the IDX_TOPK best of a sorted row           block: one token, by SORT_COLS scores

A token sees the first n keys of its request: those of groups that are closed at its position and lie within the
request's committed length. Scores from n on are FP32_NEG_INF, and no stage reads a key beyond n. Keys and indices are
logical: the block table turns a key's number into its row.

The tile set decides how the queries rotate. #672 makes a block of every tile of ROPE_ROWS heads and folds the sign of
the rotation into the sine; before, a block had all heads of a request and the sign went onto the lanes. The bits are
the same.

T is a multiple of TOKENS.
"""

import pypto.language as pl

from kernels.decode_compressor_ratio4 import partners, per_lane, signed
from kernels.decode_indexer_compressor import decode_indexer_compressor_inline
from kernels.sizes import (
    BLOCK_SIZE,
    FP32_NEG_INF,
    IDX_BLOCK_NUM,
    IDX_HEAD_DIM,
    IDX_MAX_BLOCKS,
    IDX_N_HEADS,
    IDX_NOPE_DIM,
    IDX_TOPK,
    IDX_WEIGHTS_SCALE,
    INT8_AMAX_EPS,
    INT8_SCALE_MAX,
    Q_LORA,
    ROPE_DIM,
    SCORE_LEN,
    STATE4_BLOCK_NUM,
    STATE4_MAX_BLOCKS,
    STATE4_PAGE,
    B,
    D,
    S,
    T,
    choose,
    tile,
)

RATIO = 4
TOKENS = 8
BOX = 16  # rows of a cube tile
LANES = 4
ROPE_HALF = ROPE_DIM // 2
OUT = 2 * IDX_HEAD_DIM
Q_COLS = IDX_N_HEADS * IDX_HEAD_DIM
Q_ROWS = T * IDX_N_HEADS
SORT_COLS = 2048 if SCORE_LEN % 2048 == 0 else 128

if T % TOKENS:
    raise ValueError(f"decode_indexer: T = {T} is not a multiple of {TOKENS}")
if SCORE_LEN % SORT_COLS:
    raise ValueError(f"decode_indexer: SCORE_LEN = {SCORE_LEN} is not a multiple of {SORT_COLS}")
if IDX_TOPK % 8 or IDX_TOPK > SCORE_LEN:
    raise ValueError(f"decode_indexer: IDX_TOPK = {IDX_TOPK} is not a multiple of 8 up to SCORE_LEN = {SCORE_LEN}")
if IDX_NOPE_DIM + ROPE_DIM != IDX_HEAD_DIM:
    raise ValueError(f"decode_indexer: {IDX_NOPE_DIM} and {ROPE_DIM} lanes do not fill a head of {IDX_HEAD_DIM}")

BOXES = (T + BOX - 1) // BOX
T_PADDED = BOXES * BOX
HEADS_PADDED = (IDX_N_HEADS + BOX - 1) // BOX * BOX
CACHE_ROWS = IDX_BLOCK_NUM * BLOCK_SIZE
QUERY_COLS = tile(Q_COLS, multiple=32, pr672=256)
QUERY_GROUPS = Q_COLS // QUERY_COLS
QUERY_CHUNK = tile(Q_LORA, multiple=32, pr672=128)
DEQUANT_COLS = tile(Q_COLS, multiple=32, pr672=512)
DEQUANT_GROUPS = Q_COLS // DEQUANT_COLS
ROPE_ROWS = tile(IDX_N_HEADS, pr672=32)
ROPE_BLOCK_ROWS = choose(pr672=ROPE_ROWS, before_pr672=S * IDX_N_HEADS)
SIGN_IN_SINE = choose(pr672=1, before_pr672=0)
HADAMARD_ROWS = tile(Q_ROWS, multiple=16, pr672=64)
WEIGHTS_CHUNK = tile(D, multiple=32, pr672=512)
KEY_ROWS = tile(BLOCK_SIZE, multiple=32, pr672=64)  # a tile lies in one page
MULTIPLY_ROWS = tile(SCORE_LEN, multiple=32, pr672=512)
REDUCE_ROWS = tile(SCORE_LEN, multiple=32, pr672=128)
REDUCE_TILES = SCORE_LEN // REDUCE_ROWS
SORT_RUN = 64  # positions of a block of 32 sorted (value, index) pairs
SORTED_PAIRS = min(IDX_TOPK, SORT_COLS)
NO_COLS = tile(SCORE_LEN - IDX_TOPK, multiple=8, pr672=512) if SCORE_LEN > IDX_TOPK else 8


@pl.jit.inline
def project_query(
    qr: pl.Tensor[[T, Q_LORA], pl.INT8],
    wq_b: pl.Tensor[[Q_LORA, Q_COLS], pl.INT8],
    q_i32: pl.Out[pl.Tensor[[T_PADDED, Q_COLS], pl.INT32]],
):
    """Products of codes, exact. Pad rows are rubbish."""
    for block in pl.spmd(BOXES * QUERY_GROUPS, name_hint="indexer_project_query"):
        t0 = block // QUERY_GROUPS * BOX
        n0 = block % QUERY_GROUPS * QUERY_COLS
        rows = pl.min(BOX, T - t0)
        qr_first = pl.slice(qr, [BOX, QUERY_CHUNK], [t0, 0], valid_shape=[rows, QUERY_CHUNK])
        acc = pl.matmul(qr_first, wq_b[0:QUERY_CHUNK, n0 : n0 + QUERY_COLS], out_dtype=pl.INT32)
        for c in pl.pipeline(1, Q_LORA // QUERY_CHUNK, stage=2):
            k0 = c * QUERY_CHUNK
            qr_next = pl.slice(qr, [BOX, QUERY_CHUNK], [t0, k0], valid_shape=[rows, QUERY_CHUNK])
            acc = pl.matmul_acc(acc, qr_next, wq_b[k0 : k0 + QUERY_CHUNK, n0 : n0 + QUERY_COLS])
        q_i32[t0 : t0 + BOX, n0 : n0 + QUERY_COLS] = acc


@pl.jit.inline
def dequantise_query(
    q_i32: pl.Tensor[[T_PADDED, Q_COLS], pl.INT32],
    qr_scale: pl.Tensor[[T, 1], pl.FP32],
    wq_b_scale: pl.Tensor[[Q_COLS], pl.FP32],
    query: pl.Out[pl.Tensor[[T, Q_COLS], pl.FP32]],
):
    """Scale of the token, then of the column, each product rounded."""
    column_scale = pl.reshape(wq_b_scale, [1, Q_COLS])
    for block in pl.spmd(T // TOKENS * DEQUANT_GROUPS, name_hint="indexer_dequantise_query"):
        t0 = block // DEQUANT_GROUPS * TOKENS
        n0 = block % DEQUANT_GROUPS * DEQUANT_COLS
        acc = pl.cast(q_i32[t0 : t0 + TOKENS, n0 : n0 + DEQUANT_COLS], pl.FP32, mode="rint")
        by_token = pl.row_expand_mul(acc, qr_scale[t0 : t0 + TOKENS, 0:1])
        by_column = pl.col_expand_mul(by_token, column_scale[0:1, n0 : n0 + DEQUANT_COLS])
        query[t0 : t0 + TOKENS, n0 : n0 + DEQUANT_COLS] = by_column


@pl.jit.inline
def rotate_query(
    heads: pl.Tensor[[Q_ROWS, IDX_HEAD_DIM], pl.FP32],
    cos: pl.Tensor[[T, ROPE_HALF], pl.FP32],
    sin: pl.Tensor[[T, ROPE_HALF], pl.FP32],
    rotated: pl.Out[pl.Tensor[[Q_ROWS, ROPE_DIM], pl.BF16]],
):
    """The last ROPE_DIM lanes of every head by the angles of its token, in a tensor of their own."""
    for block in pl.spmd(Q_ROWS // ROPE_BLOCK_ROWS, name_hint="indexer_rotate_query"):
        for r in pl.range(ROPE_BLOCK_ROWS // ROPE_ROWS):
            r0 = block * ROPE_BLOCK_ROWS + r * ROPE_ROWS
            t = r0 // IDX_N_HEADS
            shape = pl.full([1, ROPE_DIM], dtype=pl.FP32, value=0.0)
            cos_lanes = per_lane(cos[t : t + 1, 0:ROPE_HALF], shape)
            sin_lanes = per_lane(sin[t : t + 1, 0:ROPE_HALF], shape)
            lanes = heads[r0 : r0 + ROPE_ROWS, IDX_NOPE_DIM:IDX_HEAD_DIM]
            swapped = partners(lanes)
            if SIGN_IN_SINE == 1:
                signed_sin = signed(sin_lanes)
                turned = pl.col_expand_mul(swapped, signed_sin)
            else:
                signed_lanes = signed(swapped)
                turned = pl.col_expand_mul(signed_lanes, sin_lanes)
            new_lanes = pl.add(pl.col_expand_mul(lanes, cos_lanes), turned)
            rotated[r0 : r0 + ROPE_ROWS, 0:ROPE_DIM] = pl.cast(new_lanes, pl.BF16, mode="rint")


@pl.jit.inline
def quantise_query(
    heads: pl.Tensor[[Q_ROWS, IDX_HEAD_DIM], pl.FP32],
    rotated: pl.Tensor[[Q_ROWS, ROPE_DIM], pl.BF16],
    hadamard: pl.Tensor[[IDX_HEAD_DIM, IDX_HEAD_DIM], pl.BF16],
    q_codes: pl.Out[pl.Tensor[[Q_ROWS, IDX_HEAD_DIM], pl.INT8]],
    q_scale: pl.Out[pl.Tensor[[Q_ROWS, 1], pl.FP32]],
):
    """Heads times the Hadamard matrix, in two steps of K: plain lanes, rotated lanes; then codes and scale per head."""
    for block in pl.spmd(Q_ROWS // HADAMARD_ROWS, name_hint="indexer_quantise_query"):
        r0 = block * HADAMARD_ROWS
        plain = pl.cast(heads[r0 : r0 + HADAMARD_ROWS, 0:IDX_NOPE_DIM], pl.BF16, mode="rint")
        mixed = pl.matmul(plain, hadamard[0:IDX_NOPE_DIM, 0:IDX_HEAD_DIM], out_dtype=pl.FP32)
        turned = rotated[r0 : r0 + HADAMARD_ROWS, 0:ROPE_DIM]
        mixed = pl.matmul_acc(mixed, turned, hadamard[IDX_NOPE_DIM:IDX_HEAD_DIM, 0:IDX_HEAD_DIM])
        amax = pl.maximum(pl.reshape(pl.row_max(pl.abs(mixed)), [1, HADAMARD_ROWS]), INT8_AMAX_EPS)
        gain = pl.div(pl.full([1, HADAMARD_ROWS], dtype=pl.FP32, value=INT8_SCALE_MAX), amax)
        scaled = pl.row_expand_mul(mixed, pl.reshape(gain, [HADAMARD_ROWS, 1]))
        code = pl.cast(pl.cast(scaled, pl.INT32, mode="rint"), pl.FP16, mode="round")
        q_codes[r0 : r0 + HADAMARD_ROWS, 0:IDX_HEAD_DIM] = pl.cast(code, pl.INT8, mode="trunc")
        q_scale[r0 : r0 + HADAMARD_ROWS, 0:1] = pl.reshape(pl.recip(gain), [HADAMARD_ROWS, 1])


@pl.jit.inline
def weigh_heads(
    x: pl.Tensor[[T, D], pl.BF16],
    weights_proj: pl.Tensor[[D, IDX_N_HEADS], pl.BF16],
    weights: pl.Out[pl.Tensor[[T_PADDED, HEADS_PADDED], pl.FP32]],
):
    """Signed weight of every head of every token, K in ascending order; the constant is applied to the sum."""
    for box in pl.spmd(BOXES, name_hint="indexer_weigh_heads"):
        t0 = box * BOX
        rows = pl.min(BOX, T - t0)
        x_first = pl.slice(x, [BOX, WEIGHTS_CHUNK], [t0, 0], valid_shape=[rows, WEIGHTS_CHUNK])
        w_first = pl.slice(
            weights_proj, [WEIGHTS_CHUNK, HEADS_PADDED], [0, 0], valid_shape=[WEIGHTS_CHUNK, IDX_N_HEADS]
        )
        acc = pl.matmul(x_first, w_first, out_dtype=pl.FP32)
        for c in pl.pipeline(1, D // WEIGHTS_CHUNK, stage=2):
            d0 = c * WEIGHTS_CHUNK
            x_next = pl.slice(x, [BOX, WEIGHTS_CHUNK], [t0, d0], valid_shape=[rows, WEIGHTS_CHUNK])
            w_next = pl.slice(
                weights_proj, [WEIGHTS_CHUNK, HEADS_PADDED], [d0, 0], valid_shape=[WEIGHTS_CHUNK, IDX_N_HEADS]
            )
            acc = pl.matmul_acc(acc, x_next, w_next)
        weights[t0 : t0 + BOX, 0:HEADS_PADDED] = pl.mul(acc, IDX_WEIGHTS_SCALE)


@pl.jit.inline
def visible_keys(
    position_ids: pl.Tensor[[B, S], pl.INT32],
    kv_seq_lens: pl.Tensor[[B], pl.INT32],
    b: pl.Scalar[pl.INDEX],
    s: pl.Scalar[pl.INDEX],
):
    """Keys that token s of request b may see: whole groups up to its position, within the committed length."""
    closed = (pl.cast(pl.read(position_ids, [b, s]), pl.INDEX) + 1) // RATIO
    committed = pl.cast(pl.read(kv_seq_lens, [b]), pl.INDEX) // RATIO
    return pl.min(pl.min(closed, committed), SCORE_LEN)


@pl.jit.inline
def quantise_keys(
    cache: pl.Tensor[[CACHE_ROWS, IDX_HEAD_DIM], pl.BF16],
    block_table: pl.Tensor[[B, IDX_MAX_BLOCKS], pl.INT32],
    position_ids: pl.Tensor[[B, S], pl.INT32],
    kv_seq_lens: pl.Tensor[[B], pl.INT32],
    k_codes: pl.Out[pl.Tensor[[B * SCORE_LEN, IDX_HEAD_DIM], pl.INT8]],
    k_scale: pl.Out[pl.Tensor[[B * SCORE_LEN, 1], pl.FP32]],
):
    """Codes and scale of each key by itself, in logical order, as far as the last token of the request sees."""
    for block in pl.spmd(B * LANES, name_hint="indexer_quantise_keys"):
        b = block // LANES
        lane = block % LANES
        visible = visible_keys(position_ids, kv_seq_lens, b, S - 1)
        tiles = (visible + KEY_ROWS - 1) // KEY_ROWS
        for i in pl.pipeline((tiles - lane + LANES - 1) // LANES, stage=2):
            key = (lane + i * LANES) * KEY_ROWS
            page = pl.cast(pl.read(block_table, [b, key // BLOCK_SIZE]), pl.INDEX)
            row = page * BLOCK_SIZE + key % BLOCK_SIZE
            rows = pl.cast(cache[row : row + KEY_ROWS, 0:IDX_HEAD_DIM], pl.FP32)
            amax = pl.maximum(pl.reshape(pl.row_max(pl.abs(rows)), [1, KEY_ROWS]), INT8_AMAX_EPS)
            gain = pl.div(pl.full([1, KEY_ROWS], dtype=pl.FP32, value=INT8_SCALE_MAX), amax)
            scaled = pl.row_expand_mul(rows, pl.reshape(gain, [KEY_ROWS, 1]))
            code = pl.cast(pl.cast(scaled, pl.INT32, mode="rint"), pl.FP16, mode="round")
            k0 = b * SCORE_LEN + key
            k_codes[k0 : k0 + KEY_ROWS, 0:IDX_HEAD_DIM] = pl.cast(code, pl.INT8, mode="trunc")
            k_scale[k0 : k0 + KEY_ROWS, 0:1] = pl.reshape(pl.recip(gain), [KEY_ROWS, 1])


@pl.jit.inline
def multiply(
    k_codes: pl.Tensor[[B * SCORE_LEN, IDX_HEAD_DIM], pl.INT8],
    q_codes: pl.Tensor[[Q_ROWS, IDX_HEAD_DIM], pl.INT8],
    position_ids: pl.Tensor[[B, S], pl.INT32],
    kv_seq_lens: pl.Tensor[[B], pl.INT32],
    products: pl.Out[pl.Tensor[[T * SCORE_LEN, HEADS_PADDED], pl.INT32]],
):
    """Products of every visible key with every head of the token, exact."""
    for t in pl.spmd(T, name_hint="indexer_multiply"):
        b = t // S
        visible = visible_keys(position_ids, kv_seq_lens, b, t % S)
        q0 = t * IDX_N_HEADS
        heads = pl.slice(q_codes, [HEADS_PADDED, IDX_HEAD_DIM], [q0, 0], valid_shape=[IDX_N_HEADS, IDX_HEAD_DIM])
        for i in pl.range((visible + MULTIPLY_ROWS - 1) // MULTIPLY_ROWS):
            key = i * MULTIPLY_ROWS
            rows = pl.min(MULTIPLY_ROWS, visible - key)
            k0 = b * SCORE_LEN + key
            keys = pl.slice(k_codes, [MULTIPLY_ROWS, IDX_HEAD_DIM], [k0, 0], valid_shape=[rows, IDX_HEAD_DIM])
            p0 = t * SCORE_LEN + key
            dots = pl.matmul(keys, heads, out_dtype=pl.INT32, b_trans=True)
            products[p0 : p0 + MULTIPLY_ROWS, 0:HEADS_PADDED] = dots


@pl.jit.inline
def reduce(
    products: pl.Tensor[[T * SCORE_LEN, HEADS_PADDED], pl.INT32],
    q_scale: pl.Tensor[[T, IDX_N_HEADS], pl.FP32],
    weights: pl.Tensor[[T_PADDED, HEADS_PADDED], pl.FP32],
    k_scale: pl.Tensor[[B * SCORE_LEN, 1], pl.FP32],
    position_ids: pl.Tensor[[B, S], pl.INT32],
    kv_seq_lens: pl.Tensor[[B], pl.INT32],
    score: pl.Out[pl.Tensor[[T, SCORE_LEN], pl.FP32]],
):
    """Every column of a token's scores: the key's scale times the weighted sum of what each head has above zero."""
    for block in pl.spmd(T * LANES, name_hint="indexer_reduce"):
        t = block // LANES
        lane = block % LANES
        b = t // S
        visible = visible_keys(position_ids, kv_seq_lens, b, t % S)
        head_scale = pl.slice(q_scale, [1, HEADS_PADDED], [t, 0], valid_shape=[1, IDX_N_HEADS])
        head_weight = pl.slice(weights, [1, HEADS_PADDED], [t, 0], valid_shape=[1, IDX_N_HEADS])
        for i in pl.pipeline((REDUCE_TILES - lane + LANES - 1) // LANES, stage=2):
            key = (lane + i * LANES) * REDUCE_ROWS
            if key < visible:
                rows = pl.min(REDUCE_ROWS, visible - key)
                p0 = t * SCORE_LEN + key
                k0 = b * SCORE_LEN + key
                dots = pl.slice(products, [REDUCE_ROWS, HEADS_PADDED], [p0, 0], valid_shape=[rows, IDX_N_HEADS])
                by_head = pl.col_expand_mul(pl.cast(dots, pl.FP32, mode="rint"), head_scale)
                weighted = pl.col_expand_mul(pl.maximum(by_head, 0.0), head_weight)
                key_scale = pl.slice(k_scale, [REDUCE_ROWS, 1], [k0, 0], valid_shape=[rows, 1])
                column = pl.mul(pl.row_sum(weighted), key_scale)
                seen = pl.set_validshape(pl.reshape(column, [1, REDUCE_ROWS]), 1, rows)
                # the pad is -inf: the score of an invisible key is the most negative finite number
                padded = pl.maximum(pl.fillpad(seen, pad_value=pl.PadValue.min), FP32_NEG_INF)
                score[t : t + 1, key : key + REDUCE_ROWS] = padded
            else:
                unseen = pl.full([1, REDUCE_ROWS], dtype=pl.FP32, value=FP32_NEG_INF)
                score[t : t + 1, key : key + REDUCE_ROWS] = unseen


@pl.jit.inline
def sort_descending(scores: pl.Tensor[[1, SORT_COLS], pl.FP32], first: pl.Scalar[pl.INDEX]):
    """Pairs (score, number) of all columns, best first, the smaller number first among equals; `first` is the number
    of column 0."""
    numbers = pl.arange(pl.cast(first, pl.UINT32), [1, SORT_COLS], dtype=pl.UINT32)
    pairs = pl.sort32(scores, numbers)
    run = SORT_RUN
    while run < 2 * SORT_COLS:
        pairs = pl.mrgsort(pairs, block_len=run)
        run = run * 4
    return pairs


@pl.jit.inline
def select(
    score: pl.Tensor[[T, SCORE_LEN], pl.FP32],
    position_ids: pl.Tensor[[B, S], pl.INT32],
    kv_seq_lens: pl.Tensor[[B], pl.INT32],
    offset: pl.Scalar[pl.INT32],
    topk_idxs: pl.Out[pl.Tensor[[T, SCORE_LEN], pl.INT32]],
):
    """Numbers of the best visible keys plus `offset`, best first; -1 in every other column."""
    for t in pl.spmd(T, name_hint="indexer_select"):
        visible = visible_keys(position_ids, kv_seq_lens, t // S, t % S)
        nothing = pl.full([1, NO_COLS], dtype=pl.INT32, value=-1)
        for c in pl.range((SCORE_LEN - IDX_TOPK) // NO_COLS):
            n0 = IDX_TOPK + c * NO_COLS
            topk_idxs[t : t + 1, n0 : n0 + NO_COLS] = nothing
        # worse than every visible key, so that only numbers of keys come first
        best = pl.full([1, 2 * IDX_TOPK], dtype=pl.FP32, value=FP32_NEG_INF)
        for c in pl.range((visible + SORT_COLS - 1) // SORT_COLS):
            first = c * SORT_COLS
            pairs = sort_descending(score[t : t + 1, first : first + SORT_COLS], first)
            merged = pl.mrgsort(best, pairs[0:1, 0 : 2 * SORTED_PAIRS])
            best = merged[0:1, 0 : 2 * IDX_TOPK]
        chosen = pl.full([1, IDX_TOPK], dtype=pl.INT32, value=-1)
        if visible > 0:
            keys = pl.gather(best, mask_pattern=pl.tile.MaskPattern.P1010, output_dtype=pl.INT32)
            # in FP32, where numbers below 2^24 are exact
            numbers = pl.add(pl.cast(keys, pl.FP32, mode="none"), pl.cast(offset, pl.FP32))
            valid = pl.set_validshape(numbers, 1, pl.min(IDX_TOPK, visible))
            padded = pl.maximum(pl.fillpad(valid, pad_value=pl.PadValue.min), -1.0)
            chosen = pl.cast(padded, pl.INT32, mode="trunc")
        topk_idxs[t : t + 1, 0:IDX_TOPK] = chosen


@pl.jit.inline
def decode_indexer_inline(
    x: pl.Tensor[[B, S, D], pl.BF16],
    qr: pl.Tensor[[T, Q_LORA], pl.INT8],
    qr_scale: pl.Tensor[[T, 1], pl.FP32],
    wq_b: pl.Tensor[[Q_LORA, Q_COLS], pl.INT8],
    wq_b_scale: pl.Tensor[[Q_COLS], pl.FP32],
    weights_proj: pl.Tensor[[D, IDX_N_HEADS], pl.BF16],
    cos: pl.Tensor[[T, ROPE_HALF], pl.FP32],
    sin: pl.Tensor[[T, ROPE_HALF], pl.FP32],
    inner_cos: pl.Tensor[[B, ROPE_HALF], pl.FP32],
    inner_sin: pl.Tensor[[B, ROPE_HALF], pl.FP32],
    hadamard: pl.Tensor[[IDX_HEAD_DIM, IDX_HEAD_DIM], pl.BF16],
    inner_kv: pl.Out[pl.Tensor[[B, S, IDX_HEAD_DIM], pl.FP32]],
    inner_compress_state: pl.InOut[pl.Tensor[[STATE4_BLOCK_NUM, STATE4_PAGE, 2 * OUT], pl.FP32]],
    inner_compress_state_block_table: pl.Tensor[[B, STATE4_MAX_BLOCKS], pl.INT32],
    inner_wkv: pl.Tensor[[OUT, D], pl.BF16],
    inner_wgate: pl.Tensor[[OUT, D], pl.BF16],
    inner_ape: pl.Tensor[[RATIO, OUT], pl.FP32],
    inner_norm_w: pl.Tensor[[IDX_HEAD_DIM], pl.BF16],
    idx_kv_cache: pl.InOut[pl.Tensor[[IDX_BLOCK_NUM, BLOCK_SIZE, 1, IDX_HEAD_DIM], pl.BF16]],
    idx_block_table: pl.Tensor[[B, IDX_MAX_BLOCKS], pl.INT32],
    score: pl.Out[pl.Tensor[[B, S, SCORE_LEN], pl.FP32]],
    topk_idxs: pl.Out[pl.Tensor[[B, S, SCORE_LEN], pl.INT32]],
    position_ids: pl.Tensor[[B, S], pl.INT32],
    idx_slot_mapping: pl.Tensor[[B, S], pl.INT64],
    inner_state_slot_mapping: pl.Tensor[[B, S], pl.INT64],
    kv_seq_lens: pl.Tensor[[B], pl.INT32],
    offset: pl.Scalar[pl.INT32],
):
    x_rows = pl.reshape(x, [T, D])
    cache = pl.reshape(idx_kv_cache, [CACHE_ROWS, IDX_HEAD_DIM])
    score_rows = pl.reshape(score, [T, SCORE_LEN])
    topk_rows = pl.reshape(topk_idxs, [T, SCORE_LEN])
    q_i32 = pl.create_tensor([T_PADDED, Q_COLS], dtype=pl.INT32)
    query = pl.create_tensor([T, Q_COLS], dtype=pl.FP32)
    rotated = pl.create_tensor([Q_ROWS, ROPE_DIM], dtype=pl.BF16)
    q_codes = pl.create_tensor([Q_ROWS, IDX_HEAD_DIM], dtype=pl.INT8)
    q_scale = pl.create_tensor([Q_ROWS, 1], dtype=pl.FP32)
    weights = pl.create_tensor([T_PADDED, HEADS_PADDED], dtype=pl.FP32)
    k_codes = pl.create_tensor([B * SCORE_LEN, IDX_HEAD_DIM], dtype=pl.INT8)
    k_scale = pl.create_tensor([B * SCORE_LEN, 1], dtype=pl.FP32)
    products = pl.create_tensor([T * SCORE_LEN, HEADS_PADDED], dtype=pl.INT32)
    heads = pl.reshape(query, [Q_ROWS, IDX_HEAD_DIM])
    head_scale = pl.reshape(q_scale, [T, IDX_N_HEADS])

    project_query(qr, wq_b, q_i32)
    dequantise_query(q_i32, qr_scale, wq_b_scale, query)
    rotate_query(heads, cos, sin, rotated)
    quantise_query(heads, rotated, hadamard, q_codes, q_scale)
    weigh_heads(x_rows, weights_proj, weights)
    decode_indexer_compressor_inline(
        x,
        inner_kv,
        inner_compress_state,
        inner_compress_state_block_table,
        inner_wkv,
        inner_wgate,
        inner_ape,
        inner_norm_w,
        inner_cos,
        inner_sin,
        hadamard,
        idx_kv_cache,
        position_ids,
        idx_slot_mapping,
        inner_state_slot_mapping,
    )
    quantise_keys(cache, idx_block_table, position_ids, kv_seq_lens, k_codes, k_scale)
    multiply(k_codes, q_codes, position_ids, kv_seq_lens, products)
    reduce(products, head_scale, weights, k_scale, position_ids, kv_seq_lens, score_rows)
    select(score_rows, position_ids, kv_seq_lens, offset, topk_rows)
    return inner_kv, inner_compress_state, idx_kv_cache, score, topk_idxs


@pl.jit
def decode_indexer(
    x: pl.Tensor[[B, S, D], pl.BF16],
    qr: pl.Tensor[[T, Q_LORA], pl.INT8],
    qr_scale: pl.Tensor[[T, 1], pl.FP32],
    wq_b: pl.Tensor[[Q_LORA, Q_COLS], pl.INT8],
    wq_b_scale: pl.Tensor[[Q_COLS], pl.FP32],
    weights_proj: pl.Tensor[[D, IDX_N_HEADS], pl.BF16],
    cos: pl.Tensor[[T, ROPE_HALF], pl.FP32],
    sin: pl.Tensor[[T, ROPE_HALF], pl.FP32],
    inner_cos: pl.Tensor[[B, ROPE_HALF], pl.FP32],
    inner_sin: pl.Tensor[[B, ROPE_HALF], pl.FP32],
    hadamard: pl.Tensor[[IDX_HEAD_DIM, IDX_HEAD_DIM], pl.BF16],
    inner_kv: pl.Out[pl.Tensor[[B, S, IDX_HEAD_DIM], pl.FP32]],
    inner_compress_state: pl.InOut[pl.Tensor[[STATE4_BLOCK_NUM, STATE4_PAGE, 2 * OUT], pl.FP32]],
    inner_compress_state_block_table: pl.Tensor[[B, STATE4_MAX_BLOCKS], pl.INT32],
    inner_wkv: pl.Tensor[[OUT, D], pl.BF16],
    inner_wgate: pl.Tensor[[OUT, D], pl.BF16],
    inner_ape: pl.Tensor[[RATIO, OUT], pl.FP32],
    inner_norm_w: pl.Tensor[[IDX_HEAD_DIM], pl.BF16],
    idx_kv_cache: pl.InOut[pl.Tensor[[IDX_BLOCK_NUM, BLOCK_SIZE, 1, IDX_HEAD_DIM], pl.BF16]],
    idx_block_table: pl.Tensor[[B, IDX_MAX_BLOCKS], pl.INT32],
    score: pl.Out[pl.Tensor[[B, S, SCORE_LEN], pl.FP32]],
    topk_idxs: pl.Out[pl.Tensor[[B, S, SCORE_LEN], pl.INT32]],
    position_ids: pl.Tensor[[B, S], pl.INT32],
    idx_slot_mapping: pl.Tensor[[B, S], pl.INT64],
    inner_state_slot_mapping: pl.Tensor[[B, S], pl.INT64],
    kv_seq_lens: pl.Tensor[[B], pl.INT32],
    offset: pl.Scalar[pl.INT32],
):
    return decode_indexer_inline(
        x,
        qr,
        qr_scale,
        wq_b,
        wq_b_scale,
        weights_proj,
        cos,
        sin,
        inner_cos,
        inner_sin,
        hadamard,
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
        position_ids,
        idx_slot_mapping,
        inner_state_slot_mapping,
        kv_seq_lens,
        offset,
    )
