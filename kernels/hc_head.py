"""hc_head: hyper-connection streams of the last layer gated into one hidden row. Contract: dense.md, section 8.

One scope per stage, ordered by the data alone (no barrier, no atomic add):

    widen    FP32 copy of the streams, partial sums of squares      block: TOKENS tokens x one of K_SLICES
    project  partial products with hc_head_fn on the cube, FP32     block: BOX tokens x one of K_SLICES
    gates    partials added in ascending K order, over the RMS      block: TOKENS tokens
    reduce   gated sum of the streams, BF16 ties to even            block: TOKENS tokens x OUT_COLS columns

T is dynamic and must be a multiple of TOKENS. The normalisation acts on the projection only: the streams are
mixed as they came. A gate tile is LANES wide, since the row of a vector tile has at least 32 bytes, and keeps
HC_MULT = 4 columns valid.
"""

import pypto.language as pl

from kernels.sizes import HC_DIM, HC_EPS, HC_MULT, RMS_EPS, D, tile

TOKENS = 8
LANES = 8
BOX = 16  # rows of a cube tile
K_SLICES = 8

if HC_MULT != 4:
    raise ValueError(f"hc_head: four streams are written out, HC_MULT is {HC_MULT}")
if HC_DIM % K_SLICES:
    raise ValueError(f"hc_head: HC_DIM = {HC_DIM} is not a multiple of {K_SLICES} slices")

K_SLICE = HC_DIM // K_SLICES
WIDEN_CHUNK = tile(K_SLICE, multiple=16, pr672=512)
PROJECT_CHUNK = tile(K_SLICE, multiple=16, pr672=256)
OUT_COLS = tile(D, multiple=16, pr672=512)
OUT_BLOCKS = D // OUT_COLS
HC_DIM_INV = 1.0 / HC_DIM

T_DYN = pl.dynamic("T_DYN")
PADDED_DYN = pl.dynamic("PADDED_DYN")


@pl.jit.inline
def sigmoid(logits: pl.Tensor[[TOKENS, LANES], pl.FP32]):
    return pl.recip(pl.add(pl.exp(pl.neg(logits)), 1.0))


@pl.jit.inline
def gated_stream(
    x_fp32: pl.Tensor[[PADDED_DYN, HC_DIM], pl.FP32],
    gates: pl.Tensor[[LANES, PADDED_DYN], pl.FP32],
    t0: pl.Scalar[pl.INDEX],
    d0: pl.Scalar[pl.INDEX],
    stream: pl.Scalar[pl.INDEX],
):
    """[TOKENS, OUT_COLS] of one stream times its gates, row `stream` of `gates`."""
    gate = pl.reshape(gates[stream : stream + 1, t0 : t0 + TOKENS], [TOKENS, 1])
    k0 = stream * D + d0
    return pl.row_expand_mul(x_fp32[t0 : t0 + TOKENS, k0 : k0 + OUT_COLS], gate)


