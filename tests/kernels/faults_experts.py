"""Faults of expert_shared and expert_routed: the pitfalls of contracts/hc_gate_experts.md 4.7, 5.7."""

from __future__ import annotations

from textwrap import indent

from fault import RINT_BF16, RINT_INT32, Fault

CODE_MAX = "pl.full([1, BOX], dtype=pl.FP32, value=INT8_SCALE_MAX)"
ONES = "pl.full([1, BOX], dtype=pl.FP32, value=1.0)"
SQUARE = (("moe_intermediate_size", 256),)  # TINY's D: w1 and w3 have one shape, whichever way they are read


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
        fault("half_away", RINT_BF16, 'pl.BF16, mode="round")', "ties go away from zero", "bf16_ties"),
        fault(
            "gate_clamped_symmetrically",
            "gate = pl.minimum(gate, SWIGLU_LIMIT)",
            "gate = pl.maximum(pl.minimum(gate, SWIGLU_LIMIT), -SWIGLU_LIMIT)",
            "seen only in rows whose gates are all below the limit: elsewhere it drowns in the codes of the others",
            "gate_below",
        ),
        fault(
            "amax_over_rows",
            f"gain = pl.div({CODE_MAX}, amax)",
            f"gain = pl.div({CODE_MAX}, pl.row_expand_mul({ONES}, pl.row_max(amax)))",
            "the largest row of a box makes the codes of the others",
        ),
    )


def _up_step(weight: str, columns: int, operands: str) -> str:
    """A step of the matmul with the gate's weight, in a loop whose body is indented by `columns`."""
    return indent(f"w_next = {weight}\nacc = pl.matmul_acc(acc, {operands})\n", " " * columns)


