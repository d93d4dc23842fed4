"""Faults of lm_head: the pitfalls of contracts/dense.md 10.7."""

from __future__ import annotations

from textwrap import indent

from fault import Fault

PUBLISH_WAIT = "pld.system.wait(hidden_done, [owner, 0], 1, cmp=pld.WaitCmp.Ge)"
RECEIVE_WAIT = "pld.system.wait(logits_done, [source, 0], 1, cmp=pld.WaitCmp.Ge)"
PUBLISH_NOTIFY = "pld.system.notify(hidden_done, peer, [my_rank, 0], 1, op=pld.NotifyOp.Set)"
ROUTE_NOTIFY = "pld.system.notify(logits_done, owner, [my_rank, 0], 1, op=pld.NotifyOp.Set)"
PUBLISH_PUT = """\
                pld.tensor.put(
                    hidden_window,
                    peer,
                    hidden_states,
                    [my_rank * T_MAX, 0],
                    [0, 0],
                    [T, D],
                    chunk_rows=TOKENS,
                    chunk_cols=COPY_COLS,
                )
"""
LAUNCH = """\
    for rank in pl.range(pld.world_size()):
        lm_head_rank(
            hidden_states[rank],
            lm_head_weight[rank],
            logits[rank],
            hidden_window,
            hidden_done,
            logits_window,
            logits_done,
            rank,
            device=rank,
        )
"""

