"""Faults to plant in copies of the shipped kernels, each of which `verify` must catch.

A fault replaces one piece of a kernel's source. The piece must occur exactly `occurs` times; the `nth` is
replaced. `cases` are the cases of the op that expose it: each of them must fail, at `output`. The list is
data, so that it can be read, counted, and planted by other tools.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One wrong kernel: `name` says what was broken, `why` what it does.

    `overrides` are fields of the model configuration that differ from the preset. `fault`, where set, is a piece of
    the message with which the device refuses to go on before `output` is there.
    """

    op: str
    name: str
    before: str
    after: str
    output: str
    why: str
    cases: tuple[str, ...] = ("default",)
    preset: str = "tiny"
    deployment: str = "decode"
    overrides: tuple[tuple[str, float], ...] = ()
    fault: str = ""
    occurs: int = 1
    nth: int = 1

    @property
    def id(self) -> str:
        return f"{self.op}-{self.name}"

    def plant(self, source: str) -> str:
        """The source with the fault in it. Raises ValueError when the piece does not occur as stated."""
        pieces = source.split(self.before)
        if len(pieces) - 1 != self.occurs:
            raise ValueError(f"{self.id}: {self.before!r} occurs {len(pieces) - 1} times, expected {self.occurs}")
        return self.before.join(pieces[: self.nth]) + self.after + self.before.join(pieces[self.nth :])


RINT_BF16 = 'pl.BF16, mode="rint")'
RINT_INT32 = 'pl.INT32, mode="rint")'

RMS_NORM = (
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
)

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

HC_PRE = (
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
)

HC_POST = (
    Fault(
        op="hc_post",
        name="half_away",
        before=RINT_BF16,
        after='pl.BF16, mode="round")',
        output="y",
        why="ties go away from zero, which is the default of pl.cast",
        deployment="prefill",
    ),
    Fault(
        op="hc_post",
        name="trunc",
        before=RINT_BF16,
        after='pl.BF16, mode="trunc")',
        output="y",
        why="cuts towards zero",
    ),
    Fault(
        op="hc_post",
        name="comb_axes_swapped",
        before="[t, old * HC_MULT + new]",
        after="[t, new * HC_MULT + old]",
        output="y",
        why="the transpose of comb, the classic",
    ),
    Fault(
        op="hc_post",
        name="dropped_stream",
        before="pl.pipeline(HC_MULT, stage=4)",
        after="pl.pipeline(HC_MULT - 1, stage=4)",
        output="y",
        why="the last old stream is not added",
    ),
    Fault(
        op="hc_post",
        name="skipped_tail_tokens",
        before="pl.spmd(tokens // TOKENS * HC_MULT,",
        after="pl.spmd((tokens // TOKENS - 1) * HC_MULT,",
        output="y",
        why="the last token tile is never written",
    ),
    Fault(
        op="hc_post",
        name="partial_sums_rounded",
        before="total = pl.add(total, pl.mul(stream, pl.read(comb, [t, old * HC_MULT + new])))",
        after=(
            "added = pl.add(total, pl.mul(stream, pl.read(comb, [t, old * HC_MULT + new])))\n"
            '                total = pl.cast(pl.cast(added, pl.BF16, mode="rint"), pl.FP32)'
        ),
        output="y",
        why="every partial sum is rounded to BF16",
    ),
    Fault(
        op="hc_post",
        name="gate_of_the_first_stream",
        before="pl.read(post, [t, new])",
        after="pl.read(post, [t, 0])",
        output="y",
        why="all new streams take the first gate",
    ),
)

