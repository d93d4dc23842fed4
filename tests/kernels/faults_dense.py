"""Faults of the dense ops: hc_head, mtp_projection, qkv_proj_rope, lm_head (dense.md 8.7, 9.7, 7.7, 10.7)."""

from __future__ import annotations

from fault import RINT_BF16, RINT_INT32, Fault

HC_HEAD = (
    Fault(
        op="hc_head",
        name="half_away",
        before=RINT_BF16,
        after='pl.BF16, mode="round")',
        output="y",
        why="ties go away from zero, as in the golden of July",
        cases=("bf16_ties",),
    ),
    Fault(
        op="hc_head",
        name="trunc",
        before=RINT_BF16,
        after='pl.BF16, mode="trunc")',
        output="y",
        why="cuts towards zero",
    ),
    Fault(
        op="hc_head",
        name="low_precision_rsqrt",
        before="pl.recip(pl.sqrt(pl.add(mean_square, RMS_EPS)))",
        after="pl.rsqrt(pl.add(mean_square, RMS_EPS))",
        output="y",
        why="the approximate instruction instead of sqrt and divide, as in July",
        cases=("even_gates",),
        deployment="prefill",
    ),
    Fault(
        op="hc_head",
        name="no_rms_epsilon",
        before="pl.add(mean_square, RMS_EPS)",
        after="pl.add(mean_square, 0.0)",
        output="y",
        why="1/0 for a token of zeros, and tiny tokens count as much as others",
        cases=("zero_tokens", "tiny_tokens"),
    ),
    Fault(
        op="hc_head",
        name="no_gate_epsilon",
        before="pl.add(gate_sigmoid, HC_EPS)",
        after="pl.add(gate_sigmoid, 0.0)",
        output="y",
        why="a closed gate lets nothing through",
        cases=("closed_gates",),
    ),
    Fault(
        op="hc_head",
        name="epsilon_on_the_logit",
        before="gate_sigmoid = sigmoid(logits)\n        by_stream = pl.transpose(pl.add(gate_sigmoid, HC_EPS), 0, 1)",
        after="gate_sigmoid = sigmoid(pl.add(logits, HC_EPS))\n        by_stream = pl.transpose(gate_sigmoid, 0, 1)",
        output="y",
        why="the epsilon goes in before the sigmoid",
        cases=("closed_gates",),
    ),
    Fault(
        op="hc_head",
        name="bias_before_scale",
        before="pl.col_expand_add(pl.mul(mixes, pl.read(hc_head_scale, [0])), bias)",
        after="pl.mul(pl.col_expand_add(mixes, bias), pl.read(hc_head_scale, [0]))",
        output="y",
        why="the bias is scaled too",
        cases=("default", "base_only"),
    ),
    Fault(
        op="hc_head",
        name="rms_over_one_stream",
        before="HC_DIM_INV = 1.0 / HC_DIM",
        after="HC_DIM_INV = 1.0 / D",
        output="y",
        why="the mean is over all streams",
        cases=("even_gates",),
    ),
    Fault(
        op="hc_head",
        name="mixes_normalised_streams",
        before="by_stream = pl.transpose(pl.add(gate_sigmoid, HC_EPS), 0, 1)",
        after=(
            "by_stream = pl.transpose(\n"
            "            pl.row_expand_mul(pl.add(gate_sigmoid, HC_EPS), pl.reshape(inv_rms, [TOKENS, 1])), 0, 1\n"
            "        )"
        ),
        output="y",
        why="the normalisation acts on the projection only",
    ),
    Fault(
        op="hc_head",
        name="projection_not_normalised",
        before="mixes = pl.row_expand_mul(raw, pl.reshape(inv_rms, [TOKENS, 1]))",
        after="mixes = raw",
        output="y",
        why="the gates depend on the size of the streams",
        cases=("even_gates",),
    ),
    Fault(
        op="hc_head",
        name="gates_reversed",
        before="gates[stream : stream + 1, ",
        after="gates[HC_MULT - 1 - stream : HC_MULT - stream, ",
        output="y",
        why="each stream takes the gate of another",
        cases=("default", "base_only"),
    ),
    Fault(
        op="hc_head",
        name="dropped_slice",
        before="for k in pl.range(K_SLICES):",
        after="for k in pl.range(K_SLICES - 1):",
        output="y",
        why="one partial product and one partial sum of squares are not added",
        cases=("even_gates",),
    ),
    Fault(
        op="hc_head",
        name="dropped_product_chunk",
        before="pl.pipeline(1, K_SLICE // PROJECT_CHUNK, stage=2)",
        after="pl.pipeline(1, K_SLICE // PROJECT_CHUNK - 1, stage=2)",
        output="y",
        why="the projection misses the last chunk of every slice",
        cases=("even_gates",),
    ),
    Fault(
        op="hc_head",
        name="dropped_columns",
        before="pl.spmd(tiles * OUT_BLOCKS,",
        after="pl.spmd(tiles * OUT_BLOCKS - 1,",
        output="y",
        why="the last columns of the last tokens are never written",
    ),
    Fault(
        op="hc_head",
        name="tied_to_eight_tokens",
        before="tiles = tokens // TOKENS",
        after="tiles = 1",
        output="y",
        why="T is taken from the decode deployment and not from the shape",
        deployment="prefill",
    ),
)

