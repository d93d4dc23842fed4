"""Faults of hc_pre: the pitfalls of contracts/hc_gate_experts.md 1.7."""

from __future__ import annotations

from fault import RINT_BF16, Fault

COMB_STORES = """\
        comb[t0 : t0 + TOKENS, 0:HC_MULT] = pl.set_validshape(c0, TOKENS, HC_MULT)
        comb[t0 : t0 + TOKENS, HC_MULT : 2 * HC_MULT] = pl.set_validshape(c1, TOKENS, HC_MULT)
        comb[t0 : t0 + TOKENS, 2 * HC_MULT : 3 * HC_MULT] = pl.set_validshape(c2, TOKENS, HC_MULT)
        comb[t0 : t0 + TOKENS, 3 * HC_MULT : 4 * HC_MULT] = pl.set_validshape(c3, TOKENS, HC_MULT)
"""
COMB_STORES_TRANSPOSED = """\
        for r in pl.range(TOKENS):
            for out in pl.range(HC_MULT):
                pl.write(comb, [t0 + r, out * HC_MULT], pl.read(c0, [r, out]))
                pl.write(comb, [t0 + r, out * HC_MULT + 1], pl.read(c1, [r, out]))
                pl.write(comb, [t0 + r, out * HC_MULT + 2], pl.read(c2, [r, out]))
                pl.write(comb, [t0 + r, out * HC_MULT + 3], pl.read(c3, [r, out]))
"""
ROW_STEPS = """\
        c0 = row_step(c0)
        c1 = row_step(c1)
        c2 = row_step(c2)
        c3 = row_step(c3)
"""

SOFTMAX_OF_ROWS = """\
        c0 = softmax(logits0)
        c1 = softmax(logits1)
        c2 = softmax(logits2)
        c3 = softmax(logits3)
"""
SOFTMAX_OF_COLUMNS = """\
        top = pl.maximum(pl.maximum(logits0, logits1), pl.maximum(logits2, logits3))
        e0 = pl.exp(pl.sub(logits0, top))
        e1 = pl.exp(pl.sub(logits1, top))
        e2 = pl.exp(pl.sub(logits2, top))
        e3 = pl.exp(pl.sub(logits3, top))
        total = pl.add(pl.add(e0, e1), pl.add(e2, e3))
        c0 = pl.fillpad(pl.add(pl.div(e0, total), HC_EPS), pad_value=pl.PadValue.zero)
        c1 = pl.fillpad(pl.add(pl.div(e1, total), HC_EPS), pad_value=pl.PadValue.zero)
        c2 = pl.fillpad(pl.add(pl.div(e2, total), HC_EPS), pad_value=pl.PadValue.zero)
        c3 = pl.fillpad(pl.add(pl.div(e3, total), HC_EPS), pad_value=pl.PadValue.zero)
"""
FIRST_COLUMN_STEP = """\
        c0, c1, c2, c3 = column_step(c0, c1, c2, c3)
        for _step in"""
PRE_LOGITS = "pre_logits = logits_of(mixes, base, pl.read(hc_scale, [0]), t0, 0)"
PRE_LOGITS_ON_POST_BASE = """\
pre_mix = pl.slice(mixes, [TOKENS, LANES], [t0, 0], valid_shape=[TOKENS, HC_MULT])
        post_bias = pl.slice(base, [1, LANES], [0, HC_MULT], valid_shape=[1, HC_MULT])
        pre_logits = pl.col_expand_add(pl.mul(pre_mix, pl.read(hc_scale, [0])), post_bias)"""