@pl.jit.inline
def hc_head_inline(
    x_hc: pl.Tensor[[T_DYN, HC_MULT, D], pl.BF16],
    hc_head_fn: pl.Tensor[[HC_MULT, HC_DIM], pl.FP32],
    hc_head_scale: pl.Tensor[[1], pl.FP32],
    hc_head_base: pl.Tensor[[HC_MULT], pl.FP32],
    y: pl.Out[pl.Tensor[[T_DYN, D], pl.BF16]],
):
    tokens = pl.tensor.dim(x_hc, 0)
    tiles = tokens // TOKENS
    boxes = (tokens + BOX - 1) // BOX
    padded = boxes * BOX

    streams = pl.reshape(x_hc, [tokens, HC_DIM])
    base = pl.reshape(hc_head_base, [1, HC_MULT])
    x_fp32 = pl.create_tensor([padded, HC_DIM], dtype=pl.FP32)
    squares = pl.create_tensor([K_SLICES, padded], dtype=pl.FP32)
    products = pl.create_tensor([K_SLICES * padded, BOX], dtype=pl.FP32)
    gates = pl.create_tensor([LANES, padded], dtype=pl.FP32)

    for block in pl.spmd(tiles * K_SLICES, name_hint="hc_head_widen"):
        t0 = block // K_SLICES * TOKENS
        k = block % K_SLICES
        square_sum = pl.full([1, TOKENS], dtype=pl.FP32, value=0.0)
        for c in pl.pipeline(K_SLICE // WIDEN_CHUNK, stage=2):
            k0 = k * K_SLICE + c * WIDEN_CHUNK
            chunk = pl.cast(streams[t0 : t0 + TOKENS, k0 : k0 + WIDEN_CHUNK], pl.FP32)
            chunk_sum = pl.row_sum(pl.mul(chunk, chunk))
            square_sum = pl.add(square_sum, pl.reshape(chunk_sum, [1, TOKENS]))
            x_fp32[t0 : t0 + TOKENS, k0 : k0 + WIDEN_CHUNK] = chunk
        squares[k : k + 1, t0 : t0 + TOKENS] = square_sum

    for block in pl.spmd(boxes * K_SLICES, name_hint="hc_head_project"):
        t0 = block // K_SLICES * BOX
        k = block % K_SLICES
        first = k * K_SLICE
        rows = pl.min(BOX, tokens - t0)
        x_first = pl.slice(x_fp32, [BOX, PROJECT_CHUNK], [t0, first], valid_shape=[rows, PROJECT_CHUNK])
        fn_first = pl.slice(hc_head_fn, [BOX, PROJECT_CHUNK], [0, first], valid_shape=[HC_MULT, PROJECT_CHUNK])
        product = pl.matmul(x_first, fn_first, out_dtype=pl.FP32, b_trans=True)
        for c in pl.pipeline(1, K_SLICE // PROJECT_CHUNK, stage=2):
            k0 = first + c * PROJECT_CHUNK
            x_next = pl.slice(x_fp32, [BOX, PROJECT_CHUNK], [t0, k0], valid_shape=[rows, PROJECT_CHUNK])
            fn_next = pl.slice(hc_head_fn, [BOX, PROJECT_CHUNK], [0, k0], valid_shape=[HC_MULT, PROJECT_CHUNK])
            product = pl.matmul_acc(product, x_next, fn_next, b_trans=True)
        row = k * padded + t0
        products[row : row + BOX, 0:BOX] = product

    for block in pl.spmd(tiles, name_hint="hc_head_gates"):
        t0 = block * TOKENS
        square_sum = pl.full([1, TOKENS], dtype=pl.FP32, value=0.0)
        raw = pl.set_validshape(pl.full([TOKENS, LANES], dtype=pl.FP32, value=0.0), TOKENS, HC_MULT)
        for k in pl.range(K_SLICES):
            row = k * padded + t0
            product = pl.slice(products, [TOKENS, LANES], [row, 0], valid_shape=[TOKENS, HC_MULT])
            square_sum = pl.add(square_sum, squares[k : k + 1, t0 : t0 + TOKENS])
            raw = pl.add(raw, product)
        mean_square = pl.mul(square_sum, HC_DIM_INV)
        inv_rms = pl.recip(pl.sqrt(pl.add(mean_square, RMS_EPS)))
        mixes = pl.row_expand_mul(raw, pl.reshape(inv_rms, [TOKENS, 1]))
        bias = pl.slice(base, [1, LANES], [0, 0], valid_shape=[1, HC_MULT])
        logits = pl.col_expand_add(pl.mul(mixes, pl.read(hc_head_scale, [0])), bias)
        gate_sigmoid = sigmoid(logits)
        by_stream = pl.transpose(pl.add(gate_sigmoid, HC_EPS), 0, 1)  # one row per stream
        gates[0:LANES, t0 : t0 + TOKENS] = by_stream

    for block in pl.spmd(tiles * OUT_BLOCKS, name_hint="hc_head_reduce"):
        t0 = block // OUT_BLOCKS * TOKENS
        d0 = block % OUT_BLOCKS * OUT_COLS
        x0 = gated_stream(x_fp32, gates, t0, d0, 0)
        x1 = gated_stream(x_fp32, gates, t0, d0, 1)
        x2 = gated_stream(x_fp32, gates, t0, d0, 2)
        x3 = gated_stream(x_fp32, gates, t0, d0, 3)
        total = pl.add(pl.add(x0, x1), pl.add(x2, x3))
        y[t0 : t0 + TOKENS, d0 : d0 + OUT_COLS] = pl.cast(total, pl.BF16, mode="rint")

    return y


@pl.jit
def hc_head(
    x_hc: pl.Tensor[[T_DYN, HC_MULT, D], pl.BF16],
    hc_head_fn: pl.Tensor[[HC_MULT, HC_DIM], pl.FP32],
    hc_head_scale: pl.Tensor[[1], pl.FP32],
    hc_head_base: pl.Tensor[[HC_MULT], pl.FP32],
    y: pl.Out[pl.Tensor[[T_DYN, D], pl.BF16]],
):
    x_hc.bind_dynamic(0, T_DYN)
    y.bind_dynamic(0, T_DYN)
    return hc_head_inline(x_hc, hc_head_fn, hc_head_scale, hc_head_base, y)