PROJECT = """\
        w_first = weight[n0 : n0 + COLS, 0:K_CHUNK]
        acc = pl.matmul(x_first, w_first, out_dtype=pl.INT32, b_trans=True)
        for c in pl.pipeline(1, D // K_CHUNK, stage=2):
            k0 = c * K_CHUNK
            x_next = pl.slice(codes, [BOX, K_CHUNK], [t0, k0], valid_shape=[rows, K_CHUNK])
            w_next = weight[n0 : n0 + COLS, k0 : k0 + K_CHUNK]
            acc = pl.matmul_acc(acc, x_next, w_next, b_trans=True)
"""
PROJECT_UNTRANSPOSED = """\
        w_first = weight[0:K_CHUNK, n0 : n0 + COLS]
        acc = pl.matmul(x_first, w_first, out_dtype=pl.INT32)
        for c in pl.pipeline(1, D // K_CHUNK, stage=2):
            k0 = c * K_CHUNK
            x_next = pl.slice(codes, [BOX, K_CHUNK], [t0, k0], valid_shape=[rows, K_CHUNK])
            w_next = weight[k0 : k0 + K_CHUNK, n0 : n0 + COLS]
            acc = pl.matmul_acc(acc, x_next, w_next)
"""
MTP = "hidden_states_out"