FAULTS = (
    Fault(
        op="hc_pre",
        name="half_away",
        before=RINT_BF16,
        after='pl.BF16, mode="round")',
        output="x_mixed",
        why="ties go away from zero, which is the default of pl.cast",
        cases=("bf16_ties",),
    ),
    Fault(
        op="hc_pre",
        name="trunc",
        before=RINT_BF16,
        after='pl.BF16, mode="trunc")',
        output="x_mixed",
        why="cuts towards zero",
    ),
    Fault(
        op="hc_pre",
        name="dropped_square_chunk",
        before="pl.pipeline(K_SLICE // WIDEN_CHUNK, stage=2)",
        after="pl.pipeline(K_SLICE // WIDEN_CHUNK - 1, stage=2)",
        output="post",
        why="half of each slice is neither summed nor widened",
    ),
    Fault(
        op="hc_pre",
        name="dropped_product_chunk",
        before="pl.pipeline(1, K_SLICE // PROJECT_CHUNK, stage=2)",
        after="pl.pipeline(1, K_SLICE // PROJECT_CHUNK - 1, stage=2)",
        output="post",
        why="the projection misses the last chunk of every slice",
    ),
    Fault(
        op="hc_pre",
        name="dropped_slice",
        before="for k in pl.range(K_SLICES):",
        after="for k in pl.range(K_SLICES - 1):",
        output="comb",
        why="one partial product and one partial sum of squares are not added",
    ),
    Fault(
        op="hc_pre",
        name="dropped_mix_columns",
        before="pl.spmd(tiles * MIX_BLOCKS,",
        after="pl.spmd(tiles * MIX_BLOCKS - 1,",
        output="x_mixed",
        why="the last columns of the last tokens are never written",
    ),
    Fault(
        op="hc_pre",
        name="comb_axes_swapped",
        before=COMB_STORES,
        after=COMB_STORES_TRANSPOSED,
        output="comb",
        why="column out * 4 + in instead of in * 4 + out",
    ),
    Fault(
        op="hc_pre",
        name="comb_row_offset",
        before="t0, 3 * HC_MULT)",
        after="t0, 4 * HC_MULT)",
        output="comb",
        why="the logits of the third old stream stand in for the second",
    ),
    Fault(
        op="hc_pre",
        name="no_rms_epsilon",
        before="pl.add(mean_square, RMS_EPS)",
        after="pl.add(mean_square, 0.0)",
        output="post",
        why="1/0 for a token of zeros",
        cases=("zero_tokens",),
    ),
    Fault(
        op="hc_pre",
        name="no_pre_epsilon",
        before="pl.add(pre_sigmoid, HC_EPS)",
        after="pl.add(pre_sigmoid, 0.0)",
        output="x_mixed",
        why="a closed gate lets nothing through",
    ),
    Fault(
        op="hc_pre",
        name="no_softmax_epsilon",
        before="pl.add(pl.row_expand_div(weight, pl.row_sum(weight)), HC_EPS)",
        after="pl.add(pl.row_expand_div(weight, pl.row_sum(weight)), 0.0)",
        output="comb",
        why="small entries of comb lose their floor",
    ),
    Fault(
        op="hc_pre",
        name="no_row_epsilon",
        before="pl.add(pl.row_sum(c), HC_EPS)",
        after="pl.add(pl.row_sum(c), 0.0)",
        output="comb",
        why="the row steps divide by the bare sum; at the 1e-6 of every preset that is below the last bits",
        overrides=(("hc_eps", 1e-2),),
    ),
    Fault(
        op="hc_pre",
        name="no_column_epsilon",
        before="pl.add(pl.add(pl.add(c0, c1), pl.add(c2, c3)), HC_EPS)",
        after="pl.add(pl.add(pl.add(c0, c1), pl.add(c2, c3)), 0.0)",
        output="comb",
        why="columns sum to 1 instead of 1 - 1e-6",
    ),
    Fault(
        op="hc_pre",
        name="epsilon_on_post",
        before="pl.mul(post_sigmoid, 2.0)",
        after="pl.add(pl.mul(post_sigmoid, 2.0), HC_EPS)",
        output="post",
        why="the epsilon belongs to pre only",
        cases=("default", "swa_layer0"),
    ),
    Fault(
        op="hc_pre",
        name="post_not_doubled",
        before="pl.mul(post_sigmoid, 2.0)",
        after="pl.mul(post_sigmoid, 1.0)",
        output="post",
        why="post is twice the sigmoid",
    ),
    Fault(
        op="hc_pre",
        name="twenty_full_iterations",
        before="pl.range(HC_SINKHORN_ITERS - 1)",
        after="pl.range(HC_SINKHORN_ITERS)",
        output="comb",
        why="a 20th row step: rows do not converge in 20 rounds, so it shows",
    ),
    Fault(
        op="hc_pre",
        name="ends_with_row_step",
        before=COMB_STORES,
        after=ROW_STEPS + COMB_STORES,
        output="comb",
        why="the last step must be a column step",
    ),
    Fault(
        op="hc_pre",
        name="scale_of_post_for_pre",
        before="pl.read(hc_scale, [0])",
        after="pl.read(hc_scale, [1])",
        output="x_mixed",
        why="scale index mixed up",
    ),
    Fault(
        op="hc_pre",
        name="scale_of_comb_for_post",
        before="pl.read(hc_scale, [1])",
        after="pl.read(hc_scale, [2])",
        output="post",
        why="scale index mixed up",
    ),
    Fault(
        op="hc_pre",
        name="bias_before_scale",
        before="pl.col_expand_add(pl.mul(mix, scale), bias)",
        after="pl.mul(pl.col_expand_add(mix, bias), scale)",
        output="post",
        why="the bias is scaled too",
    ),
    Fault(
        op="hc_pre",
        name="pad_leaks_into_softmax",
        before="pl.fillpad(logits, pad_value=pl.PadValue.min)",
        after="pl.fillpad(logits, pad_value=pl.PadValue.zero)",
        output="comb",
        why="four pad columns of logit 0 take part in the softmax",
    ),
    Fault(
        op="hc_pre",
        name="rms_over_one_stream",
        before="HC_DIM_INV = 1.0 / HC_DIM",
        after="HC_DIM_INV = 1.0 / D",
        output="post",
        why="the mean is over all streams",
    ),
    Fault(
        op="hc_pre",
        name="low_precision_rsqrt",
        before="pl.recip(pl.sqrt(pl.add(mean_square, RMS_EPS)))",
        after="pl.rsqrt(pl.add(mean_square, RMS_EPS))",
        output="comb",
        why="the approximate instruction instead of sqrt and divide",
    ),
    Fault(
        op="hc_pre",
        name="skipped_tail_tokens",
        before='for block in pl.spmd(tiles, name_hint="hc_pre_post"):',
        after='for block in pl.spmd(tiles - 1, name_hint="hc_pre_post"):',
        output="post",
        why="the last token tile has no gates",
        deployment="prefill",
    ),
    Fault(
        op="hc_pre",
        name="softmax_over_old_streams",
        before=SOFTMAX_OF_ROWS,
        after=SOFTMAX_OF_COLUMNS,
        output="comb",
        why="the softmax of an old stream is over the new streams, not the other way round",
    ),
    Fault(
        op="hc_pre",
        name="starts_with_row_step",
        before=FIRST_COLUMN_STEP,
        after="        for _step in",
        output="comb",
        why="the rounds are row and column; the column step in front of them is missing",
    ),
    Fault(
        op="hc_pre",
        name="post_base_for_pre",
        before=PRE_LOGITS,
        after=PRE_LOGITS_ON_POST_BASE,
        output="x_mixed",
        why="base offset mixed up: columns 4 to 7 belong to post",
    ),
    Fault(
        op="hc_pre",
        name="one_epsilon_for_both",
        before="pl.add(mean_square, RMS_EPS)",
        after="pl.add(mean_square, HC_EPS)",
        output="post",
        why="the epsilon of the gates under the root; both are 1e-6 in every preset",
        overrides=(("hc_eps", 1e-2),),
    ),
    Fault(
        op="hc_pre",
        name="rms_epsilon_on_the_gates",
        before="pl.add(pre_sigmoid, HC_EPS)",
        after="pl.add(pre_sigmoid, RMS_EPS)",
        output="x_mixed",
        why="the epsilon of the norm on the gates; both are 1e-6 in every preset",
        overrides=(("hc_eps", 1e-2),),
    ),
)
