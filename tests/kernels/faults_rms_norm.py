"""Faults of rms_norm: the pitfalls of contracts/dense.md 4.7."""

from __future__ import annotations

from fault import RINT_BF16, Fault

FAULTS = (
    Fault(
        op="rms_norm",
        name="trunc",
        before=RINT_BF16,
        after='pl.BF16, mode="trunc")',
        output="x_normed",
        why="cuts towards zero: half of the values are one ULP too small",
    ),
    Fault(
        op="rms_norm",
        name="half_away",
        before=RINT_BF16,
        after='pl.BF16, mode="round")',
        output="x_normed",
        why="ties go away from zero, which is the default of pl.cast",
        cases=("bf16_ties",),
    ),
    Fault(
        op="rms_norm",
        name="dropped_sum_chunk",
        before="for c in pl.pipeline(D // CHUNK, stage=2):",
        after="for c in pl.pipeline(D // CHUNK - 1, stage=2):",
        occurs=2,
        nth=1,
        output="x_normed",
        why="the mean square misses the last columns",
    ),
    Fault(
        op="rms_norm",
        name="dropped_column_chunk",
        before="for c in pl.pipeline(D // CHUNK, stage=2):",
        after="for c in pl.pipeline(D // CHUNK - 1, stage=2):",
        occurs=2,
        nth=2,
        output="x_normed",
        why="the last columns are never written",
    ),
    Fault(
        op="rms_norm",
        name="no_epsilon",
        before="pl.add(mean_square, RMS_EPS)",
        after="pl.add(mean_square, 0.0)",
        output="x_normed",
        why="1/0 for a row of zeros",
        cases=("zero_rows", "tiny"),
    ),
    Fault(
        op="rms_norm",
        name="epsilon_outside_root",
        before="pl.sqrt(pl.add(mean_square, RMS_EPS))",
        after="pl.add(pl.sqrt(mean_square), RMS_EPS)",
        output="x_normed",
        why="small rows are scaled by another factor",
        cases=("tiny",),
    ),
    Fault(
        op="rms_norm",
        name="skipped_tail_tokens",
        before="pl.tensor.dim(x, 0) // TOKENS,",
        after="pl.tensor.dim(x, 0) // TOKENS - 1,",
        output="x_normed",
        why="the last token tile is never written",
        deployment="prefill",
    ),
    Fault(
        op="rms_norm",
        name="mean_over_wrong_count",
        before="D_INV = 1.0 / D",
        after="D_INV = 1.0 / (D - 1)",
        output="x_normed",
        why="the sample variance instead of the mean square",
    ),
    Fault(
        op="rms_norm",
        name="low_precision_rsqrt",
        before="pl.recip(pl.sqrt(pl.add(mean_square, RMS_EPS)))",
        after="pl.rsqrt(pl.add(mean_square, RMS_EPS))",
        output="x_normed",
        why="the approximate instruction instead of sqrt and divide",
        deployment="prefill",
    ),
    Fault(
        op="rms_norm",
        name="one_plus_weight",
        before="weight_chunk = pl.cast(weight[0:1, d0 : d0 + CHUNK], pl.FP32)",
        after="weight_chunk = pl.add(pl.cast(weight[0:1, d0 : d0 + CHUNK], pl.FP32), 1.0)",
        output="x_normed",
        why="the 1 + w convention of other models",
    ),
    Fault(
        op="rms_norm",
        name="inverse_rms_rounded",
        before="pl.row_expand_mul(chunk, inv_rms_column)",
        after=(
            "pl.mul(chunk, pl.cast(pl.cast(pl.row_expand_mul(\n"
            "                pl.full([TOKENS, CHUNK], dtype=pl.FP32, value=1.0), inv_rms_column\n"
            '            ), pl.BF16, mode="rint"), pl.FP32))'
        ),
        output="x_normed",
        why="1/rms goes through BF16; every element stays within an ULP or two",
    ),
)