MTP_PROJECTION = (
    Fault(
        op="mtp_projection",
        name="trunc",
        before='pl.cast(both, pl.BF16, mode="rint")',
        after='pl.cast(both, pl.BF16, mode="trunc")',
        output=MTP,
        why="cuts towards zero",
    ),
    Fault(
        op="mtp_projection",
        name="norm_rounded_before_int8",
        before="= smoothed",
        after='= pl.cast(\n                    pl.cast(smoothed, pl.BF16, mode="rint"), pl.FP32\n                )',
        output=MTP,
        why="rounded twice on the way to INT8, as in July: 4 % of the codes move",
    ),
    Fault(
        op="mtp_projection",
        name="quantise_trunc",
        before=RINT_INT32,
        after='pl.INT32, mode="trunc")',
        output=MTP,
        why="half of the codes are one too small",
    ),
    Fault(
        op="mtp_projection",
        name="quantise_hop_missing",
        before='pl.cast(pl.cast(scaled, pl.INT32, mode="rint"), pl.FP16, mode="round")',
        after='pl.cast(scaled, pl.FP16, mode="rint")',
        output=MTP,
        why="without the integer hop the last cast truncates",
    ),
    Fault(
        op="mtp_projection",
        name="quantises_with_128",
        before="value=INT8_SCALE_MAX",
        after="value=128.0",
        output=MTP,
        why="the largest value of a row wraps to -128",
    ),
    Fault(
        op="mtp_projection",
        name="no_amax_floor",
        before="value=INT8_AMAX_EPS",
        after="value=0.0",
        output=MTP,
        why="rows below the floor are blown up to full codes",
        cases=("tiny_gamma",),
    ),
    Fault(
        op="mtp_projection",
        name="no_rms_epsilon",
        before="pl.add(mean_square, RMS_EPS)",
        after="pl.add(mean_square, 0.0)",
        output=MTP,
        why="1/0 for a row of zeros",
        cases=("zero_rows", "tiny_tokens"),
    ),
    Fault(
        op="mtp_projection",
        name="low_precision_rsqrt",
        before="pl.recip(pl.sqrt(pl.add(mean_square, RMS_EPS)))",
        after="pl.rsqrt(pl.add(mean_square, RMS_EPS))",
        output=MTP,
        why="the approximate instruction instead of sqrt and divide, as in July",
    ),
    Fault(
        op="mtp_projection",
        name="smoothing_dropped",
        before="pl.col_expand_mul(weighted, smooth[0:1, d0 : d0 + NORM_CHUNK])",
        after="weighted",
        output=MTP,
        why="the activations are quantised without smoothing",
    ),
    Fault(
        op="mtp_projection",
        name="norm_weights_swapped",
        before="normalised(e_rows, e_norm_w,",
        after="normalised(e_rows, h_norm_w,",
        output=MTP,
        why="both branches take the norm weight of one",
    ),
    Fault(
        op="mtp_projection",
        name="weight_scales_swapped",
        before="e_out = dequantised(e_i32, e_scale, e_w_scale,",
        after="e_out = dequantised(e_i32, e_scale, h_w_scale,",
        output=MTP,
        why="one branch is scaled as the other",
    ),
    Fault(
        op="mtp_projection",
        name="smoothing_on_the_output",
        before="pl.col_expand_mul(by_token, weight_scale[0:1, n0 : n0 + OUT_COLS])",
        after=(
            "pl.col_expand_mul(\n"
            "        by_token, pl.mul(weight_scale[0:1, n0 : n0 + OUT_COLS], weight_scale[0:1, n0 : n0 + OUT_COLS])\n"
            "    )"
        ),
        output=MTP,
        why="a vector of the output channels acts twice",
    ),
    Fault(
        op="mtp_projection",
        name="scale_of_the_first_tokens",
        before="scales[t0 : t0 + TOKENS, 0:1])",
        after="scales[0:TOKENS, 0:1])",
        output=MTP,
        why="every token tile is scaled as the first",
        deployment="prefill",
    ),
    Fault(
        op="mtp_projection",
        name="weight_not_transposed",
        before=PROJECT,
        after=PROJECT_UNTRANSPOSED,
        output=MTP,
        why="rows of the weight are output channels",
    ),
    Fault(
        op="mtp_projection",
        name="branch_rounded",
        before="both = pl.add(e_out, h_out)",
        after='both = pl.add(pl.cast(pl.cast(e_out, pl.BF16, mode="rint"), pl.FP32), h_out)',
        output=MTP,
        why="one branch is rounded to BF16 before the sum",
    ),
    Fault(
        op="mtp_projection",
        name="one_branch_twice",
        before="both = pl.add(e_out, h_out)",
        after="both = pl.add(e_out, e_out)",
        output=MTP,
        why="the previous hidden state has no effect",
        cases=("default", "no_previous"),
    ),
    Fault(
        op="mtp_projection",
        name="dropped_product_chunk",
        before="pl.pipeline(1, D // K_CHUNK, stage=2)",
        after="pl.pipeline(1, D // K_CHUNK - 1, stage=2)",
        output=MTP,
        why="the projection misses the last input channels",
    ),
    Fault(
        op="mtp_projection",
        name="dropped_columns",
        before="pl.spmd(TILES * OUT_BLOCKS,",
        after="pl.spmd(TILES * OUT_BLOCKS - 1,",
        output=MTP,
        why="the last channels of the last tokens are never written",
    ),
)

