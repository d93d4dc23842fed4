"""mtp_projection: input projection of the multi-token-prediction layer, W8A8. Contract: dense.md, section 9.

Two branches, the embedding of the next token (e) and the previous hidden row (h), each through

    norm        RMSNorm, norm_w, smooth, kept in FP32            task: TOKENS rows, by NORM_CHUNK
    quantise    INT8 codes and scale over the whole row          task: TOKENS rows, by QUANT_CHUNK
    project     INT8 matmul, exact in INT32                      block: BOX rows x COLS channels, by K_CHUNK

and together through

    dequantise  both scales of both branches, sum, BF16 rint     block: TOKENS rows x OUT_COLS channels

T is a multiple of TOKENS. The smoothing belongs to the input channels. Every tile divides its extent, so that
no channel is dropped at any size.
"""

import pypto.language as pl

from kernels.sizes import INT8_AMAX_EPS, INT8_SCALE_MAX, RMS_EPS, D, T, tile

TOKENS = 8
BOX = 16  # rows of a cube tile

if T % TOKENS:
    raise ValueError(f"mtp_projection: T = {T} is not a multiple of {TOKENS}")

TILES = T // TOKENS
BOXES = (T + BOX - 1) // BOX
T_PADDED = BOXES * BOX
NORM_CHUNK = tile(D, multiple=32, pr672=128)
QUANT_CHUNK = tile(D, multiple=32, pr672=256)
COLS = tile(D, multiple=32, pr672=128)
COL_BLOCKS = D // COLS
K_CHUNK = tile(D, multiple=32, pr672=512)
OUT_COLS = tile(D, multiple=32, pr672=512)
OUT_BLOCKS = D // OUT_COLS
D_INV = 1.0 / D

B_DYN = pl.dynamic("B_DYN")
S_DYN = pl.dynamic("S_DYN")