GATE = (
    Fault(
        op="gate",
        name="norm_trunc",
        before=RINT_BF16,
        after='pl.BF16, mode="trunc")',
        output="x_norm",
        why="cuts towards zero",
    ),
    Fault(
        op="gate",
        name="quantise_trunc",
        before=RINT_INT32,
        after='pl.INT32, mode="trunc")',
        output="x_norm_i8",
        why="half of the codes are one too small",
    ),
    Fault(
        op="gate",
        name="quantise_half_away",
        before=RINT_INT32,
        after='pl.INT32, mode="round")',
        output="x_norm_i8",
        why="ties of the BF16 rows go away from zero",
        cases=("mixed_rows",),
    ),
    Fault(
        op="gate",
        name="quantise_hop_missing",
        before='pl.cast(pl.cast(scaled, pl.INT32, mode="rint"), pl.FP16, mode="round")',
        after='pl.cast(scaled, pl.FP16, mode="rint")',
        output="x_norm_i8",
        why="without the integer hop the last cast truncates",
    ),
    Fault(
        op="gate",
        name="quantises_unrounded_norm",
        before="[t0 : t0 + TOKENS, d0 : d0 + NORM_CHUNK] = pl.cast(rounded, pl.FP32)",
        after="[t0 : t0 + TOKENS, d0 : d0 + NORM_CHUNK] = normed",
        output="x_norm_i8",
        why="codes and scores come from values that were not rounded to BF16",
    ),
    Fault(
        op="gate",
        name="no_rms_epsilon",
        before="pl.add(mean_square, RMS_EPS)",
        after="pl.add(mean_square, 0.0)",
        output="x_norm",
        why="1/0 for a row of zeros",
        cases=("zero_rows",),
    ),
    Fault(
        op="gate",
        name="scale_not_inverted",
        before="scale = pl.reshape(pl.recip(gain), [TOKENS, 1])",
        after="scale = pl.reshape(gain, [TOKENS, 1])",
        output="x_norm_scale",
        why="the quantising factor in place of the dequant scale",
    ),
    Fault(
        op="gate",
        name="dropped_norm_chunk",
        before="for c in pl.pipeline(D // NORM_CHUNK, stage=2):",
        after="for c in pl.pipeline(D // NORM_CHUNK - 1, stage=2):",
        occurs=2,
        nth=1,
        output="x_norm",
        why="the mean square misses the last columns",
    ),
    Fault(
        op="gate",
        name="dropped_score_chunk",
        before="pl.range(1, D // SCORE_CHUNK)",
        after="pl.range(1, D // SCORE_CHUNK - 1)",
        output="weights",
        why="logits miss the last columns",
    ),
    Fault(
        op="gate",
        name="dropped_expert_tile",
        before='pl.spmd(boxes * EXPERT_TILES, name_hint="gate_scores")',
        after='pl.spmd(boxes * EXPERT_TILES - 1, name_hint="gate_scores")',
        output="indices",
        why="the last experts are never scored",
        fault="is undefined",
    ),
    Fault(
        op="gate",
        name="no_square_root",
        before="pl.sqrt(pl.add(pl.maximum(logits, 0.0), log1p))",
        after="pl.add(pl.maximum(logits, 0.0), log1p)",
        output="weights",
        why="softplus instead of its root",
    ),
    Fault(
        op="gate",
        name="naive_log1p",
        before="pl.add(pl.log(s), pl.div(lost, s))",
        after="pl.log(s)",
        output="weights",
        why="a staircase below -8, and 0/0 when all logits are below -17",
        cases=("low_logits_tail", "hash_low_logits"),
    ),
    Fault(
        op="gate",
        name="weights_from_biased_scores",
        before="pl.gather(score[t0 : t0 + TOKENS, 0:SORT_WIDTH], dim=-1, index=ids)",
        after="pl.gather(biased[t0 : t0 + TOKENS, 0:SORT_WIDTH], dim=-1, index=ids)",
        output="weights",
        why="the bias is for the selection only",
    ),
    Fault(
        op="gate",
        name="selection_ignores_bias",
        before="pl.sort32(biased[row : row + 1, 0:SORT_WIDTH], numbers)",
        after="pl.sort32(score[row : row + 1, 0:SORT_WIDTH], numbers)",
        output="indices",
        why="the ids come from the unbiased scores",
    ),
    Fault(
        op="gate",
        name="not_scaled",
        before="weight = pl.mul(share, ROUTED_SCALING)",
        after="weight = pl.mul(share, 1.0)",
        output="weights",
        why="weights sum to 1 instead of the routed scaling factor",
    ),
    Fault(
        op="gate",
        name="pad_lanes_in_the_sum",
        before="pl.fillpad(pl.set_validshape(gathered, TOKENS, TOPK), pad_value=pl.PadValue.zero)",
        after="gathered",
        output="weights",
        why="eight experts share the weight of the chosen ones",
    ),
    Fault(
        op="gate",
        name="values_for_ids",
        before="pl.tile.MaskPattern.P1010",
        after="pl.tile.MaskPattern.P0101",
        output="indices",
        why="the even lanes are the values",
        fault="out of",
    ),
    Fault(
        op="gate",
        name="unfinished_sort",
        before="order = pl.mrgsort(runs, block_len=SORT_WIDTH // 2)",
        after="order = runs",
        output="indices",
        why="the best of the first half of the experts only, which are all of TINY's",
        preset="flash",
    ),
    Fault(
        op="gate",
        name="pad_missing",
        before="biased[r0 : r0 + BOX, e0 : e0 + BOX] = never",
        after="score[r0 : r0 + BOX, e0 : e0 + BOX] = never",
        output="indices",
        fault="is undefined",
        why="the sort sees columns beyond N_EXPERTS that nobody wrote",
    ),
    Fault(
        op="gate",
        name="hash_layer_too_many",
        before="if layer_id < N_HASH_LAYERS:",
        after="if layer_id <= N_HASH_LAYERS:",
        output="indices",
        why="the first score layer looks its experts up",
        cases=("score_first",),
    ),
    Fault(
        op="gate",
        name="no_inactive_zeros",
        before="for t in pl.range(active, T):",
        after="for t in pl.range(T, T):",
        output="x_norm_scale",
        why="inactive rows keep what was there",
        cases=("tokens_1", "tokens_7"),
    ),
    Fault(
        op="gate",
        name="skipped_tail_tokens",
        before='(active + TOKENS - 1) // TOKENS, name_hint="gate_route_sort")',
        after='active // TOKENS - 1, name_hint="gate_route_sort")',
        output="indices",
        why="the last token tile is not routed",
        deployment="prefill",
    ),
)