ROTATE = """\
    new_even = pl.cast(pl.sub(pl.mul(even, cos), pl.mul(odd, sin)), pl.BF16, mode="rint")
    new_odd = pl.cast(pl.add(pl.mul(even, sin), pl.mul(odd, cos)), pl.BF16, mode="rint")
"""
ROTATE_BACK = """\
    new_even = pl.cast(pl.add(pl.mul(even, cos), pl.mul(odd, sin)), pl.BF16, mode="rint")
    new_odd = pl.cast(pl.sub(pl.mul(odd, cos), pl.mul(even, sin)), pl.BF16, mode="rint")
"""
INTERLEAVE = """\
    blank = pl.full([TOKENS, ROPE_DIM], dtype=pl.BF16, value=0.0)
    half_filled = pl.tensor.scatter(new_even, mask_pattern=pl.tile.MaskPattern.P0101, dst=blank)
    return pl.tensor.scatter(new_odd, mask_pattern=pl.tile.MaskPattern.P1010, dst=half_filled)
"""
SPLIT_HALVES = """\
    return pl.concat(new_even, new_odd)
"""
LAST_KV = """\
        last_normed = pl.col_expand_mul(pl.row_expand_mul(last, inv_rms), last_gamma)
        rotated = rotate(last_normed, cos, sin)
        kv[t0 : t0 + TOKENS, NOPE_DIM:HEAD_DIM] = rotated
"""
LAST_KV_GAMMA_AFTER = """\
        last_normed = pl.row_expand_mul(last, inv_rms)
        turned = rotate(last_normed, cos, sin)
        weighted = pl.col_expand_mul(pl.cast(turned, pl.FP32), last_gamma)
        kv[t0 : t0 + TOKENS, NOPE_DIM:HEAD_DIM] = pl.cast(weighted, pl.BF16, mode="rint")
"""

