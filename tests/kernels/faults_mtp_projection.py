"""Faults of mtp_projection: the pitfalls of contracts/dense.md 9.7."""

from __future__ import annotations

from fault import RINT_INT32, Fault

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

FAULTS = (
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
        before="e_out = dequantised(e_i32, e_scale, e_w_scale, t0, n0)",
        after=(
            "plain = dequantised(e_i32, e_scale, e_w_scale, t0, n0)\n"
            "        e_out = pl.col_expand_mul(plain, e_smooth[0:1, n0 : n0 + OUT_COLS])"
        ),
        output=MTP,
        why="the smoothing of the input channels acts on the output channels",
    ),
    Fault(
        op="mtp_projection",
        name="smoothing_swapped",
        before="normalised(e_rows, e_norm_w, e_smooth,",
        after="normalised(e_rows, e_norm_w, h_smooth,",
        output=MTP,
        why="both branches take the smoothing of one; invisible with smoothing of one",
    ),
    Fault(
        op="mtp_projection",
        name="weight_scales_permuted",
        before="weight_scale[0:1, n0 : n0 + OUT_COLS]",
        after="weight_scale[0:1, D - n0 - OUT_COLS : D - n0]",
        output=MTP,
        why="channels take each other's scale; invisible in weights of practically equal scales",
    ),
    Fault(
        op="mtp_projection",
        name="scale_per_tensor",
        before="pl.row_expand_mul(acc, scales[t0 : t0 + TOKENS, 0:1])",
        after="pl.mul(acc, pl.read(scales, [t0, 0]))",
        output=MTP,
        why="one scale for several tokens",
    ),
    Fault(
        op="mtp_projection",
        name="quantise_ceil",
        before='pl.cast(scaled, pl.INT32, mode="rint")',
        after='pl.cast(scaled, pl.INT32, mode="ceil")',
        output=MTP,
        why="codes are rounded up",
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
