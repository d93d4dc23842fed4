"""qkv_proj_rope: low-rank query as INT8 codes, rotated query heads, rotated KV. Contract: dense.md, section 7.

One scope per stage, ordered by the data alone (no barrier, no atomic add):

    q_down      partial products of x and wq_a on the cube, FP32  block: BOX rows x Q_DOWN_COLS x one of Q_SLICES
    q_norm      partials added in ascending K order, RMSNorm      block: TOKENS rows, by Q_NORM_CHUNK
    quantise    INT8 codes and scale over the whole row           block: TOKENS rows, by QUANT_CHUNK
    q_up        INT8 matmul with wq_b, exact in INT32             block: BOX rows x Q_UP_COLS, by Q_UP_CHUNK
    dequantise  scale of the token, then of the column            block: TOKENS rows x DEQUANT_COLS
    heads       RMSNorm of every head, rotation, BF16 rint        block: TOKENS rows x one head
    kv_down     partial products of x and wkv on the cube, FP32   block: BOX rows x KV_COLS x one of KV_SLICES
    kv          partials added, RMSNorm, rotation, BF16 rint      block: TOKENS rows, by KV_CHUNK

Everything between the matmuls and the one rounding of an output is FP32, and a value is normalised before it is
rotated. The last ROPE_DIM lanes of a head rotate: lanes 2i and 2i + 1 by the angle in column i of the tables,
whose other half is not read. The tile set decides how a head is read: #672 loads it once, for the sum of squares
and for the outputs; before, it was loaded twice in chunks of ROPE_DIM, with one partial sum per chunk. T is a
multiple of TOKENS.
"""

import pypto.language as pl

from kernels.sizes import (
    HEAD_DIM,
    INT8_AMAX_EPS,
    INT8_SCALE_MAX,
    N_HEADS,
    NOPE_DIM,
    Q_LORA,
    RMS_EPS,
    ROPE_DIM,
    D,
    T,
    choose,
    tile,
)

TOKENS = 8
BOX = 16  # rows of a cube tile
Q_SLICES = 2
KV_SLICES = 4
ROPE_HALF = ROPE_DIM // 2
Q_COLS = N_HEADS * HEAD_DIM

if T % TOKENS:
    raise ValueError(f"qkv_proj_rope: T = {T} is not a multiple of {TOKENS}")
if NOPE_DIM + ROPE_DIM != HEAD_DIM:
    raise ValueError(f"qkv_proj_rope: NOPE_DIM = {NOPE_DIM} and ROPE_DIM = {ROPE_DIM} do not fill {HEAD_DIM}")
if ROPE_DIM % 32 or NOPE_DIM % ROPE_DIM:
    raise ValueError(f"qkv_proj_rope: ROPE_DIM = {ROPE_DIM} is no multiple of 32 that divides NOPE_DIM = {NOPE_DIM}")
if D % KV_SLICES:
    raise ValueError(f"qkv_proj_rope: D = {D} is not a multiple of {KV_SLICES} slices")

TILES = T // TOKENS
BOXES = (T + BOX - 1) // BOX
T_PADDED = BOXES * BOX
Q_SLICE = D // Q_SLICES
Q_DOWN_COLS = tile(Q_LORA, multiple=16, pr672=128)
Q_DOWN_GROUPS = Q_LORA // Q_DOWN_COLS
Q_DOWN_CHUNK = tile(Q_SLICE, multiple=16, pr672=256)
Q_NORM_CHUNK = tile(Q_LORA, multiple=32, pr672=256)
QUANT_CHUNK = tile(Q_LORA, multiple=32, pr672=256)
Q_UP_COLS = tile(Q_COLS, multiple=32, pr672=256)
Q_UP_GROUPS = Q_COLS // Q_UP_COLS
Q_UP_CHUNK = tile(Q_LORA, multiple=32, pr672=512)
DEQUANT_COLS = tile(Q_COLS, multiple=32, pr672=128)
DEQUANT_GROUPS = Q_COLS // DEQUANT_COLS
HEAD_LOADED_ONCE = choose(pr672=1, before_pr672=0)
KV_SLICE = D // KV_SLICES
KV_COLS = tile(HEAD_DIM, multiple=16, pr672=128)
KV_GROUPS = HEAD_DIM // KV_COLS
KV_DOWN_CHUNK = tile(KV_SLICE, multiple=16, pr672=256)
KV_CHUNK = ROPE_DIM  # so that the last chunk is the one that rotates
Q_LORA_INV = 1.0 / Q_LORA
HEAD_DIM_INV = 1.0 / HEAD_DIM