QKV_PROJ_ROPE = (
    Fault(
        op="qkv_proj_rope",
        name="query_rounded_before_int8",
        before="q_normed[t0 : t0 + TOKENS, n0 : n0 + Q_NORM_CHUNK] = normed",
        after=(
            "q_normed[t0 : t0 + TOKENS, n0 : n0 + Q_NORM_CHUNK] = pl.cast(\n"
            '                pl.cast(normed, pl.BF16, mode="rint"), pl.FP32\n'
            "            )"
        ),
        output="qr",
        why="rounded twice on the way to INT8: 3 % of the codes move, all by one",
    ),
    Fault(
        op="qkv_proj_rope",
        name="quantise_trunc",
        before=RINT_INT32,
        after='pl.INT32, mode="trunc")',
        output="qr",
        why="half of the codes are one too small, all within one step",
    ),
    Fault(
        op="qkv_proj_rope",
        name="quantise_floor",
        before=RINT_INT32,
        after='pl.INT32, mode="floor")',
        output="qr",
        why="half of the codes are one too small, all within one step",
    ),
    Fault(
        op="qkv_proj_rope",
        name="quantise_hop_missing",
        before='pl.cast(pl.cast(scaled, pl.INT32, mode="rint"), pl.FP16, mode="round")',
        after='pl.cast(scaled, pl.FP16, mode="rint")',
        output="qr",
        why="without the integer hop the last cast truncates",
    ),
    Fault(
        op="qkv_proj_rope",
        name="quantises_with_128",
        before="value=INT8_SCALE_MAX",
        after="value=128.0",
        output="qr",
        why="the largest value of a row wraps to -128",
    ),
    Fault(
        op="qkv_proj_rope",
        name="scale_not_inverted",
        before="pl.reshape(pl.recip(gain), [TOKENS, 1])",
        after="gain_column",
        output="qr_scale",
        why="the quantising scale is written instead of the dequantising one",
    ),
    Fault(
        op="qkv_proj_rope",
        name="low_precision_rsqrt",
        before="pl.recip(pl.sqrt(pl.add(mean_square, RMS_EPS)))",
        after="pl.rsqrt(pl.add(mean_square, RMS_EPS))",
        output="q",
        why="the approximate instruction: a fifth of q moves by a bit",
    ),
    Fault(
        op="qkv_proj_rope",
        name="query_head_rounded",
        before="query[t0 : t0 + TOKENS, n0 : n0 + DEQUANT_COLS] = by_column",
        after=(
            "query[t0 : t0 + TOKENS, n0 : n0 + DEQUANT_COLS] = pl.cast(\n"
            '            pl.cast(by_column, pl.BF16, mode="rint"), pl.FP32\n'
            "        )"
        ),
        output="q",
        why="a BF16 hop before the norm of the head",
    ),
    Fault(
        op="qkv_proj_rope",
        name="rounded_before_rotation",
        before="rope_normed = pl.row_expand_mul(rope, inv_once)",
        after='rope_normed = pl.cast(pl.cast(pl.row_expand_mul(rope, inv_once), pl.BF16, mode="rint"), pl.FP32)',
        output="q",
        why="a BF16 hop between the norm and the rotation",
    ),
    Fault(
        op="qkv_proj_rope",
        name="rotates_backwards",
        before=ROTATE,
        after=ROTATE_BACK,
        output="kv",
        why="the sign is on the other lane of a pair",
    ),
    Fault(
        op="qkv_proj_rope",
        name="split_halves",
        before=INTERLEAVE,
        after=SPLIT_HALVES,
        output="q",
        why="even lanes first, odd lanes second, instead of interleaved pairs",
    ),
    Fault(
        op="qkv_proj_rope",
        name="rope_trunc",
        before='pl.mul(odd, cos)), pl.BF16, mode="rint")',
        after='pl.mul(odd, cos)), pl.BF16, mode="trunc")',
        output="q",
        why="odd rotated lanes are cut towards zero",
    ),
    Fault(
        op="qkv_proj_rope",
        name="second_half_of_the_tables",
        before="rope_sin[t0 : t0 + TOKENS, 0:ROPE_HALF]",
        after="rope_sin[t0 : t0 + TOKENS, ROPE_HALF:ROPE_DIM]",
        occurs=2,
        nth=1,
        output="q",
        why="only the first half of a table row holds the angles",
    ),
    Fault(
        op="qkv_proj_rope",
        name="gamma_after_rotation",
        before=LAST_KV,
        after=LAST_KV_GAMMA_AFTER,
        output="kv",
        why="gamma is per lane and does not commute; invisible with gamma = 1",
    ),
    Fault(
        op="qkv_proj_rope",
        name="kv_gamma_dropped_from_rope",
        before="last_normed = pl.col_expand_mul(pl.row_expand_mul(last, inv_rms), last_gamma)",
        after="last_normed = pl.row_expand_mul(last, inv_rms)",
        output="kv",
        why="gamma counts for NOPE and rope lanes alike",
    ),
    Fault(
        op="qkv_proj_rope",
        name="head_sum_misses_rope",
        before="pl.add(nope_sum, rope_sum)",
        after="nope_sum",
        output="q",
        why="the RMS of a head is over all its lanes",
    ),
    Fault(
        op="qkv_proj_rope",
        name="column_scale_of_the_first_head",
        before="column_scale[0:1, n0 : n0 + DEQUANT_COLS]",
        after="column_scale[0:1, 0:DEQUANT_COLS]",
        output="q",
        why="every column block is scaled as the first",
    ),
    Fault(
        op="qkv_proj_rope",
        name="column_before_token_scale_missing",
        before="pl.row_expand_mul(q_acc, qr_scale[t0 : t0 + TOKENS, 0:1])",
        after="q_acc",
        output="q",
        why="without the scale of the token the head's epsilon means something else",
        cases=("tiny_gamma",),
    ),
    Fault(
        op="qkv_proj_rope",
        name="no_rms_epsilon",
        before="pl.add(mean_square, RMS_EPS)",
        after="pl.add(mean_square, 0.0)",
        output="kv",
        why="1/0 for a row of zeros",
        cases=("zero_rows",),
    ),
    Fault(
        op="qkv_proj_rope",
        name="no_amax_floor",
        before="value=INT8_AMAX_EPS",
        after="value=0.0",
        output="qr_scale",
        why="a row of zeros has no scale",
        cases=("zero_rows", "tiny_gamma"),
    ),
    Fault(
        op="qkv_proj_rope",
        name="low_rank_mean_over_wrong_count",
        before="Q_LORA_INV = 1.0 / Q_LORA",
        after="Q_LORA_INV = 1.0 / D",
        output="qr_scale",
        why="the mean is over the low-rank channels",
    ),
    Fault(
        op="qkv_proj_rope",
        name="dropped_query_slice",
        before="return pl.add(low, high)",
        after="return pl.add(low, low)",
        output="qr",
        why="half of the input channels stand in for the others",
    ),
    Fault(
        op="qkv_proj_rope",
        name="dropped_kv_slice",
        before="for k in pl.range(1, KV_SLICES):",
        after="for k in pl.range(1, KV_SLICES - 1):",
        output="kv",
        why="the last partial product is not added",
    ),
    Fault(
        op="qkv_proj_rope",
        name="dropped_code_chunk",
        before="pl.pipeline(1, Q_LORA // Q_UP_CHUNK, stage=2)",
        after="pl.pipeline(1, Q_LORA // Q_UP_CHUNK - 1, stage=2)",
        output="q",
        why="the second projection misses the last codes",
    ),
    Fault(
        op="qkv_proj_rope",
        name="dropped_head",
        before="pl.spmd(TILES * N_HEADS,",
        after="pl.spmd(TILES * N_HEADS - 1,",
        output="q",
        why="the last head of the last tokens is never written",
    ),
    Fault(
        op="qkv_proj_rope",
        name="tables_of_the_first_tokens",
        before="rope_cos[t0 : t0 + TOKENS, 0:ROPE_HALF]",
        after="rope_cos[0:TOKENS, 0:ROPE_HALF]",
        occurs=2,
        nth=2,
        output="kv",
        why="every token tile is rotated as the first",
        deployment="prefill",
    ),
)

