"""Faults of the distributed MoE: dispatch, combine and the FFN half of a layer (moe_and_layers.md 3.7, 4.7, 5.5, 7.4).

Faults that only a second call on the same windows shows are in test_moe_sequence.py, those of the guard in
test_moe_guard.py.
"""

from __future__ import annotations

from fault import Fault

TWO_RANKS = (("ep_world_size", 2),)
FOUR_RANKS = (("ep_world_size", 4),)

ARRIVED = "pld.system.wait(arrived, [source, 0], moe_epoch, cmp=pld.WaitCmp.Ge)"
COUNTS_PUT = "            pld.tensor.put(meta_window, peer, counts, [my_rank, 0], [peer, 0], [1, N_LOCAL])\n"
SENT_NOTIFY = """\
            if peer != my_rank:
                pld.system.notify(arrived, peer, [my_rank, 0], 1, op=pld.NotifyOp.AtomicAdd)
"""
ROUTE_PUTS = """\
                    pld.tensor.put(recv_x, owner, x_norm_i8, [lane, 0], [t, 0], [1, D])
                    pld.tensor.put(recv_aux, owner, aux_rows, [lane, 0], [route, 0], [1, LANES])
                    pld.tensor.put(recv_route, owner, key_rows, [lane, 0], [route, 0], [1, LANES])
"""
EARLY_NOTIFY = """\
        for peer in pl.range(EP_WORLD_SIZE):
            if peer != my_rank:
                pld.system.notify(arrived, peer, [my_rank, 0], 1, op=pld.NotifyOp.AtomicAdd)
"""


def dispatch(name: str, before: str, after: str, output: str, why: str, **more) -> Fault:
    return Fault("moe_dispatch", name, before, after, output, why, overrides=more.pop("ranks", TWO_RANKS), **more)


def combine(name: str, before: str, after: str, output: str, why: str, **more) -> Fault:
    return Fault("moe_combine", name, before, after, output, why, overrides=more.pop("ranks", TWO_RANKS), **more)


def whole(name: str, before: str, after: str, output: str, why: str, **more) -> Fault:
    return Fault("moe", name, before, after, output, why, overrides=TWO_RANKS, **more)


