"""Faults of moe_dispatch (moe_and_layers.md 3.7, 7.4).

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


FAULTS = (
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
