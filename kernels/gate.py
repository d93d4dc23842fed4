"""gate: FFN norm, INT8 rows, router scores and expert selection. Contract: hc_gate_experts.md, section 3.

    norm      RMSNorm, rounded to BF16, and an FP32 copy for the cube  task: TOKENS rows, by NORM_CHUNK
    quantise  INT8 codes and dequant scale of the rounded rows         task: TOKENS rows, by QUANT_CHUNK
    pad       score columns from N_EXPERTS on: never selected          one task
    scores    logits on the cube, sqrt(softplus), plus bias            block: BOX rows x EXPERT_TILE experts
    route     expert ids by table (hash layers) or by sorting          block: TOKENS rows
    inactive  zeros from row num_tokens on                             one task

T is a multiple of TOKENS. Rows are normed and scored in whole boxes of BOX up to the last active one, and not
beyond. A routing row is LANES wide (32 bytes), of which TOPK are valid. Only active rows are routed to the
outputs, so that the zeros of the inactive ones need no order.
"""

import pypto.language as pl

from kernels.sizes import (
    FP32_NEG_INF,
    INT8_AMAX_EPS,
    INT8_SCALE_MAX,
    N_EXPERTS,
    N_HASH_LAYERS,
    RMS_EPS,
    ROUTED_SCALING,
    TOPK,
    VOCAB,
    D,
    T,
    choose,
    tile,
)

TOKENS = 8
LANES = 8
BOX = 16
SORT_WIDTH = 256 if N_EXPERTS <= 256 else 512

if T % TOKENS:
    raise ValueError(f"gate: T = {T} is not a multiple of {TOKENS}")
if N_EXPERTS % BOX or N_EXPERTS > SORT_WIDTH:
    raise ValueError(f"gate: N_EXPERTS = {N_EXPERTS} is not a multiple of {BOX} up to {SORT_WIDTH}")
if TOPK > LANES:
    raise ValueError(f"gate: TOPK = {TOPK} is more than {LANES}")

NORM_CHUNK = tile(D, multiple=32, pr672=256, before_pr672=128)
QUANT_CHUNK = tile(D, multiple=32, pr672=256, before_pr672=32)
SCORE_CHUNK = tile(D, multiple=32, pr672=256)
EXPERT_TILE = choose(pr672=BOX, before_pr672=N_EXPERTS)
EXPERT_TILES = N_EXPERTS // EXPERT_TILE
T_BOXES = (T + BOX - 1) // BOX
T_PADDED = T_BOXES * BOX
D_INV = 1.0 / D


@pl.jit.inline
def sqrt_softplus(logits: pl.Tensor[[BOX, EXPERT_TILE], pl.FP32]):
    """sqrt(max(l, 0) + log1p(exp(-|l|))), to a few ULP for every l, however negative.

    log1p(u) = log(s) + (u - (s - 1)) / s with s = 1 + u rounded: s - 1 and the difference are exact, so what
    the rounding of s took away is put back. log(1 + u) alone would be a staircase below l = -8, and zero at
    -17.
    """
    u = pl.exp(pl.neg(pl.abs(logits)))
    s = pl.add(u, 1.0)
    lost = pl.sub(u, pl.sub(s, 1.0))
    log1p = pl.add(pl.log(s), pl.div(lost, s))
    return pl.sqrt(pl.add(pl.maximum(logits, 0.0), log1p))


@pl.jit.inline
def store_routes(
    t0: pl.Scalar[pl.INDEX],
    rows: pl.Scalar[pl.INDEX],
    ids: pl.Tensor[[TOKENS, LANES], pl.INT32],
    values: pl.Tensor[[TOKENS, LANES], pl.FP32],
    indices: pl.Tensor[[T, TOPK], pl.INT32],
    weights: pl.Tensor[[T, TOPK], pl.FP32],
):
    """Writes ids and weights of the first `rows` tokens of the tile; the pad lanes of `values` are zero."""
    share = pl.row_expand_div(values, pl.row_sum(values))
    weight = pl.mul(share, ROUTED_SCALING)
    indices = pl.assemble(indices, pl.set_validshape(ids, rows, TOPK), [t0, 0])
    weights = pl.assemble(weights, pl.set_validshape(weight, rows, TOPK), [t0, 0])