FAULTS = (
    Fault(
        op="lm_head",
        name="rounded_logits",
        before="logits_shard[t0 : t0 + BOX, n0 : n0 + COLS] = logits",
        after=(
            "logits_shard[t0 : t0 + BOX, n0 : n0 + COLS] = pl.cast(\n"
            '            pl.cast(logits, pl.BF16, mode="rint"), pl.FP32\n'
            "        )"
        ),
        output="logits",
        why="logits leave as BF16, which the reference's tolerance lets pass",
    ),
    Fault(
        op="lm_head",
        name="dropped_product_chunk",
        before="for c in pl.range(1, D // K_CHUNK):",
        after="for c in pl.range(1, D // K_CHUNK - 1):",
        occurs=2,
        nth=1,
        output="logits",
        why="the last input channels are not added",
    ),
    Fault(
        op="lm_head",
        name="dropped_tail_chunk",
        before="for c in pl.range(1, D // K_CHUNK):",
        after="for c in pl.range(1, D // K_CHUNK - 1):",
        occurs=2,
        nth=2,
        output="logits",
        why="the tail misses the last input channels",
    ),
    Fault(
        op="lm_head",
        name="tail_never_computed",
        before="    if TAIL_COLS > 0:\n        for block",
        after="    if TAIL_COLS > BOX * BOX:\n        for block",
        output="logits",
        why="the ids beyond the last whole block have no logits",
    ),
    Fault(
        op="lm_head",
        name="tail_weights_of_the_block_before",
        before="TAIL_START : TAIL_START + TAIL_TILE, 0:K_CHUNK]",
        after="TAIL_START - TAIL_TILE : TAIL_START, 0:K_CHUNK]",
        output="logits",
        why="the tail starts from the ids before it",
    ),
    Fault(
        op="lm_head",
        name="owner_and_rank_transposed",
        before="copy_columns(shard, logits, 0, own_column)",
        after="copy_columns(shard, logits, 0, VOCAB - VOCAB_PER_TP - own_column)",
        output="logits",
        why="the own shard goes to the columns of another rank",
    ),
    Fault(
        op="lm_head",
        name="own_rows_for_every_owner",
        before="received = hidden_window[u0 : u0 + TOKENS, d0 : d0 + COPY_COLS]",
        after="received = hidden_states[t0 : t0 + TOKENS, d0 : d0 + COPY_COLS]",
        output="logits",
        why="a rank multiplies its own rows for everybody; invisible where all ranks hold the same",
    ),
    Fault(
        op="lm_head",
        name="stride_of_active_rows",
        before="u0 = owner * T_MAX + t0",
        after="u0 = owner * T + t0",
        output="logits",
        why="slots of the window are T_MAX rows apart, not T",
    ),
    Fault(
        op="lm_head",
        name="tail_columns_not_received",
        before="        if TAIL_COLS > 0:\n            n1 =",
        after="        if TAIL_COLS > BOX * BOX:\n            n1 =",
        output="logits",
        why="the copy stops at the last whole block",
    ),
    Fault(
        op="lm_head",
        name="routed_to_the_first_columns",
        before="                    [0, own_column],",
        after="                    [0, 0],",
        output="logits",
        why="all shards arrive in the columns of rank 0",
    ),
    Fault(
        op="lm_head",
        name="reads_rows_before_the_signal",
        before=PUBLISH_WAIT,
        after="pass",
        output="logits",
        why="rows are read whether they have come or not",
        fault="GG404",
    ),
    Fault(
        op="lm_head",
        name="reads_logits_before_the_signal",
        before=RECEIVE_WAIT,
        after="pass",
        output="logits",
        why="columns are read whether they have come or not",
        fault="GG404",
    ),
    Fault(
        op="lm_head",
        name="signal_before_the_rows",
        before=f"{PUBLISH_PUT}                {PUBLISH_NOTIFY}\n",
        after=f"                {PUBLISH_NOTIFY}\n{PUBLISH_PUT}",
        output="logits",
        why="the signal overtakes the rows",
        fault="GG404",
    ),
    Fault(
        op="lm_head",
        name="rows_never_signalled",
        before=PUBLISH_NOTIFY,
        after="pass",
        output="logits",
        why="everybody waits for rows",
        fault="GG405",
    ),
    Fault(
        op="lm_head",
        name="logits_never_signalled",
        before=ROUTE_NOTIFY,
        after="pass",
        output="logits",
        why="everybody waits for logits",
        fault="GG405",
    ),
    Fault(
        op="lm_head",
        name="waits_for_its_own_signal",
        before=RECEIVE_WAIT,
        after="pld.system.wait(logits_done, [my_rank, 0], 1, cmp=pld.WaitCmp.Ge)",
        output="logits",
        why="nobody signals to itself",
        fault="GG405",
    ),
    Fault(
        op="lm_head",
        name="skipped_tail_tokens",
        before="pl.spmd(BOXES * COL_BLOCKS,",
        after="pl.spmd((BOXES - 1) * COL_BLOCKS,",
        output="logits",
        why="the last row box is never computed",
        deployment="prefill",
    ),
    Fault(
        op="lm_head",
        name="tail_copied_at_full_width",
        before="target[t0 : t0 + TOKENS, m1 : m1 + TAIL_TILE] = source[t0 : t0 + TOKENS, n1 : n1 + TAIL_TILE]",
        after="target[t0 : t0 + TOKENS, m1 : m1 + COLS] = source[t0 : t0 + TOKENS, n1 : n1 + COLS]",
        output="logits",
        why="the tail reaches into the next shard, and beyond the last one",
        fault="GG501",
    ),
    Fault(
        op="lm_head",
        name="weight_of_the_first_rank",
        before="lm_head_weight[rank],",
        after="lm_head_weight[0],",
        output="logits",
        why="every rank holds the same shard",
    ),
    Fault(
        op="lm_head",
        name="rows_of_the_first_rank",
        before="hidden_states[rank],",
        after="hidden_states[0],",
        output="logits",
        why="every rank owns the same rows",
    ),
    Fault(
        op="lm_head",
        name="shards_in_reverse",
        before="own_column = my_rank * VOCAB_PER_TP",
        after="own_column = (TP_SIZE - 1 - my_rank) * VOCAB_PER_TP",
        output="logits",
        why="the first rank holds the first ids",
    ),
    Fault(
        op="lm_head",
        name="half_a_box_in_the_tail",
        before="rows = pl.min(BOX, T - t0)\n            x_tail",
        after="rows = pl.min(TOKENS, T - t0)\n            x_tail",
        output="logits",
        why="the tail of the second half of a row box is never computed",
        deployment="prefill",
    ),
    Fault(
        op="lm_head",
        name="launched_twice_on_the_same_windows",
        before=LAUNCH,
        after="    for _again in pl.range(2):\n" + indent(LAUNCH, "    "),
        output="logits",
        why="the signals of the first launch still stand, so nothing in the second waits",
        fault="GG404",
    ),
)