DISPATCH = (
    dispatch(
        "never_signalled",
        SENT_NOTIFY,
        "",
        "recv_meta",
        "every rank waits for the others",
        fault="GG405",
    ),
    dispatch(
        "waits_for_its_own_signal",
        ARRIVED,
        ARRIVED.replace("source, 0", "my_rank, 0"),
        "recv_meta",
        "nobody signals to itself",
        fault="GG405",
    ),
    dispatch(
        "waits_for_one_source_only",
        ARRIVED,
        ARRIVED.replace("source, 0", "(my_rank + 1) % EP_WORLD_SIZE, 0"),
        "recv_meta",
        "rows of the other sources are read whether they have come or not",
        ranks=FOUR_RANKS,
        fault="GG404",
    ),
    dispatch(
        "reads_before_the_wait",
        ARRIVED,
        "pass",
        "recv_meta",
        "counts are read whether they have come or not",
        fault="GG404",
    ),
    dispatch(
        "signal_before_the_counts",
        COUNTS_PUT + SENT_NOTIFY,
        SENT_NOTIFY + COUNTS_PUT,
        "recv_meta",
        "the signal overtakes the counts",
        fault="GG404",
    ),
    dispatch(
        "signal_before_the_rows",
        "        cursor = pl.array.create(N_EXPERTS, pl.INT32)\n",
        EARLY_NOTIFY + "        cursor = pl.array.create(N_EXPERTS, pl.INT32)\n",
        "recv_x_out",
        "the first of two signals satisfies the wait before the rows have left",
        fault="GG404",
    ),
    dispatch(
        "no_signal_without_rows",
        SENT_NOTIFY,
        SENT_NOTIFY.replace("peer != my_rank", "peer != my_rank and pl.read(counts, [peer, 0]) > 0"),
        "recv_meta",
        "a destination that receives nothing waits for ever",
        cases=("one_rank", "tokens_0"),
        fault="GG405",
    ),
    dispatch(
        "shared_lane",
        "lane = local * RECV_MAX + my_rank * MAX_PER_SRC + slot",
        "lane = local * RECV_MAX + slot",
        "recv_x_out",
        "all sources write to the first lane of an expert",
        fault="GG404",
    ),
    dispatch(
        "lanes_of_t_rows",
        "lane = local * RECV_MAX + my_rank * MAX_PER_SRC + slot",
        "lane = local * RECV_MAX + my_rank * T + slot",
        "recv_x_out",
        "a lane has RECV_MAX / EP rows, which is more than T here",
        ranks=(*TWO_RANKS, ("recv_depth", 32)),
    ),
    dispatch(
        "counts_by_expert_and_source",
        "count = pl.read(recv_meta, [source, e])\n            for i",
        "count = pl.read(recv_meta, [e % EP_WORLD_SIZE, source])\n            for i",
        "recv_x_out",
        "axes of recv_meta exchanged: keys are checked that nobody wrote",
        fault="GG502",
    ),
    dispatch(
        "source_and_destination_exchanged",
        "counts, [my_rank, 0], [peer, 0], [1, N_LOCAL])",
        "counts, [peer, 0], [my_rank, 0], [1, N_LOCAL])",
        "recv_meta",
        "a peer gets the counts of this rank's own experts, in its own row",
        fault="GG404",
    ),
    dispatch(
        "owner_and_local_exchanged",
        "                owner = expert // N_LOCAL\n                local = expert % N_LOCAL\n",
        "                owner = expert % EP_WORLD_SIZE\n                local = expert // EP_WORLD_SIZE\n",
        "recv_x_out",
        "experts are dealt to ranks in turn instead of in blocks",
        cases=("default", "skew_zipf"),
    ),
    dispatch(
        "inclusive_prefix",
        "                column = base + i * ROWS\n",
        "                column = base + count + i * ROWS\n",
        "recv_x_out",
        "a source's rows start where they should end: keys are checked that nobody wrote",
        fault="GG502",
    ),
    dispatch(
        "scale_and_weight_exchanged",
        "recv_w_out[e : e + 1, column : column + ROWS] = side[1:2, 0:ROWS]",
        "recv_w_out[e : e + 1, column : column + ROWS] = side[0:1, 0:ROWS]",
        "recv_w_out",
        "the weight column is the scale's",
    ),
    dispatch(
        "side_columns_exchanged",
        "            pl.write(aux, [k, 0], pl.read(x_norm_scale, [t, 0]))\n"
        "            pl.write(aux, [k, 1], pl.read(weights, [t, k]))\n",
        "            pl.write(aux, [k, 1], pl.read(x_norm_scale, [t, 0]))\n"
        "            pl.write(aux, [k, 0], pl.read(weights, [t, k]))\n",
        "recv_scale_out",
        "the sender exchanges scale and weight",
    ),
    dispatch(
        "key_by_choice",
        "pl.cast(t * TOPK + k, pl.INT32)",
        "pl.cast(k * T + t, pl.INT32)",
        "recv_r_route_out",
        "key = k * T + t",
    ),
    dispatch(
        "weight_of_the_first_choice",
        "pl.read(weights, [t, k])",
        "pl.read(weights, [t, 0])",
        "recv_w_out",
        "all experts of a token weigh the same",
    ),
    dispatch(
        "inactive_tokens_counted",
        "        for t in pl.range(active):\n            for k in pl.range(TOPK):\n                chosen",
        "        for t in pl.range(T):\n            for k in pl.range(TOPK):\n                chosen",
        "recv_meta",
        "placeholders of inactive tokens are routes to expert 0",
        cases=("tokens_5", "tokens_differ"),
    ),
    dispatch(
        "token_count_not_clamped",
        "active = pl.max(pl.min(num_tokens, T), 0)",
        "active = num_tokens",
        "recv_meta",
        "tokens beyond T are read",
        cases=("tokens_over",),
        fault="GG501",
    ),
    dispatch(
        "partial_chunk_dropped",
        "for i in pl.range((count + ROWS - 1) // ROWS):",
        "for i in pl.range(count // ROWS):",
        "recv_x_out",
        "lanes that are not full lose their rows: keys are checked that nobody wrote",
        fault="GG502",
    ),
    dispatch(
        "sources_in_falling_order",
        "        for source in pl.range(EP_WORLD_SIZE):\n"
        "            count = pl.read(recv_meta, [source, e])\n"
        "            for i in",
        "        for back in pl.range(EP_WORLD_SIZE):\n"
        "            source = EP_WORLD_SIZE - 1 - back\n"
        "            count = pl.read(recv_meta, [source, e])\n"
        "            for i in",
        "recv_r_route_out",
        "compact rows are ordered by source, the last one first",
    ),
    dispatch(
        "own_rows_skipped",
        ROUTE_PUTS,
        "                    if owner != my_rank:\n" + "".join(f"    {line}\n" for line in ROUTE_PUTS.splitlines()),
        "recv_x_out",
        "routes to the own experts never enter a lane",
    ),
)

RETURN_WAIT = "pld.system.wait(combine_arrived, [peer, 0], moe_epoch, cmp=pld.WaitCmp.Ge)"
RETURN_NOTIFY = "pld.system.notify(combine_arrived, peer, [my_rank, 0], 1, op=pld.NotifyOp.AtomicAdd)"
ADD = "total = pl.add(total, pl.cast(routed_window[route : route + 1, 0:D], pl.FP32))"
BF16_ADD = f"""{ADD}
                    total = pl.cast(pl.cast(total, pl.BF16, mode="rint"), pl.FP32)"""
