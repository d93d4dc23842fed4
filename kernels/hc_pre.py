"""hc_pre: hyper-connection pre-mix: sublayer input and gates. Contract: hc_gate_experts.md, section 1.

One scope per stage, ordered by the data alone (no barrier, no atomic add):

    widen    FP32 copy of the streams, partial sums of squares      block: TOKENS tokens x one of K_SLICES
    project  partial products with hc_fn on the cube, FP32          block: BOX tokens x one of K_SLICES
    mixes    the partials added in ascending K order, over the RMS  block: TOKENS tokens
    mix      gates of the old streams and their gated sum           block: TOKENS tokens x MIX_COLS columns
    post     gate of the sublayer output into each new stream       block: TOKENS tokens
    comb     softmax and Sinkhorn of the HC_MULT x HC_MULT matrix   block: TOKENS tokens

T is dynamic and must be a multiple of TOKENS. A gate has HC_MULT = 4 columns; its tiles are LANES wide,
since the row of a vector tile has at least 32 bytes, and keep 4 columns valid. The matrix of a token tile
is four such tiles, one per old stream; their pad columns are held at zero so that no sum sees them.
"""

import pypto.language as pl

from kernels.sizes import HC_DIM, HC_EPS, HC_MULT, HC_SINKHORN_ITERS, MIX_HC, RMS_EPS, D, tile

TOKENS = 8
LANES = 8
BOX = 16  # rows of a cube tile
MIX_PAD = 32  # MIX_HC in whole boxes
K_SLICES = 16

if HC_MULT != 4:
    raise ValueError(f"hc_pre: four streams are written out, HC_MULT is {HC_MULT}")
if HC_DIM % K_SLICES:
    raise ValueError(f"hc_pre: HC_DIM = {HC_DIM} is not a multiple of {K_SLICES} slices")

K_SLICE = HC_DIM // K_SLICES
WIDEN_CHUNK = tile(K_SLICE, multiple=16, pr672=512)
PROJECT_CHUNK = tile(K_SLICE, multiple=16, pr672=256)
MIX_COLS = tile(D, multiple=16, pr672=256)
MIX_BLOCKS = D // MIX_COLS
HC_DIM_INV = 1.0 / HC_DIM

T_DYN = pl.dynamic("T_DYN")
PADDED_DYN = pl.dynamic("PADDED_DYN")


@pl.jit.inline
def logits_of(
    mixes: pl.Tensor[[PADDED_DYN, MIX_PAD], pl.FP32],
    base: pl.Tensor[[1, MIX_HC], pl.FP32],
    scale: pl.Scalar[pl.FP32],
    t0: pl.Scalar[pl.INDEX],
    column: pl.Scalar[pl.INDEX],
):
    """Logits of the HC_MULT mixes from `column` on, [TOKENS, LANES] with HC_MULT valid columns."""
    mix = pl.slice(mixes, [TOKENS, LANES], [t0, column], valid_shape=[TOKENS, HC_MULT])
    bias = pl.slice(base, [1, LANES], [0, column], valid_shape=[1, HC_MULT])
    return pl.col_expand_add(pl.mul(mix, scale), bias)


@pl.jit.inline
def sigmoid(logits: pl.Tensor[[TOKENS, LANES], pl.FP32]):
    return pl.recip(pl.add(pl.exp(pl.neg(logits)), 1.0))


@pl.jit.inline
def gated_stream(
    x_fp32: pl.Tensor[[PADDED_DYN, HC_DIM], pl.FP32],
    pre: pl.Tensor[[LANES, TOKENS], pl.FP32],
    t0: pl.Scalar[pl.INDEX],
    d0: pl.Scalar[pl.INDEX],
    stream: pl.Scalar[pl.INDEX],
):
    """[TOKENS, MIX_COLS] of one old stream times its gates, row `stream` of `pre`."""
    gate = pl.reshape(pre[stream : stream + 1, 0:TOKENS], [TOKENS, 1])
    k0 = stream * D + d0
    return pl.row_expand_mul(x_fp32[t0 : t0 + TOKENS, k0 : k0 + MIX_COLS], gate)


@pl.jit.inline
def softmax(logits: pl.Tensor[[TOKENS, LANES], pl.FP32]):
    """Softmax over the valid columns plus HC_EPS; pad columns are zero."""
    padded = pl.fillpad(logits, pad_value=pl.PadValue.min)
    weight = pl.exp(pl.row_expand_sub(padded, pl.row_max(padded)))
    share = pl.add(pl.row_expand_div(weight, pl.row_sum(weight)), HC_EPS)
    return pl.fillpad(pl.set_validshape(share, TOKENS, HC_MULT), pad_value=pl.PadValue.zero)


