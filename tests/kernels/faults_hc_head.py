"""Faults of hc_head: the pitfalls of contracts/dense.md 8.7."""

from __future__ import annotations

from fault import RINT_BF16, Fault

STREAMS = """\
        x0 = gated_stream(x_fp32, gates, t0, d0, 0)
        x1 = gated_stream(x_fp32, gates, t0, d0, 1)
        x2 = gated_stream(x_fp32, gates, t0, d0, 2)
        x3 = gated_stream(x_fp32, gates, t0, d0, 3)
"""
INTERLEAVED_STREAMS = """\
        wide = x_fp32[t0 : t0 + TOKENS, d0 * HC_MULT : d0 * HC_MULT + OUT_COLS * HC_MULT]
        g0 = pl.reshape(gates[0:1, t0 : t0 + TOKENS], [TOKENS, 1])
        g1 = pl.reshape(gates[1:2, t0 : t0 + TOKENS], [TOKENS, 1])
        g2 = pl.reshape(gates[2:3, t0 : t0 + TOKENS], [TOKENS, 1])
        g3 = pl.reshape(gates[3:4, t0 : t0 + TOKENS], [TOKENS, 1])
        x0 = pl.row_expand_mul(pl.gather(wide, mask_pattern=pl.tile.MaskPattern.P0001), g0)
        x1 = pl.row_expand_mul(pl.gather(wide, mask_pattern=pl.tile.MaskPattern.P0010), g1)
        x2 = pl.row_expand_mul(pl.gather(wide, mask_pattern=pl.tile.MaskPattern.P0100), g2)
        x3 = pl.row_expand_mul(pl.gather(wide, mask_pattern=pl.tile.MaskPattern.P1000), g3)
"""

FAULTS = (
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
    Fault(
        op="hc_head",
        name="stream_index_fastest",
        before=STREAMS,
        after=INTERLEAVED_STREAMS,
        output="y",
        why="a flattened row is stream after stream, not channel after channel",
    ),
    Fault(
        op="hc_head",
        name="sums_rounded",
        before="pl.add(pl.add(x0, x1), pl.add(x2, x3))",
        after='pl.add(pl.cast(pl.cast(pl.add(x0, x1), pl.BF16, mode="rint"), pl.FP32), pl.add(x2, x3))',
        output="y",
        why="a partial sum is rounded to BF16",
        cases=("even_gates",),
    ),
)
