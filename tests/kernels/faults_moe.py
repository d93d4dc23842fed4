"""Faults of the FFN half of a layer (moe_and_layers.md 5.5, 5.7)."""

from __future__ import annotations

from fault import Fault
from faults_moe_combine import ADD, BF16_ADD, SUM_END, TRUNCATED, TWO_RANKS


def whole(name: str, before: str, after: str, output: str, why: str, **more) -> Fault:
    return Fault("moe", name, before, after, output, why, overrides=TWO_RANKS, **more)


GATE_SCALARS = """\
        gate_bias,
        layer_id,
        num_tokens,
        tid2eid,
        input_ids,
        x_norm,"""
DISPATCH_SCALARS = """\
        num_tokens,
        my_rank,
        moe_epoch,
    )
    expert_routed_inline"""
NEXT_STEP = "    hc_post_inline(ffn_out, x_hc, post, comb, x_next)\n"
NO_FFN = """\
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="lost_token"):
        ffn_out[3:4, 0:D] = pl.full([1, D], dtype=pl.BF16, value=0.0)
"""

FAULTS = (
    whole("one_token_loses_its_ffn", NEXT_STEP, NO_FFN + NEXT_STEP, "x_next", "a token of eight has no FFN output"),
    whole(
        "one_token_loses_its_routed_experts",
        "            if t < active:",
        "            if t < active and t != 3:",
        "x_next",
        "a token of eight has its shared expert only",
        part="moe_combine",
    ),
    whole("bf16_accumulator", ADD, BF16_ADD, "x_next", "combine accumulates in BF16", part="moe_combine"),
    whole("truncated_sum", SUM_END, TRUNCATED, "x_next", "combine cuts instead of rounding", part="moe_combine"),
    whole(
        "wrong_expert",
        "            w_row = e * D + d0",
        "            w_row = (e + 1) % N_LOCAL * D + d0",
        "x_next",
        "the down projection is the next expert's",
        part="expert_routed",
    ),
    whole(
        "missing_weight",
        "pl.mul(h_scale[0:BOX, 0:1], weight_rows[row0 : row0 + BOX, 0:1])",
        "pl.mul(h_scale[0:BOX, 0:1], 1.0)",
        "x_next",
        "all experts of a token weigh 1",
        part="expert_routed",
    ),
    whole(
        "weight_applied_twice",
        "pl.mul(h_scale[0:BOX, 0:1], weight_rows[row0 : row0 + BOX, 0:1])",
        "pl.mul(pl.mul(h_scale[0:BOX, 0:1], weight_rows[row0 : row0 + BOX, 0:1]), weight_rows[row0 : row0 + BOX, 0:1])",
        "x_next",
        "the routing weight counts twice",
        part="expert_routed",
    ),
    whole(
        "missing_scale",
        "    expert_routed_inline(\n        recv_x_out,\n        recv_scale_out,",
        "    expert_routed_inline(\n        recv_x_out,\n        recv_w_out,",
        "x_next",
        "rows are dequantised with their weight",
    ),
    whole(
        "gate_and_up_exchanged",
        "        routed_w1,\n        routed_w1_scale,\n        routed_w3,\n        routed_w3_scale,\n"
        "        routed_w2,\n        routed_w2_scale,\n        recv_y,",
        "        routed_w3,\n        routed_w3_scale,\n        routed_w1,\n        routed_w1_scale,\n"
        "        routed_w2,\n        routed_w2_scale,\n        recv_y,",
        "x_next",
        "w1 and w3 of the routed experts change places",
    ),
    whole(
        "codes_not_initialised",
        "dtype=pl.INT8, init_value=0)",
        "dtype=pl.INT8)",
        "x_next",
        "the shared expert works on rows that the router never wrote",
        cases=("hash_tokens_0", "score_tokens_0"),
    ),
    whole(
        "layer_id_not_passed",
        GATE_SCALARS,
        GATE_SCALARS.replace("layer_id", "0"),
        "x_next",
        "every layer is routed by the table",
        cases=("score_first",),
    ),
    whole(
        "mix_transposed",
        "pl.read(comb, [t, old * HC_MULT + new])",
        "pl.read(comb, [t, new * HC_MULT + old])",
        "x_next",
        "old and new streams change places",
        part="hc_post",
    ),
    whole(
        "scaling_factor_missing",
        "pl.mul(share, ROUTED_SCALING)",
        "pl.mul(share, 1.0)",
        "x_next",
        "weights of a token sum to 1 instead of 1.5",
        part="gate",
    ),
    whole(
        "inactive_tokens_routed",
        DISPATCH_SCALARS,
        DISPATCH_SCALARS.replace("num_tokens", "T"),
        "overflow",
        "all placeholders of inactive tokens go to expert 0, six of a token",
        cases=("score_tokens_1",),
    ),
)