@pl.jit.inline
def row_step(c: pl.Tensor[[TOKENS, LANES], pl.FP32]):
    """Divides the weights that leave one old stream by their sum."""
    return pl.row_expand_div(c, pl.add(pl.row_sum(c), HC_EPS))


@pl.jit.inline
def column_step(
    c0: pl.Tensor[[TOKENS, LANES], pl.FP32],
    c1: pl.Tensor[[TOKENS, LANES], pl.FP32],
    c2: pl.Tensor[[TOKENS, LANES], pl.FP32],
    c3: pl.Tensor[[TOKENS, LANES], pl.FP32],
):
    """Divides the weights that reach one new stream by their sum, summed pairwise."""
    total = pl.add(pl.add(pl.add(c0, c1), pl.add(c2, c3)), HC_EPS)
    n0 = pl.div(c0, total)
    n1 = pl.div(c1, total)
    n2 = pl.div(c2, total)
    n3 = pl.div(c3, total)
    return n0, n1, n2, n3


@pl.jit.inline
def hc_pre_inline(
    x: pl.Tensor[[T_DYN, HC_MULT, D], pl.BF16],
    hc_fn: pl.Tensor[[MIX_HC, HC_DIM], pl.FP32],
    hc_scale: pl.Tensor[[3], pl.FP32],
    hc_base: pl.Tensor[[MIX_HC], pl.FP32],
    x_mixed: pl.Out[pl.Tensor[[T_DYN, D], pl.BF16]],
    post: pl.Out[pl.Tensor[[T_DYN, HC_MULT], pl.FP32]],
    comb: pl.Out[pl.Tensor[[T_DYN, HC_MULT * HC_MULT], pl.FP32]],
):
    tokens = pl.tensor.dim(x, 0)
    tiles = tokens // TOKENS
    boxes = (tokens + BOX - 1) // BOX
    padded = boxes * BOX

    streams = pl.reshape(x, [tokens, HC_DIM])
    base = pl.reshape(hc_base, [1, MIX_HC])
    x_fp32 = pl.create_tensor([padded, HC_DIM], dtype=pl.FP32)
    squares = pl.create_tensor([K_SLICES, padded], dtype=pl.FP32)
    products = pl.create_tensor([K_SLICES * padded, MIX_PAD], dtype=pl.FP32)
    mixes = pl.create_tensor([padded, MIX_PAD], dtype=pl.FP32)

    for block in pl.spmd(tiles * K_SLICES, name_hint="hc_pre_widen"):
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

    for block in pl.spmd(boxes * K_SLICES, name_hint="hc_pre_project"):
        t0 = block // K_SLICES * BOX
        k = block % K_SLICES
        first = k * K_SLICE
        rows = pl.min(BOX, tokens - t0)
        x_first = pl.slice(x_fp32, [BOX, PROJECT_CHUNK], [t0, first], valid_shape=[rows, PROJECT_CHUNK])
        fn_first = pl.slice(hc_fn, [MIX_PAD, PROJECT_CHUNK], [0, first], valid_shape=[MIX_HC, PROJECT_CHUNK])
        product = pl.matmul(x_first, fn_first, out_dtype=pl.FP32, b_trans=True)
        for c in pl.pipeline(1, K_SLICE // PROJECT_CHUNK, stage=2):
            k0 = first + c * PROJECT_CHUNK
            x_next = pl.slice(x_fp32, [BOX, PROJECT_CHUNK], [t0, k0], valid_shape=[rows, PROJECT_CHUNK])
            fn_next = pl.slice(hc_fn, [MIX_PAD, PROJECT_CHUNK], [0, k0], valid_shape=[MIX_HC, PROJECT_CHUNK])
            product = pl.matmul_acc(product, x_next, fn_next, b_trans=True)
        row = k * padded + t0
        products[row : row + BOX, 0:MIX_PAD] = product

    for block in pl.spmd(tiles, name_hint="hc_pre_mixes"):
        t0 = block * TOKENS
        square_sum = pl.full([1, TOKENS], dtype=pl.FP32, value=0.0)
        raw = pl.full([TOKENS, MIX_HC], dtype=pl.FP32, value=0.0)
        for k in pl.range(K_SLICES):
            row = k * padded + t0
            square_sum = pl.add(square_sum, squares[k : k + 1, t0 : t0 + TOKENS])
            raw = pl.add(raw, products[row : row + TOKENS, 0:MIX_HC])
        mean_square = pl.mul(square_sum, HC_DIM_INV)
        inv_rms = pl.recip(pl.sqrt(pl.add(mean_square, RMS_EPS)))
        mixes[t0 : t0 + TOKENS, 0:MIX_HC] = pl.row_expand_mul(raw, pl.reshape(inv_rms, [TOKENS, 1]))

    for block in pl.spmd(tiles * MIX_BLOCKS, name_hint="hc_pre_mix"):
        t0 = block // MIX_BLOCKS * TOKENS
        d0 = block % MIX_BLOCKS * MIX_COLS
        pre_logits = logits_of(mixes, base, pl.read(hc_scale, [0]), t0, 0)
        pre_sigmoid = sigmoid(pre_logits)
        pre = pl.transpose(pl.add(pre_sigmoid, HC_EPS), 0, 1)  # one row per stream
        x0 = gated_stream(x_fp32, pre, t0, d0, 0)
        x1 = gated_stream(x_fp32, pre, t0, d0, 1)
        x2 = gated_stream(x_fp32, pre, t0, d0, 2)
        x3 = gated_stream(x_fp32, pre, t0, d0, 3)
        mixed = pl.add(pl.add(x0, x1), pl.add(x2, x3))
        x_mixed[t0 : t0 + TOKENS, d0 : d0 + MIX_COLS] = pl.cast(mixed, pl.BF16, mode="rint")

    for block in pl.spmd(tiles, name_hint="hc_pre_post"):
        t0 = block * TOKENS
        post_logits = logits_of(mixes, base, pl.read(hc_scale, [1]), t0, HC_MULT)
        post_sigmoid = sigmoid(post_logits)
        post[t0 : t0 + TOKENS, 0:HC_MULT] = pl.mul(post_sigmoid, 2.0)

    for block in pl.spmd(tiles, name_hint="hc_pre_comb"):
        t0 = block * TOKENS
        logits0 = logits_of(mixes, base, pl.read(hc_scale, [2]), t0, 2 * HC_MULT)
        logits1 = logits_of(mixes, base, pl.read(hc_scale, [2]), t0, 3 * HC_MULT)
        logits2 = logits_of(mixes, base, pl.read(hc_scale, [2]), t0, 4 * HC_MULT)
        logits3 = logits_of(mixes, base, pl.read(hc_scale, [2]), t0, 5 * HC_MULT)
        c0 = softmax(logits0)
        c1 = softmax(logits1)
        c2 = softmax(logits2)
        c3 = softmax(logits3)
        c0, c1, c2, c3 = column_step(c0, c1, c2, c3)
        for _step in pl.range(HC_SINKHORN_ITERS - 1):
            c0 = row_step(c0)
            c1 = row_step(c1)
            c2 = row_step(c2)
            c3 = row_step(c3)
            c0, c1, c2, c3 = column_step(c0, c1, c2, c3)
        comb[t0 : t0 + TOKENS, 0:HC_MULT] = pl.set_validshape(c0, TOKENS, HC_MULT)
        comb[t0 : t0 + TOKENS, HC_MULT : 2 * HC_MULT] = pl.set_validshape(c1, TOKENS, HC_MULT)
        comb[t0 : t0 + TOKENS, 2 * HC_MULT : 3 * HC_MULT] = pl.set_validshape(c2, TOKENS, HC_MULT)
        comb[t0 : t0 + TOKENS, 3 * HC_MULT : 4 * HC_MULT] = pl.set_validshape(c3, TOKENS, HC_MULT)

    return x_mixed, post, comb


@pl.jit
def hc_pre(
    x: pl.Tensor[[T_DYN, HC_MULT, D], pl.BF16],
    hc_fn: pl.Tensor[[MIX_HC, HC_DIM], pl.FP32],
    hc_scale: pl.Tensor[[3], pl.FP32],
    hc_base: pl.Tensor[[MIX_HC], pl.FP32],
    x_mixed: pl.Out[pl.Tensor[[T_DYN, D], pl.BF16]],
    post: pl.Out[pl.Tensor[[T_DYN, HC_MULT], pl.FP32]],
    comb: pl.Out[pl.Tensor[[T_DYN, HC_MULT * HC_MULT], pl.FP32]],
):
    x.bind_dynamic(0, T_DYN)
    x_mixed.bind_dynamic(0, T_DYN)
    post.bind_dynamic(0, T_DYN)
    comb.bind_dynamic(0, T_DYN)
    return hc_pre_inline(x, hc_fn, hc_scale, hc_base, x_mixed, post, comb)