@pl.jit.inline
def inverse_rms(square_sum: pl.Tensor[[1, TOKENS], pl.FP32], count_inv: pl.Scalar[pl.FP32]):
    """1/sqrt of the mean square, as a column: sqrt and divide, since rsqrt alone is an estimate."""
    mean_square = pl.mul(square_sum, count_inv)
    inv_rms = pl.recip(pl.sqrt(pl.add(mean_square, RMS_EPS)))
    return pl.reshape(inv_rms, [TOKENS, 1])


@pl.jit.inline
def query_chunk(
    products: pl.Tensor[[Q_SLICES * T_PADDED, Q_LORA], pl.FP32],
    t0: pl.Scalar[pl.INDEX],
    n0: pl.Scalar[pl.INDEX],
):
    """[TOKENS, Q_NORM_CHUNK] of the low-rank query: the partial products of both K slices."""
    u0 = T_PADDED + t0
    low = products[t0 : t0 + TOKENS, n0 : n0 + Q_NORM_CHUNK]
    high = products[u0 : u0 + TOKENS, n0 : n0 + Q_NORM_CHUNK]
    return pl.add(low, high)


@pl.jit.inline
def kv_chunk(
    products: pl.Tensor[[KV_SLICES * T_PADDED, HEAD_DIM], pl.FP32],
    t0: pl.Scalar[pl.INDEX],
    n0: pl.Scalar[pl.INDEX],
):
    """[TOKENS, KV_CHUNK] of the KV row: the partial products in ascending K order."""
    total = products[t0 : t0 + TOKENS, n0 : n0 + KV_CHUNK]
    for k in pl.range(1, KV_SLICES):
        u0 = k * T_PADDED + t0
        total = pl.add(total, products[u0 : u0 + TOKENS, n0 : n0 + KV_CHUNK])
    return total


@pl.jit.inline
def rotate(
    lanes: pl.Tensor[[TOKENS, ROPE_DIM], pl.FP32],
    cos: pl.Tensor[[TOKENS, ROPE_HALF], pl.FP32],
    sin: pl.Tensor[[TOKENS, ROPE_HALF], pl.FP32],
):
    """Normalised lanes with every pair (2i, 2i + 1) rotated by angle i, rounded to BF16 once."""
    even = pl.gather(lanes, mask_pattern=pl.tile.MaskPattern.P0101)
    odd = pl.gather(lanes, mask_pattern=pl.tile.MaskPattern.P1010)
    new_even = pl.cast(pl.sub(pl.mul(even, cos), pl.mul(odd, sin)), pl.BF16, mode="rint")
    new_odd = pl.cast(pl.add(pl.mul(even, sin), pl.mul(odd, cos)), pl.BF16, mode="rint")
    blank = pl.full([TOKENS, ROPE_DIM], dtype=pl.BF16, value=0.0)
    half_filled = pl.tensor.scatter(new_even, mask_pattern=pl.tile.MaskPattern.P0101, dst=blank)
    return pl.tensor.scatter(new_odd, mask_pattern=pl.tile.MaskPattern.P1010, dst=half_filled)