def _expert(op: str, output: str) -> tuple[Fault, ...]:
    """Faults of the pieces that both expert kernels have in common."""

    def fault(name: str, before: str, after: str, why: str, case: str = "default", **where: int) -> Fault:
        return Fault(op, name, before, after, output, why, cases=(case,), **where)

    up_loop, up_less = "pl.pipeline(1, D // UP_CHUNK,", "pl.pipeline(1, D // UP_CHUNK - 1,"
    quant_loop = "pl.pipeline(MOE_INTER // QUANT_CHUNK,"
    quant_less = "pl.pipeline(MOE_INTER // QUANT_CHUNK - 1,"
    return (
        fault("trunc", RINT_BF16, 'pl.BF16, mode="trunc")', "cuts towards zero"),
        fault("quantise_trunc", RINT_INT32, 'pl.INT32, mode="trunc")', "codes of h are cut towards zero"),
        fault(
            "quantise_hop_missing",
            'pl.cast(pl.cast(scaled, pl.INT32, mode="rint"), pl.FP16, mode="round")',
            'pl.cast(scaled, pl.FP16, mode="rint")',
            "without the integer hop the last cast truncates",
        ),
        fault("dropped_gate_chunk", up_loop, up_less, "the gate misses columns of x", occurs=2, nth=1),
        fault("dropped_up_chunk", up_loop, up_less, "the up branch misses columns of x", occurs=2, nth=2),
        fault(
            "dropped_down_chunk",
            "pl.pipeline(1, MOE_INTER // DOWN_CHUNK,",
            "pl.pipeline(1, MOE_INTER // DOWN_CHUNK - 1,",
            "the down projection misses channels",
        ),
        fault("amax_of_a_part", quant_loop, quant_less, "codes beyond 127 wrap", occurs=2, nth=1),
        fault("dropped_codes", quant_loop, quant_less, "channels without codes", occurs=2, nth=2),
        fault(
            "dropped_down_columns",
            "pl.spmd(D // DOWN_COLS,",
            "pl.spmd(D // DOWN_COLS - 1,",
            "the last columns are not computed",
        ),
        fault(
            "dropped_output_columns",
            "pl.spmd(D // OUT_COLS,",
            "pl.spmd(D // OUT_COLS - 1,",
            "the tail of #672: the last columns are never written",
        ),
        fault(
            "scale_not_inverted",
            "h_scale[0:BOX, 0:1] = pl.reshape(pl.recip(gain), [BOX, 1])",
            "h_scale[0:BOX, 0:1] = pl.reshape(gain, [BOX, 1])",
            "the quantising factor in place of the dequant scale",
        ),
        fault(
            "clamp_missing",
            "if SWIGLU_LIMIT > 0.0:",
            "if SWIGLU_LIMIT < 0.0:",
            "values beyond the limit pass",
            "clamp",
        ),
        fault(
            "gate_clamped_below",
            "gate = pl.minimum(gate, SWIGLU_LIMIT)",
            "gate = pl.maximum(pl.minimum(gate, SWIGLU_LIMIT), -1.0)",
            "the gate has no lower limit",
        ),
        fault(
            "up_not_clamped_below",
            "pl.maximum(pl.minimum(up, SWIGLU_LIMIT), -SWIGLU_LIMIT)",
            "pl.minimum(up, SWIGLU_LIMIT)",
            "up is limited on both sides",
            "clamp",
        ),
        fault("silu_of_up", "pl.exp(pl.neg(gate))", "pl.exp(pl.neg(up))", "sigmoid of the wrong branch"),
    )