CLAMPED_SWIGLU = """\
            if SWIGLU_LIMIT > 0.0:
                gate = pl.minimum(gate, SWIGLU_LIMIT)
                up = pl.maximum(pl.minimum(up, SWIGLU_LIMIT), -SWIGLU_LIMIT)
            sigmoid = pl.recip(pl.add(pl.exp(pl.neg(gate)), 1.0))
            h = pl.mul(pl.mul(gate, sigmoid), up)
"""
SWIGLU_THEN_CLAMP = """\
            sigmoid = pl.recip(pl.add(pl.exp(pl.neg(gate)), 1.0))
            silu = pl.mul(gate, sigmoid)
            if SWIGLU_LIMIT > 0.0:
                silu = pl.minimum(silu, SWIGLU_LIMIT)
                up = pl.maximum(pl.minimum(up, SWIGLU_LIMIT), -SWIGLU_LIMIT)
            h = pl.mul(silu, up)
"""
WEIGHTED_H = "h = pl.row_expand_mul(pl.mul(pl.mul(gate, sigmoid), up), weight_rows[row0 : row0 + BOX, 0:1])"

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
    Fault(
        op="expert_shared",
        name="clamp_after_silu",
        before=CLAMPED_SWIGLU,
        after=SWIGLU_THEN_CLAMP,
        output="sh",
        why="the limit is on the gate, not on its SiLU",
        cases=("clamp",),
    ),
    Fault(
        op="expert_shared",
        name="clamp_before_dequantisation",
        before='gate_rows = pl.row_expand_mul(pl.cast(gate_acc, pl.FP32, mode="none"), x_scale)',
        after=(
            'gate_fp32 = pl.minimum(pl.cast(gate_acc, pl.FP32, mode="none"), SWIGLU_LIMIT)\n'
            "            gate_rows = pl.row_expand_mul(gate_fp32, x_scale)"
        ),
        output="sh",
        why="the limit is on values, not on accumulators",
    ),
    Fault(
        op="expert_shared",
        name="scales_of_the_first_channels",
        before="w1_scale[0:1, n0 : n0 + ACT_COLS]",
        after="w1_scale[0:1, 0:ACT_COLS]",
        output="sh",
        why="every channel block is scaled as the first",
    ),
    Fault(
        op="expert_shared",
        name="scale_along_the_rows",
        before="pl.col_expand_mul(up_rows, w3_scale[0:1, n0 : n0 + ACT_COLS])",
        after=(
            "pl.row_expand_mul(\n                up_rows, "
            "pl.set_validshape(pl.reshape(w3_scale[0:1, 0:BOX], [BOX, 1]), ROWS, 1)\n            )"
        ),
        output="sh",
        why="the scales of the first channels are taken as scales of rows",
    ),
    Fault(
        op="expert_shared",
        name="weight_untransposed",
        before=_up_step("shared_w1[n0 : n0 + UP_COLS, k0 : k0 + UP_CHUNK]", 16, "x_next, w_next, b_trans=True"),
        after=_up_step("shared_w1[k0 : k0 + UP_CHUNK, n0 : n0 + UP_COLS]", 16, "x_next, w_next"),
        output="sh",
        why="the weight is taken as [in, out]",
        overrides=SQUARE,
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
        after=WEIGHTED_H,
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
    Fault(
        op="expert_routed",
        name="clamp_after_silu",
        before=indent(CLAMPED_SWIGLU, " " * 8),
        after=indent(SWIGLU_THEN_CLAMP, " " * 8),
        output="recv_y",
        why="the limit is on the gate, not on its SiLU",
        cases=("clamp",),
    ),
    Fault(
        op="expert_routed",
        name="weight_untransposed",
        before=_up_step("w1[w_row : w_row + UP_COLS, k0 : k0 + UP_CHUNK]", 24, "x_next, w_next, b_trans=True"),
        after=_up_step(
            "w1[e * MOE_INTER + k0 : e * MOE_INTER + k0 + UP_CHUNK, n0 : n0 + UP_COLS]", 24, "x_next, w_next"
        ),
        output="recv_y",
        why="the weight is taken as [in, out]",
        overrides=SQUARE,
    ),
    Fault(
        op="expert_routed",
        name="weight_before_requantisation",
        before="h = pl.mul(pl.mul(gate, sigmoid), up)",
        after=WEIGHTED_H,
        more=(("pl.mul(h_scale[0:BOX, 0:1], weight_rows[row0 : row0 + BOX, 0:1])", "h_scale[0:BOX, 0:1]"),),
        output="recv_y",
        why="the routing weight moves the amax of small rows across the quantiser's floor",
        cases=("bf16_ties",),
    ),
    Fault(
        op="expert_routed",
        name="tail_not_masked",
        before="pl.set_validshape(h, rows, ACT_COLS)",
        after="pl.set_validshape(h, BOX, ACT_COLS)",
        output="recv_y",
        why="stale rows behind the last received one are computed and stored",
        cases=("stale_tail",),
    ),
    Fault(
        op="expert_routed",
        name="counts_in_one_row",
        before="pl.read(recv_expert_count, [e, 0])",
        after="pl.read(recv_expert_count, [0, e])",
        output="recv_y",
        why="counts are a column, one row per expert",
        fault="GG501",
    ),
    Fault(
        op="expert_routed",
        name="all_experts_of_the_world",
        before="for e in pl.parallel(N_LOCAL):",
        after="for e in pl.parallel(N_EXPERTS):",
        more=(("import (\n", "import (\n    N_EXPERTS,\n"),),
        output="recv_y",
        why="a rank has N_LOCAL of the experts",
        fault="GG501",
    ),
    *(
        Fault(
            op="expert_routed",
            name=f"{task}_unordered",
            before=before,
            after=after,
            output="recv_y",
            why="a task of the manual scope reads what another one writes, and nothing orders them",
            fault="GG402",
        )
        for task, before, after in (
            ("up", "deps=[gate_task, up_task]", "deps=[gate_task]"),
            ("activation", ", deps=[act_task]", ""),
            ("quantiser", ", deps=[quant_task]", ""),
            ("down", ", deps=[down_task]", ""),
        )
    ),
)

FAULTS = (*EXPERT_SHARED, *EXPERT_ROUTED)