@pl.jit.inline
def qkv_proj_rope_inline(
    x: pl.Tensor[[T, D], pl.BF16],
    wq_a: pl.Tensor[[D, Q_LORA], pl.BF16],
    wq_b: pl.Tensor[[Q_LORA, Q_COLS], pl.INT8],
    wq_b_scale: pl.Tensor[[Q_COLS], pl.FP32],
    wkv: pl.Tensor[[D, HEAD_DIM], pl.BF16],
    rope_cos: pl.Tensor[[T, ROPE_DIM], pl.BF16],
    rope_sin: pl.Tensor[[T, ROPE_DIM], pl.BF16],
    gamma_cq: pl.Tensor[[Q_LORA], pl.BF16],
    gamma_ckv: pl.Tensor[[HEAD_DIM], pl.BF16],
    q: pl.Out[pl.Tensor[[T, N_HEADS, HEAD_DIM], pl.BF16]],
    kv: pl.Out[pl.Tensor[[T, HEAD_DIM], pl.BF16]],
    qr: pl.Out[pl.Tensor[[T, Q_LORA], pl.INT8]],
    qr_scale: pl.Out[pl.Tensor[[T, 1], pl.FP32]],
):
    q_rows = pl.reshape(q, [T, Q_COLS])
    q_gamma = pl.reshape(gamma_cq, [1, Q_LORA])
    kv_gamma = pl.reshape(gamma_ckv, [1, HEAD_DIM])
    column_scale = pl.reshape(wq_b_scale, [1, Q_COLS])
    q_products = pl.create_tensor([Q_SLICES * T_PADDED, Q_LORA], dtype=pl.FP32)
    q_normed = pl.create_tensor([T, Q_LORA], dtype=pl.FP32)
    q_i32 = pl.create_tensor([T_PADDED, Q_COLS], dtype=pl.INT32)
    query = pl.create_tensor([T, Q_COLS], dtype=pl.FP32)
    kv_products = pl.create_tensor([KV_SLICES * T_PADDED, HEAD_DIM], dtype=pl.FP32)

    for block in pl.spmd(BOXES * Q_SLICES * Q_DOWN_GROUPS, name_hint="qkv_q_down"):
        t0 = block // (Q_SLICES * Q_DOWN_GROUPS) * BOX
        k = block // Q_DOWN_GROUPS % Q_SLICES
        n0 = block % Q_DOWN_GROUPS * Q_DOWN_COLS
        first = k * Q_SLICE
        rows = pl.min(BOX, T - t0)
        x_first = pl.slice(x, [BOX, Q_DOWN_CHUNK], [t0, first], valid_shape=[rows, Q_DOWN_CHUNK])
        w_first = wq_a[first : first + Q_DOWN_CHUNK, n0 : n0 + Q_DOWN_COLS]
        product = pl.matmul(x_first, w_first, out_dtype=pl.FP32)
        for c in pl.pipeline(1, Q_SLICE // Q_DOWN_CHUNK, stage=2):
            d0 = first + c * Q_DOWN_CHUNK
            x_next = pl.slice(x, [BOX, Q_DOWN_CHUNK], [t0, d0], valid_shape=[rows, Q_DOWN_CHUNK])
            w_next = wq_a[d0 : d0 + Q_DOWN_CHUNK, n0 : n0 + Q_DOWN_COLS]
            product = pl.matmul_acc(product, x_next, w_next)
        row = k * T_PADDED + t0
        q_products[row : row + BOX, n0 : n0 + Q_DOWN_COLS] = product

    for block in pl.spmd(TILES, name_hint="qkv_q_norm"):
        t0 = block * TOKENS
        square_sum = pl.full([1, TOKENS], dtype=pl.FP32, value=0.0)
        for c in pl.pipeline(Q_LORA // Q_NORM_CHUNK, stage=2):
            chunk = query_chunk(q_products, t0, c * Q_NORM_CHUNK)
            chunk_sum = pl.row_sum(pl.mul(chunk, chunk))
            square_sum = pl.add(square_sum, pl.reshape(chunk_sum, [1, TOKENS]))
        inv_rms = inverse_rms(square_sum, Q_LORA_INV)
        for c in pl.pipeline(Q_LORA // Q_NORM_CHUNK, stage=2):
            n0 = c * Q_NORM_CHUNK
            again = query_chunk(q_products, t0, n0)
            gamma = pl.cast(q_gamma[0:1, n0 : n0 + Q_NORM_CHUNK], pl.FP32)
            normed = pl.col_expand_mul(pl.row_expand_mul(again, inv_rms), gamma)
            q_normed[t0 : t0 + TOKENS, n0 : n0 + Q_NORM_CHUNK] = normed

    for block in pl.spmd(TILES, name_hint="qkv_quantise"):
        t0 = block * TOKENS
        amax = pl.full([1, TOKENS], dtype=pl.FP32, value=INT8_AMAX_EPS)
        for c in pl.pipeline(Q_LORA // QUANT_CHUNK, stage=2):
            n0 = c * QUANT_CHUNK
            chunk_max = pl.row_max(pl.abs(q_normed[t0 : t0 + TOKENS, n0 : n0 + QUANT_CHUNK]))
            amax = pl.maximum(amax, pl.reshape(chunk_max, [1, TOKENS]))
        gain = pl.div(pl.full([1, TOKENS], dtype=pl.FP32, value=INT8_SCALE_MAX), amax)
        gain_column = pl.reshape(gain, [TOKENS, 1])
        for c in pl.pipeline(Q_LORA // QUANT_CHUNK, stage=2):
            n0 = c * QUANT_CHUNK
            scaled = pl.row_expand_mul(q_normed[t0 : t0 + TOKENS, n0 : n0 + QUANT_CHUNK], gain_column)
            code = pl.cast(pl.cast(scaled, pl.INT32, mode="rint"), pl.FP16, mode="round")
            qr[t0 : t0 + TOKENS, n0 : n0 + QUANT_CHUNK] = pl.cast(code, pl.INT8, mode="trunc")
        qr_scale[t0 : t0 + TOKENS, 0:1] = pl.reshape(pl.recip(gain), [TOKENS, 1])

    for block in pl.spmd(BOXES * Q_UP_GROUPS, name_hint="qkv_q_up"):
        t0 = block // Q_UP_GROUPS * BOX
        n0 = block % Q_UP_GROUPS * Q_UP_COLS
        rows = pl.min(BOX, T - t0)
        qr_first = pl.slice(qr, [BOX, Q_UP_CHUNK], [t0, 0], valid_shape=[rows, Q_UP_CHUNK])
        w_first = wq_b[0:Q_UP_CHUNK, n0 : n0 + Q_UP_COLS]
        acc = pl.matmul(qr_first, w_first, out_dtype=pl.INT32)
        for c in pl.pipeline(1, Q_LORA // Q_UP_CHUNK, stage=2):
            k0 = c * Q_UP_CHUNK
            qr_next = pl.slice(qr, [BOX, Q_UP_CHUNK], [t0, k0], valid_shape=[rows, Q_UP_CHUNK])
            w_next = wq_b[k0 : k0 + Q_UP_CHUNK, n0 : n0 + Q_UP_COLS]
            acc = pl.matmul_acc(acc, qr_next, w_next)
        q_i32[t0 : t0 + BOX, n0 : n0 + Q_UP_COLS] = acc

    for block in pl.spmd(TILES * DEQUANT_GROUPS, name_hint="qkv_dequantise"):
        t0 = block // DEQUANT_GROUPS * TOKENS
        n0 = block % DEQUANT_GROUPS * DEQUANT_COLS
        q_acc = pl.cast(q_i32[t0 : t0 + TOKENS, n0 : n0 + DEQUANT_COLS], pl.FP32, mode="none")
        by_token = pl.row_expand_mul(q_acc, qr_scale[t0 : t0 + TOKENS, 0:1])
        by_column = pl.col_expand_mul(by_token, column_scale[0:1, n0 : n0 + DEQUANT_COLS])
        query[t0 : t0 + TOKENS, n0 : n0 + DEQUANT_COLS] = by_column

    for block in pl.spmd(TILES * N_HEADS, name_hint="qkv_heads"):
        t0 = block // N_HEADS * TOKENS
        nope0 = block % N_HEADS * HEAD_DIM
        rope0 = nope0 + NOPE_DIM
        cos = pl.cast(rope_cos[t0 : t0 + TOKENS, 0:ROPE_HALF], pl.FP32)
        sin = pl.cast(rope_sin[t0 : t0 + TOKENS, 0:ROPE_HALF], pl.FP32)
        if HEAD_LOADED_ONCE == 1:
            nope = query[t0 : t0 + TOKENS, nope0 : nope0 + NOPE_DIM]
            rope = query[t0 : t0 + TOKENS, rope0 : rope0 + ROPE_DIM]
            nope_sum = pl.row_sum(pl.mul(nope, nope))
            rope_sum = pl.row_sum(pl.mul(rope, rope))
            inv_once = inverse_rms(pl.reshape(pl.add(nope_sum, rope_sum), [1, TOKENS]), HEAD_DIM_INV)
            nope_normed = pl.cast(pl.row_expand_mul(nope, inv_once), pl.BF16, mode="rint")
            q_rows[t0 : t0 + TOKENS, nope0 : nope0 + NOPE_DIM] = nope_normed
            rope_normed = pl.row_expand_mul(rope, inv_once)
            rotated = rotate(rope_normed, cos, sin)
            q_rows[t0 : t0 + TOKENS, rope0 : rope0 + ROPE_DIM] = rotated
        else:
            square_sum = pl.full([1, TOKENS], dtype=pl.FP32, value=0.0)
            for c in pl.pipeline(HEAD_DIM // ROPE_DIM, stage=2):
                s0 = nope0 + c * ROPE_DIM
                lanes = query[t0 : t0 + TOKENS, s0 : s0 + ROPE_DIM]
                lanes_sum = pl.row_sum(pl.mul(lanes, lanes))
                square_sum = pl.add(square_sum, pl.reshape(lanes_sum, [1, TOKENS]))
            inv_chunked = inverse_rms(square_sum, HEAD_DIM_INV)
            for c in pl.pipeline(NOPE_DIM // ROPE_DIM, stage=2):
                n0 = nope0 + c * ROPE_DIM
                lanes_normed = pl.row_expand_mul(query[t0 : t0 + TOKENS, n0 : n0 + ROPE_DIM], inv_chunked)
                q_rows[t0 : t0 + TOKENS, n0 : n0 + ROPE_DIM] = pl.cast(lanes_normed, pl.BF16, mode="rint")
            last_normed = pl.row_expand_mul(query[t0 : t0 + TOKENS, rope0 : rope0 + ROPE_DIM], inv_chunked)
            last_rotated = rotate(last_normed, cos, sin)
            q_rows[t0 : t0 + TOKENS, rope0 : rope0 + ROPE_DIM] = last_rotated

    for block in pl.spmd(BOXES * KV_SLICES * KV_GROUPS, name_hint="qkv_kv_down"):
        t0 = block // (KV_SLICES * KV_GROUPS) * BOX
        k = block // KV_GROUPS % KV_SLICES
        n0 = block % KV_GROUPS * KV_COLS
        first = k * KV_SLICE
        rows = pl.min(BOX, T - t0)
        x_first = pl.slice(x, [BOX, KV_DOWN_CHUNK], [t0, first], valid_shape=[rows, KV_DOWN_CHUNK])
        w_first = wkv[first : first + KV_DOWN_CHUNK, n0 : n0 + KV_COLS]
        product = pl.matmul(x_first, w_first, out_dtype=pl.FP32)
        for c in pl.pipeline(1, KV_SLICE // KV_DOWN_CHUNK, stage=2):
            d0 = first + c * KV_DOWN_CHUNK
            x_next = pl.slice(x, [BOX, KV_DOWN_CHUNK], [t0, d0], valid_shape=[rows, KV_DOWN_CHUNK])
            w_next = wkv[d0 : d0 + KV_DOWN_CHUNK, n0 : n0 + KV_COLS]
            product = pl.matmul_acc(product, x_next, w_next)
        row = k * T_PADDED + t0
        kv_products[row : row + BOX, n0 : n0 + KV_COLS] = product

    for block in pl.spmd(TILES, name_hint="qkv_kv"):
        t0 = block * TOKENS
        cos = pl.cast(rope_cos[t0 : t0 + TOKENS, 0:ROPE_HALF], pl.FP32)
        sin = pl.cast(rope_sin[t0 : t0 + TOKENS, 0:ROPE_HALF], pl.FP32)
        square_sum = pl.full([1, TOKENS], dtype=pl.FP32, value=0.0)
        for c in pl.pipeline(HEAD_DIM // KV_CHUNK, stage=2):
            chunk = kv_chunk(kv_products, t0, c * KV_CHUNK)
            chunk_sum = pl.row_sum(pl.mul(chunk, chunk))
            square_sum = pl.add(square_sum, pl.reshape(chunk_sum, [1, TOKENS]))
        inv_rms = inverse_rms(square_sum, HEAD_DIM_INV)
        for c in pl.pipeline(NOPE_DIM // KV_CHUNK, stage=2):
            n0 = c * KV_CHUNK
            again = kv_chunk(kv_products, t0, n0)
            gamma = pl.cast(kv_gamma[0:1, n0 : n0 + KV_CHUNK], pl.FP32)
            normed = pl.col_expand_mul(pl.row_expand_mul(again, inv_rms), gamma)
            kv[t0 : t0 + TOKENS, n0 : n0 + KV_CHUNK] = pl.cast(normed, pl.BF16, mode="rint")
        last = kv_chunk(kv_products, t0, NOPE_DIM)
        last_gamma = pl.cast(kv_gamma[0:1, NOPE_DIM:HEAD_DIM], pl.FP32)
        last_normed = pl.col_expand_mul(pl.row_expand_mul(last, inv_rms), last_gamma)
        rotated = rotate(last_normed, cos, sin)
        kv[t0 : t0 + TOKENS, NOPE_DIM:HEAD_DIM] = rotated

    return q, kv, qr, qr_scale


@pl.jit
def qkv_proj_rope(
    x: pl.Tensor[[T, D], pl.BF16],
    wq_a: pl.Tensor[[D, Q_LORA], pl.BF16],
    wq_b: pl.Tensor[[Q_LORA, Q_COLS], pl.INT8],
    wq_b_scale: pl.Tensor[[Q_COLS], pl.FP32],
    wkv: pl.Tensor[[D, HEAD_DIM], pl.BF16],
    rope_cos: pl.Tensor[[T, ROPE_DIM], pl.BF16],
    rope_sin: pl.Tensor[[T, ROPE_DIM], pl.BF16],
    gamma_cq: pl.Tensor[[Q_LORA], pl.BF16],
    gamma_ckv: pl.Tensor[[HEAD_DIM], pl.BF16],
    q: pl.Out[pl.Tensor[[T, N_HEADS, HEAD_DIM], pl.BF16]],
    kv: pl.Out[pl.Tensor[[T, HEAD_DIM], pl.BF16]],
    qr: pl.Out[pl.Tensor[[T, Q_LORA], pl.INT8]],
    qr_scale: pl.Out[pl.Tensor[[T, 1], pl.FP32]],
):
    return qkv_proj_rope_inline(
        x,
        wq_a,
        wq_b,
        wq_b_scale,
        wkv,
        rope_cos,
        rope_sin,
        gamma_cq,
        gamma_ckv,
        q,
        kv,
        qr,
        qr_scale,
    )