@pl.jit.inline
def normalised(
    x: pl.Tensor[[T, D], pl.BF16],
    norm_w: pl.Tensor[[1, D], pl.FP32],
    smooth: pl.Tensor[[1, D], pl.FP32],
    normed: pl.Tensor[[T, D], pl.FP32],
):
    """Rows of `normed`: x over its RMS, times norm_w, times smooth, each product rounded."""
    for i in pl.parallel(TILES):
        t0 = i * TOKENS
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="mtp_norm"):
            square_sum = pl.full([1, TOKENS], dtype=pl.FP32, value=0.0)
            for c in pl.pipeline(D // NORM_CHUNK, stage=2):
                d0 = c * NORM_CHUNK
                chunk = pl.cast(x[t0 : t0 + TOKENS, d0 : d0 + NORM_CHUNK], pl.FP32)
                chunk_sum = pl.row_sum(pl.mul(chunk, chunk))
                square_sum = pl.add(square_sum, pl.reshape(chunk_sum, [1, TOKENS]))
            mean_square = pl.mul(square_sum, D_INV)
            inv_rms = pl.recip(pl.sqrt(pl.add(mean_square, RMS_EPS)))
            inv_rms_column = pl.reshape(inv_rms, [TOKENS, 1])
            for c in pl.pipeline(D // NORM_CHUNK, stage=2):
                d0 = c * NORM_CHUNK
                chunk = pl.cast(x[t0 : t0 + TOKENS, d0 : d0 + NORM_CHUNK], pl.FP32)
                scaled = pl.row_expand_mul(chunk, inv_rms_column)
                weighted = pl.col_expand_mul(scaled, norm_w[0:1, d0 : d0 + NORM_CHUNK])
                smoothed = pl.col_expand_mul(weighted, smooth[0:1, d0 : d0 + NORM_CHUNK])
                normed[t0 : t0 + TOKENS, d0 : d0 + NORM_CHUNK] = smoothed


@pl.jit.inline
def quantised(
    normed: pl.Tensor[[T, D], pl.FP32],
    codes: pl.Tensor[[T_PADDED, D], pl.INT8],
    scales: pl.Tensor[[T, 1], pl.FP32],
):
    """Codes of the rows of `normed` and the scales that undo them; rows of `codes` from T on stay undefined."""
    for i in pl.parallel(TILES):
        t0 = i * TOKENS
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="mtp_quantise"):
            amax = pl.full([1, TOKENS], dtype=pl.FP32, value=INT8_AMAX_EPS)
            for c in pl.pipeline(D // QUANT_CHUNK, stage=2):
                d0 = c * QUANT_CHUNK
                chunk_max = pl.row_max(pl.abs(normed[t0 : t0 + TOKENS, d0 : d0 + QUANT_CHUNK]))
                amax = pl.maximum(amax, pl.reshape(chunk_max, [1, TOKENS]))
            gain = pl.div(pl.full([1, TOKENS], dtype=pl.FP32, value=INT8_SCALE_MAX), amax)
            gain_column = pl.reshape(gain, [TOKENS, 1])
            for c in pl.pipeline(D // QUANT_CHUNK, stage=2):
                d0 = c * QUANT_CHUNK
                scaled = pl.row_expand_mul(normed[t0 : t0 + TOKENS, d0 : d0 + QUANT_CHUNK], gain_column)
                code = pl.cast(pl.cast(scaled, pl.INT32, mode="rint"), pl.FP16, mode="round")
                codes[t0 : t0 + TOKENS, d0 : d0 + QUANT_CHUNK] = pl.cast(code, pl.INT8, mode="trunc")
            scales[t0 : t0 + TOKENS, 0:1] = pl.reshape(pl.recip(gain), [TOKENS, 1])


@pl.jit.inline
def projected(
    codes: pl.Tensor[[T_PADDED, D], pl.INT8],
    weight: pl.Tensor[[D, D], pl.INT8],
    products: pl.Tensor[[T_PADDED, D], pl.INT32],
):
    """Codes times the transposed weight, whose rows are the output channels."""
    for block in pl.spmd(BOXES * COL_BLOCKS, name_hint="mtp_project"):
        t0 = block // COL_BLOCKS * BOX
        n0 = block % COL_BLOCKS * COLS
        rows = pl.min(BOX, T - t0)
        x_first = pl.slice(codes, [BOX, K_CHUNK], [t0, 0], valid_shape=[rows, K_CHUNK])
        w_first = weight[n0 : n0 + COLS, 0:K_CHUNK]
        acc = pl.matmul(x_first, w_first, out_dtype=pl.INT32, b_trans=True)
        for c in pl.pipeline(1, D // K_CHUNK, stage=2):
            k0 = c * K_CHUNK
            x_next = pl.slice(codes, [BOX, K_CHUNK], [t0, k0], valid_shape=[rows, K_CHUNK])
            w_next = weight[n0 : n0 + COLS, k0 : k0 + K_CHUNK]
            acc = pl.matmul_acc(acc, x_next, w_next, b_trans=True)
        products[t0 : t0 + BOX, n0 : n0 + COLS] = acc


@pl.jit.inline
def dequantised(
    products: pl.Tensor[[T_PADDED, D], pl.INT32],
    scales: pl.Tensor[[T, 1], pl.FP32],
    weight_scale: pl.Tensor[[1, D], pl.FP32],
    t0: pl.Scalar[pl.INDEX],
    n0: pl.Scalar[pl.INDEX],
):
    """[TOKENS, OUT_COLS] of one branch: the product times the scale of its token, then of its channel."""
    acc = pl.cast(products[t0 : t0 + TOKENS, n0 : n0 + OUT_COLS], pl.FP32, mode="none")
    by_token = pl.row_expand_mul(acc, scales[t0 : t0 + TOKENS, 0:1])
    return pl.col_expand_mul(by_token, weight_scale[0:1, n0 : n0 + OUT_COLS])


@pl.jit.inline
def mtp_projection_inline(
    hidden_states: pl.Tensor[[B_DYN, S_DYN, D], pl.BF16],
    prev_hidden_states: pl.Tensor[[B_DYN, S_DYN, D], pl.BF16],
    enorm_w: pl.Tensor[[D], pl.FP32],
    hnorm_w: pl.Tensor[[D], pl.FP32],
    e_proj_w: pl.Tensor[[D, D], pl.INT8],
    e_proj_w_scale: pl.Tensor[[D], pl.FP32],
    e_proj_smooth: pl.Tensor[[D], pl.FP32],
    h_proj_w: pl.Tensor[[D, D], pl.INT8],
    h_proj_w_scale: pl.Tensor[[D], pl.FP32],
    h_proj_smooth: pl.Tensor[[D], pl.FP32],
    hidden_states_out: pl.Out[pl.Tensor[[B_DYN, S_DYN, D], pl.BF16]],
):
    e_rows = pl.reshape(hidden_states, [T, D])
    h_rows = pl.reshape(prev_hidden_states, [T, D])
    out_rows = pl.reshape(hidden_states_out, [T, D])
    e_norm_w = pl.reshape(enorm_w, [1, D])
    h_norm_w = pl.reshape(hnorm_w, [1, D])
    e_smooth = pl.reshape(e_proj_smooth, [1, D])
    h_smooth = pl.reshape(h_proj_smooth, [1, D])
    e_w_scale = pl.reshape(e_proj_w_scale, [1, D])
    h_w_scale = pl.reshape(h_proj_w_scale, [1, D])
    e_normed = pl.create_tensor([T, D], dtype=pl.FP32)
    h_normed = pl.create_tensor([T, D], dtype=pl.FP32)
    e_i8 = pl.create_tensor([T_PADDED, D], dtype=pl.INT8)
    h_i8 = pl.create_tensor([T_PADDED, D], dtype=pl.INT8)
    e_scale = pl.create_tensor([T, 1], dtype=pl.FP32)
    h_scale = pl.create_tensor([T, 1], dtype=pl.FP32)
    e_i32 = pl.create_tensor([T_PADDED, D], dtype=pl.INT32)
    h_i32 = pl.create_tensor([T_PADDED, D], dtype=pl.INT32)

    normalised(e_rows, e_norm_w, e_smooth, e_normed)
    normalised(h_rows, h_norm_w, h_smooth, h_normed)
    quantised(e_normed, e_i8, e_scale)
    quantised(h_normed, h_i8, h_scale)
    projected(e_i8, e_proj_w, e_i32)
    projected(h_i8, h_proj_w, h_i32)

    for block in pl.spmd(TILES * OUT_BLOCKS, name_hint="mtp_dequantise"):
        t0 = block // OUT_BLOCKS * TOKENS
        n0 = block % OUT_BLOCKS * OUT_COLS
        e_out = dequantised(e_i32, e_scale, e_w_scale, t0, n0)
        h_out = dequantised(h_i32, h_scale, h_w_scale, t0, n0)
        both = pl.add(e_out, h_out)
        out_rows[t0 : t0 + TOKENS, n0 : n0 + OUT_COLS] = pl.cast(both, pl.BF16, mode="rint")

    return hidden_states_out


@pl.jit
def mtp_projection(
    hidden_states: pl.Tensor[[B_DYN, S_DYN, D], pl.BF16],
    prev_hidden_states: pl.Tensor[[B_DYN, S_DYN, D], pl.BF16],
    enorm_w: pl.Tensor[[D], pl.FP32],
    hnorm_w: pl.Tensor[[D], pl.FP32],
    e_proj_w: pl.Tensor[[D, D], pl.INT8],
    e_proj_w_scale: pl.Tensor[[D], pl.FP32],
    e_proj_smooth: pl.Tensor[[D], pl.FP32],
    h_proj_w: pl.Tensor[[D, D], pl.INT8],
    h_proj_w_scale: pl.Tensor[[D], pl.FP32],
    h_proj_smooth: pl.Tensor[[D], pl.FP32],
    hidden_states_out: pl.Out[pl.Tensor[[B_DYN, S_DYN, D], pl.BF16]],
):
    hidden_states.bind_dynamic(0, B_DYN)
    hidden_states.bind_dynamic(1, S_DYN)
    prev_hidden_states.bind_dynamic(0, B_DYN)
    prev_hidden_states.bind_dynamic(1, S_DYN)
    hidden_states_out.bind_dynamic(0, B_DYN)
    hidden_states_out.bind_dynamic(1, S_DYN)
    return mtp_projection_inline(
        hidden_states,
        prev_hidden_states,
        enorm_w,
        hnorm_w,
        e_proj_w,
        e_proj_w_scale,
        e_proj_smooth,
        h_proj_w,
        h_proj_w_scale,
        h_proj_smooth,
        hidden_states_out,
    )