PUBLISH_WAIT = "pld.system.wait(hidden_done, [owner, 0], 1, cmp=pld.WaitCmp.Ge)"
RECEIVE_WAIT = "pld.system.wait(logits_done, [source, 0], 1, cmp=pld.WaitCmp.Ge)"
PUBLISH_NOTIFY = "pld.system.notify(hidden_done, peer, [my_rank, 0], 1, op=pld.NotifyOp.Set)"
ROUTE_NOTIFY = "pld.system.notify(logits_done, owner, [my_rank, 0], 1, op=pld.NotifyOp.Set)"
PUBLISH_PUT = """\
                pld.tensor.put(
                    hidden_window,
                    peer,
                    hidden_states,
                    [my_rank * T_MAX, 0],
                    [0, 0],
                    [T, D],
                    chunk_rows=TOKENS,
                    chunk_cols=COPY_COLS,
                )
"""

LM_HEAD = (
    Fault(
        op="lm_head",
        name="rounded_logits",
        before="logits_shard[t0 : t0 + BOX, n0 : n0 + COLS] = logits",
        after=(
            "logits_shard[t0 : t0 + BOX, n0 : n0 + COLS] = pl.cast(\n"
            '            pl.cast(logits, pl.BF16, mode="rint"), pl.FP32\n'
            "        )"
        ),
        output="logits",
        why="logits leave as BF16, which the reference's tolerance lets pass",
    ),
    Fault(
        op="lm_head",
        name="dropped_product_chunk",
        before="for c in pl.range(1, D // K_CHUNK):",
        after="for c in pl.range(1, D // K_CHUNK - 1):",
        occurs=2,
        nth=1,
        output="logits",
        why="the last input channels are not added",
    ),
    Fault(
        op="lm_head",
        name="dropped_tail_chunk",
        before="for c in pl.range(1, D // K_CHUNK):",
        after="for c in pl.range(1, D // K_CHUNK - 1):",
        occurs=2,
        nth=2,
        output="logits",
        why="the tail misses the last input channels",
    ),
    Fault(
        op="lm_head",
        name="tail_never_computed",
        before="    if TAIL_COLS > 0:\n        for block",
        after="    if TAIL_COLS > BOX * BOX:\n        for block",
        output="logits",
        why="the ids beyond the last whole block have no logits",
    ),
    Fault(
        op="lm_head",
        name="tail_weights_of_the_block_before",
        before="TAIL_START : TAIL_START + TAIL_TILE, 0:K_CHUNK]",
        after="TAIL_START - TAIL_TILE : TAIL_START, 0:K_CHUNK]",
        output="logits",
        why="the tail starts from the ids before it",
    ),
    Fault(
        op="lm_head",
        name="owner_and_rank_transposed",
        before="copy_columns(shard, logits, 0, own_column)",
        after="copy_columns(shard, logits, 0, VOCAB - VOCAB_PER_TP - own_column)",
        output="logits",
        why="the own shard goes to the columns of another rank",
    ),
    Fault(
        op="lm_head",
        name="own_rows_for_every_owner",
        before="received = hidden_window[u0 : u0 + TOKENS, d0 : d0 + COPY_COLS]",
        after="received = hidden_states[t0 : t0 + TOKENS, d0 : d0 + COPY_COLS]",
        output="logits",
        why="a rank multiplies its own rows for everybody; invisible where all ranks hold the same",
    ),
    Fault(
        op="lm_head",
        name="stride_of_active_rows",
        before="u0 = owner * T_MAX + t0",
        after="u0 = owner * T + t0",
        output="logits",
        why="slots of the window are T_MAX rows apart, not T",
    ),
    Fault(
        op="lm_head",
        name="tail_columns_not_received",
        before="        if TAIL_COLS > 0:\n            n1 =",
        after="        if TAIL_COLS > BOX * BOX:\n            n1 =",
        output="logits",
        why="the copy stops at the last whole block",
    ),
    Fault(
        op="lm_head",
        name="routed_to_the_first_columns",
        before="                    [0, own_column],",
        after="                    [0, 0],",
        output="logits",
        why="all shards arrive in the columns of rank 0",
    ),
    Fault(
        op="lm_head",
        name="reads_rows_before_the_signal",
        before=PUBLISH_WAIT,
        after="pass",
        output="logits",
        why="rows are read whether they have come or not",
        fault="GG404",
    ),
    Fault(
        op="lm_head",
        name="reads_logits_before_the_signal",
        before=RECEIVE_WAIT,
        after="pass",
        output="logits",
        why="columns are read whether they have come or not",
        fault="GG404",
    ),
    Fault(
        op="lm_head",
        name="signal_before_the_rows",
        before=f"{PUBLISH_PUT}                {PUBLISH_NOTIFY}\n",
        after=f"                {PUBLISH_NOTIFY}\n{PUBLISH_PUT}",
        output="logits",
        why="the signal overtakes the rows",
        fault="GG404",
    ),
    Fault(
        op="lm_head",
        name="rows_never_signalled",
        before=PUBLISH_NOTIFY,
        after="pass",
        output="logits",
        why="everybody waits for rows",
        fault="GG405",
    ),
    Fault(
        op="lm_head",
        name="logits_never_signalled",
        before=ROUTE_NOTIFY,
        after="pass",
        output="logits",
        why="everybody waits for logits",
        fault="GG405",
    ),
    Fault(
        op="lm_head",
        name="waits_for_its_own_signal",
        before=RECEIVE_WAIT,
        after="pld.system.wait(logits_done, [my_rank, 0], 1, cmp=pld.WaitCmp.Ge)",
        output="logits",
        why="nobody signals to itself",
        fault="GG405",
    ),
    Fault(
        op="lm_head",
        name="skipped_tail_tokens",
        before="pl.spmd(BOXES * COL_BLOCKS,",
        after="pl.spmd((BOXES - 1) * COL_BLOCKS,",
        output="logits",
        why="the last row box is never computed",
        deployment="prefill",
    ),
)

DENSE = (*HC_HEAD, *MTP_PROJECTION, *QKV_PROJ_ROPE, *LM_HEAD)