@pl.jit.inline
def gate_inline(
    x_mixed: pl.Tensor[[T, D], pl.BF16],
    norm_w: pl.Tensor[[D], pl.BF16],
    gate_w: pl.Tensor[[N_EXPERTS, D], pl.FP32],
    gate_bias: pl.Tensor[[N_EXPERTS], pl.FP32],
    layer_id: pl.Scalar[pl.INT32],
    num_tokens: pl.Scalar[pl.INT32],
    tid2eid: pl.Tensor[[VOCAB, TOPK], pl.INT32],
    input_ids: pl.Tensor[[T], pl.INT64],
    x_norm: pl.Out[pl.Tensor[[T, D], pl.BF16]],
    x_norm_i8: pl.Out[pl.Tensor[[T, D], pl.INT8]],
    x_norm_scale: pl.Out[pl.Tensor[[T, 1], pl.FP32]],
    indices: pl.Out[pl.Tensor[[T, TOPK], pl.INT32]],
    weights: pl.Out[pl.Tensor[[T, TOPK], pl.FP32]],
):
    active = pl.max(pl.min(num_tokens, T), 0)
    boxes = (active + BOX - 1) // BOX
    rows_normed = pl.min(boxes * BOX, T)
    gamma = pl.reshape(norm_w, [1, D])
    bias = pl.reshape(gate_bias, [1, N_EXPERTS])
    x_fp32 = pl.create_tensor([T_PADDED, D], dtype=pl.FP32)
    score = pl.create_tensor([T_PADDED, SORT_WIDTH], dtype=pl.FP32)
    biased = pl.create_tensor([T_PADDED, SORT_WIDTH], dtype=pl.FP32)

    for i in pl.parallel(rows_normed // TOKENS):
        t0 = i * TOKENS
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="gate_norm"):
            square_sum = pl.full([1, TOKENS], dtype=pl.FP32, value=0.0)
            for c in pl.pipeline(D // NORM_CHUNK, stage=2):
                d0 = c * NORM_CHUNK
                chunk = pl.cast(x_mixed[t0 : t0 + TOKENS, d0 : d0 + NORM_CHUNK], pl.FP32)
                chunk_sum = pl.row_sum(pl.mul(chunk, chunk))
                square_sum = pl.add(square_sum, pl.reshape(chunk_sum, [1, TOKENS]))
            mean_square = pl.mul(square_sum, D_INV)
            inv_rms = pl.recip(pl.sqrt(pl.add(mean_square, RMS_EPS)))
            inv_rms_column = pl.reshape(inv_rms, [TOKENS, 1])
            for c in pl.pipeline(D // NORM_CHUNK, stage=2):
                d0 = c * NORM_CHUNK
                chunk = pl.cast(x_mixed[t0 : t0 + TOKENS, d0 : d0 + NORM_CHUNK], pl.FP32)
                gamma_chunk = pl.cast(gamma[0:1, d0 : d0 + NORM_CHUNK], pl.FP32)
                normed = pl.col_expand_mul(pl.row_expand_mul(chunk, inv_rms_column), gamma_chunk)
                rounded = pl.cast(normed, pl.BF16, mode="rint")
                x_norm[t0 : t0 + TOKENS, d0 : d0 + NORM_CHUNK] = rounded
                x_fp32[t0 : t0 + TOKENS, d0 : d0 + NORM_CHUNK] = pl.cast(rounded, pl.FP32)

    for i in pl.parallel(rows_normed // TOKENS):
        t0 = i * TOKENS
        with pl.at(level=pl.Level.CORE_GROUP, name_hint="gate_quantise"):
            amax = pl.full([1, TOKENS], dtype=pl.FP32, value=INT8_AMAX_EPS)
            for c in pl.pipeline(D // QUANT_CHUNK, stage=2):
                d0 = c * QUANT_CHUNK
                chunk_max = pl.row_max(pl.abs(x_fp32[t0 : t0 + TOKENS, d0 : d0 + QUANT_CHUNK]))
                amax = pl.maximum(amax, pl.reshape(chunk_max, [1, TOKENS]))
            gain = pl.div(pl.full([1, TOKENS], dtype=pl.FP32, value=INT8_SCALE_MAX), amax)
            gain_column = pl.reshape(gain, [TOKENS, 1])
            for c in pl.pipeline(D // QUANT_CHUNK, stage=2):
                d0 = c * QUANT_CHUNK
                scaled = pl.row_expand_mul(x_fp32[t0 : t0 + TOKENS, d0 : d0 + QUANT_CHUNK], gain_column)
                code = pl.cast(pl.cast(scaled, pl.INT32, mode="rint"), pl.FP16, mode="round")
                x_norm_i8[t0 : t0 + TOKENS, d0 : d0 + QUANT_CHUNK] = pl.cast(code, pl.INT8, mode="trunc")
            scale = pl.reshape(pl.recip(gain), [TOKENS, 1])
            rows = pl.max(pl.min(active - t0, TOKENS), 0)
            x_norm_scale[t0 : t0 + TOKENS, 0:1] = pl.set_validshape(scale, rows, 1)

    with pl.at(level=pl.Level.CORE_GROUP, name_hint="gate_pad"):
        no_score = pl.full([BOX, BOX], dtype=pl.FP32, value=0.0)
        never = pl.full([BOX, BOX], dtype=pl.FP32, value=FP32_NEG_INF)
        for r in pl.range(T_BOXES):
            r0 = r * BOX
            for c in pl.range(N_EXPERTS // BOX, SORT_WIDTH // BOX):
                e0 = c * BOX
                score[r0 : r0 + BOX, e0 : e0 + BOX] = no_score
                biased[r0 : r0 + BOX, e0 : e0 + BOX] = never

    if active > 0:
        for block in pl.spmd(boxes * EXPERT_TILES, name_hint="gate_scores"):
            t0 = block // EXPERT_TILES * BOX
            e0 = block % EXPERT_TILES * EXPERT_TILE
            rows = pl.min(BOX, T - t0)
            x_first = pl.slice(x_fp32, [BOX, SCORE_CHUNK], [t0, 0], valid_shape=[rows, SCORE_CHUNK])
            w_first = gate_w[e0 : e0 + EXPERT_TILE, 0:SCORE_CHUNK]
            logits = pl.matmul(x_first, w_first, out_dtype=pl.FP32, b_trans=True)
            for c in pl.range(1, D // SCORE_CHUNK):
                d0 = c * SCORE_CHUNK
                x_next = pl.slice(x_fp32, [BOX, SCORE_CHUNK], [t0, d0], valid_shape=[rows, SCORE_CHUNK])
                w_next = gate_w[e0 : e0 + EXPERT_TILE, d0 : d0 + SCORE_CHUNK]
                logits = pl.matmul_acc(logits, x_next, w_next, b_trans=True)
            unbiased = sqrt_softplus(logits)
            score[t0 : t0 + BOX, e0 : e0 + EXPERT_TILE] = unbiased
            biased[t0 : t0 + BOX, e0 : e0 + EXPERT_TILE] = pl.col_expand_add(unbiased, bias[0:1, e0 : e0 + EXPERT_TILE])

        if layer_id < N_HASH_LAYERS:
            for block in pl.spmd((active + TOKENS - 1) // TOKENS, name_hint="gate_route_hash"):
                t0 = block * TOKENS
                rows = pl.min(TOKENS, active - t0)
                ids = pl.full([TOKENS, LANES], dtype=pl.INT32, value=0)
                values = pl.full([TOKENS, LANES], dtype=pl.FP32, value=0.0)
                for r in pl.range(rows):
                    token = pl.cast(pl.read(input_ids, [t0 + r]), pl.INDEX)
                    for k in pl.range(TOPK):
                        expert = pl.read(tid2eid, [token, k])
                        pl.write(ids, [r, k], expert)
                        pl.write(values, [r, k], pl.read(score, [t0 + r, pl.cast(expert, pl.INDEX)]))
                store_routes(t0, rows, ids, values, indices, weights)
        else:
            for block in pl.spmd((active + TOKENS - 1) // TOKENS, name_hint="gate_route_sort"):
                t0 = block * TOKENS
                rows = pl.min(TOKENS, active - t0)
                ids = pl.full([TOKENS, LANES], dtype=pl.INT32, value=0)
                numbers = pl.arange(0, [1, SORT_WIDTH], dtype=pl.UINT32)
                for r in pl.range(TOKENS):
                    row = t0 + r
                    # (value, id) pairs of two positions: sorted blocks of 32 pairs, merged four at a time.
                    # A part of a sorted run is a sorted run: four quarters of the row are runs, for either
                    # width.
                    pairs = pl.sort32(biased[row : row + 1, 0:SORT_WIDTH], numbers)
                    runs = pl.mrgsort(pairs, block_len=64)
                    order = pl.mrgsort(runs, block_len=SORT_WIDTH // 2)
                    best = order[0:1, 0 : 2 * LANES]
                    best_ids = pl.gather(best, mask_pattern=pl.tile.MaskPattern.P1010, output_dtype=pl.INT32)
                    ids[r : r + 1, 0:LANES] = best_ids
                gathered = pl.gather(score[t0 : t0 + TOKENS, 0:SORT_WIDTH], dim=-1, index=ids)
                values = pl.fillpad(pl.set_validshape(gathered, TOKENS, TOPK), pad_value=pl.PadValue.zero)
                store_routes(t0, rows, ids, values, indices, weights)

    with pl.at(level=pl.Level.CORE_GROUP, name_hint="gate_inactive"):
        for t in pl.range(active, T):
            pl.write(x_norm_scale, [t, 0], 0.0)
            for k in pl.range(TOPK):
                pl.write(indices, [t, k], pl.const(0, pl.INT32))
                pl.write(weights, [t, k], 0.0)

    return x_norm, x_norm_i8, x_norm_scale, indices, weights


@pl.jit
def gate(
    x_mixed: pl.Tensor[[T, D], pl.BF16],
    norm_w: pl.Tensor[[D], pl.BF16],
    gate_w: pl.Tensor[[N_EXPERTS, D], pl.FP32],
    gate_bias: pl.Tensor[[N_EXPERTS], pl.FP32],
    layer_id: pl.Scalar[pl.INT32],
    num_tokens: pl.Scalar[pl.INT32],
    tid2eid: pl.Tensor[[VOCAB, TOPK], pl.INT32],
    input_ids: pl.Tensor[[T], pl.INT64],
    x_norm: pl.Out[pl.Tensor[[T, D], pl.BF16]],
    x_norm_i8: pl.Out[pl.Tensor[[T, D], pl.INT8]],
    x_norm_scale: pl.Out[pl.Tensor[[T, 1], pl.FP32]],
    indices: pl.Out[pl.Tensor[[T, TOPK], pl.INT32]],
    weights: pl.Out[pl.Tensor[[T, TOPK], pl.FP32]],
):
    return gate_inline(
        x_mixed,
        norm_w,
        gate_w,
        gate_bias,
        layer_id,
        num_tokens,
        tid2eid,
        input_ids,
        x_norm,
        x_norm_i8,
        x_norm_scale,
        indices,
        weights,
    )
