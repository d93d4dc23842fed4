"""Faults of hc_post: the pitfalls of contracts/hc_gate_experts.md 2.7."""

from __future__ import annotations

from fault import RINT_BF16, Fault

FAULTS = (
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
    Fault(
        op="hc_post",
        name="reads_new_streams",
        before="old_streams[t : t + 1, old * D : old * D + D]",
        after="new_streams[t : t + 1, old * D : old * D + D]",
        output="y",
        why="a stream that is already updated stands in for the residual",
    ),
)