SUM_START = "total = pl.cast(sh[t : t + 1, 0:D], pl.FP32)"
SUM_END = 'ffn_out[t : t + 1, 0:D] = pl.cast(total, pl.BF16, mode="rint")'
TRUNCATED = SUM_END.replace("rint", "trunc")
FALLING_RETURN = (
    "            for source in pl.range(EP_WORLD_SIZE):\n                count",
    "            for back in pl.range(EP_WORLD_SIZE):\n"
    "                source = EP_WORLD_SIZE - 1 - back\n"
    "                count",
)

COMBINE = (
    combine("bf16_accumulator", ADD, BF16_ADD, "ffn_out", "every partial sum rounds to BF16"),
    combine("truncated", SUM_END, TRUNCATED, "ffn_out", "the sum is cut, not rounded"),
    combine(
        "half_away",
        SUM_END,
        SUM_END.replace("rint", "round"),
        "ffn_out",
        "ties go away from zero",
        cases=("magnitudes",),
    ),
    combine(
        "shared_expert_last",
        SUM_END,
        SUM_END.replace("pl.cast(total,", "pl.cast(pl.add(total, pl.cast(sh[t : t + 1, 0:D], pl.FP32)),"),
        "ffn_out",
        "the shared expert is added once more at the end",
    ),
    combine(
        "shared_expert_after_the_routed",
        f"                {SUM_START}\n                for k in pl.range(TOPK):\n"
        f"                    route = t * TOPK + k\n                    {ADD}\n",
        "                total = pl.full([1, D], dtype=pl.FP32, value=0.0)\n"
        "                for k in pl.range(TOPK):\n"
        f"                    route = t * TOPK + k\n                    {ADD}\n"
        "                total = pl.add(total, pl.cast(sh[t : t + 1, 0:D], pl.FP32))\n",
        "ffn_out",
        "another order of additions is another contract",
        cases=("cancelling",),
    ),
    combine(
        "choices_in_falling_order",
        "                    route = t * TOPK + k\n                    total",
        "                    route = t * TOPK + TOPK - 1 - k\n                    total",
        "ffn_out",
        "choices are added last to first",
        cases=("cancelling",),
    ),
    combine(
        "last_choice_dropped",
        "                for k in pl.range(TOPK):\n                    route",
        "                for k in pl.range(TOPK - 1):\n                    route",
        "ffn_out",
        "one expert of every token is lost",
    ),
    combine(
        "one_token_loses_its_routed_experts",
        "            if t < active:",
        "            if t < active and t != 3:",
        "ffn_out",
        "a token of eight keeps its shared expert only",
    ),
    combine(
        "sources_in_falling_order", *FALLING_RETURN, "routed_y_buf", "another order than dispatch laid the rows in"
    ),
    combine(
        "inclusive_prefix",
        "                    column = base + s\n",
        "                    column = base + count + s\n",
        "routed_y_buf",
        "rows are taken from where the next source's begin",
    ),
    combine(
        "returned_to_the_next_rank",
        "pld.tensor.put(routed_window, source, y_rows",
        "pld.tensor.put(routed_window, (source + 1) % EP_WORLD_SIZE, y_rows",
        "routed_y_buf",
        "rows come back to a rank that did not send them",
    ),
    combine("never_signalled", RETURN_NOTIFY, "pass", "ffn_out", "every rank waits for its rows", fault="GG405"),
    combine(
        "waits_for_its_own_signal",
        RETURN_WAIT,
        RETURN_WAIT.replace("peer, 0", "my_rank, 0"),
        "ffn_out",
        "nobody signals to itself",
        fault="GG405",
    ),
    combine(
        "reads_before_the_wait",
        RETURN_WAIT,
        "pass",
        "ffn_out",
        "rows are summed whether they have come or not",
        fault="GG404",
    ),
    combine(
        "waits_for_one_peer_only",
        RETURN_WAIT,
        RETURN_WAIT.replace("peer, 0", "(my_rank + 1) % EP_WORLD_SIZE, 0"),
        "ffn_out",
        "rows of the other peers are summed whether they have come or not",
        ranks=FOUR_RANKS,
        fault="GG404",
    ),
    combine(
        "signal_before_the_rows",
        "        for e in pl.range(N_LOCAL):\n            base",
        "        for peer in pl.range(EP_WORLD_SIZE):\n"
        "            if peer != my_rank:\n"
        f"                {RETURN_NOTIFY}\n"
        "        for e in pl.range(N_LOCAL):\n            base",
        "ffn_out",
        "the first of two signals satisfies the wait before the rows have left",
        fault="GG404",
    ),
    combine(
        "token_count_not_clamped",
        "active = pl.max(pl.min(num_tokens, T), 0)",
        "active = pl.max(pl.min(num_tokens, T - 1), 0)",
        "ffn_out",
        "the last token is taken for an inactive one",
    ),
)

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

MOE = (
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

FAULTS = (*DISPATCH, *COMBINE, *MOE)
