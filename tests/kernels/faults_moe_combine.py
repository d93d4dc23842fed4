"""Faults of moe_combine (moe_and_layers.md 4.7, 7.4).

Faults that only a second call on the same windows shows are in test_moe_sequence.py, those of the guard in
test_moe_guard.py.
"""

from __future__ import annotations

from fault import Fault

TWO_RANKS = (("ep_world_size", 2),)
FOUR_RANKS = (("ep_world_size", 4),)

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


def combine(name: str, before: str, after: str, output: str, why: str, **more) -> Fault:
    return Fault("moe_combine", name, before, after, output, why, overrides=more.pop("ranks", TWO_RANKS), **more)


FAULTS = (
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