EXPERT_SHARED = (
    *_expert("expert_shared", "sh"),
    Fault(
        op="expert_shared",
        name="branches_swapped",
        before="w_next = shared_w1[",
        after="w_next = shared_w3[",
        output="sh",
        why="part of the gate comes from the up weights",
    ),
    Fault(
        op="expert_shared",
        name="scale_of_the_other_branch",
        before="pl.col_expand_mul(gate_rows, w1_scale[",
        after="pl.col_expand_mul(gate_rows, w3_scale[",
        output="sh",
        why="channel scales of w3 on the gate",
    ),
    Fault(
        op="expert_shared",
        name="row_scale_missing",
        before='up_rows = pl.row_expand_mul(pl.cast(up_acc, pl.FP32, mode="none"), x_scale)',
        after='up_rows = pl.cast(up_acc, pl.FP32, mode="none")',
        output="sh",
        why="the up branch is not dequantised by row",
    ),
    Fault(
        op="expert_shared",
        name="skipped_tail_tokens",
        before="BOXES = (T + BOX - 1) // BOX",
        after="BOXES = (T - 1) // BOX",
        output="sh",
        why="the last box is never computed",
        deployment="prefill",
    ),
)

EXPERT_ROUTED = (
    *_expert("expert_routed", "recv_y"),
    Fault(
        op="expert_routed",
        name="branches_swapped",
        before="w_next = w1[",
        after="w_next = w3[",
        output="recv_y",
        why="part of the gate comes from the up weights",
    ),
    Fault(
        op="expert_routed",
        name="weight_not_applied",
        before="pl.mul(h_scale[0:BOX, 0:1], weight_rows[row0 : row0 + BOX, 0:1])",
        after="h_scale[0:BOX, 0:1]",
        output="recv_y",
        why="combine would sum unweighted rows",
    ),
    Fault(
        op="expert_routed",
        name="weight_applied_twice",
        before="h = pl.mul(pl.mul(gate, sigmoid), up)",
        after=("h = pl.row_expand_mul(pl.mul(pl.mul(gate, sigmoid), up), weight_rows[row0 : row0 + BOX, 0:1])"),
        output="recv_y",
        why="before the requantisation and again after it",
    ),
    Fault(
        op="expert_routed",
        name="skipped_tail_rows",
        before="pl.parallel((count + BOX - 1) // BOX)",
        after="pl.parallel(count // BOX)",
        output="recv_y",
        why="the rows of a partial box are never computed",
    ),
    Fault(
        op="expert_routed",
        name="first_box_only",
        before="row0 = e * RECV_MAX + box * BOX",
        after="row0 = e * RECV_MAX",
        output="recv_y",
        why="every box computes the first rows",
        cases=("full",),
    ),
    Fault(
        op="expert_routed",
        name="weights_of_the_first_expert",
        before="w_row = e * MOE_INTER + n0",
        after="w_row = n0",
        occurs=2,
        nth=2,
        output="recv_y",
        why="the up branch ignores the expert",
    ),
    Fault(
        op="expert_routed",
        name="scales_of_the_first_expert",
        before="routed_w2_scale[e : e + 1,",
        after="routed_w2_scale[0:1,",
        output="recv_y",
        why="the down projection is scaled for another expert",
    ),
    Fault(
        op="expert_routed",
        name="one_expert_less",
        before="for e in pl.parallel(N_LOCAL):",
        after="for e in pl.parallel(N_LOCAL - 1):",
        output="recv_y",
        why="the last expert is never run",
    ),
)

FAULTS = (*RMS_NORM, *HC_PRE, *HC_POST, *GATE, *EXPERT_SHARED, *EXPERT_ROUTED)
