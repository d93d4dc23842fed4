"""decode_metadata: properties of contracts/moe_and_layers.md, 9.8 and decode_compressor_indexer.md, 6.8."""

import torch
from hypothesis import strategies as st
from paged_properties import PAGE, moved, relabelled
from property_testing import BOTH, assert_same, by_row, holds, leaky, shifted

OP = "decode_metadata"
FULL_TABLES = ("reference_csa", "reference_hca", "reference_swa", "reference_layer")
IN_ORDER = ("reference_csa", "reference_swa", "reference_layer")
"""Cases whose tables have no holes; whose pages moreover lie in order."""
TABLES = {
    "ori_slot_mapping": "ori_block_table",
    "hca_cmp_slot_mapping": "cmp_block_table",
    "csa_cmp_slot_mapping": "cmp_block_table",
    "csa_idx_slot_mapping": "idx_block_table",
    "hca_state_slot_mapping": "hca_compress_state_block_table",
    "csa_state_slot_mapping": "csa_compress_state_block_table",
    "csa_inner_state_slot_mapping": "csa_inner_compress_state_block_table",
}
COMPRESSED = {"hca_cmp_slot_mapping": 128, "csa_cmp_slot_mapping": 4, "csa_idx_slot_mapping": 4}
STATES = {"hca_state_slot_mapping": 8, "csa_state_slot_mapping": 4, "csa_inner_state_slot_mapping": 4}
"""Positions per row; rows per page."""
RINGS = {"ori_slot_mapping": 128, "hca_state_slot_mapping": 512, "csa_state_slot_mapping": 260}
"""Positions after which a row is used again."""


def collapsed(outputs, inputs):
    """All slots of a step are one."""
    return {name: output.clamp(max=0) for name, output in outputs.items()}


def started(outputs, inputs):
    """Every output depends on all start positions."""
    return {name: output + int(inputs["start_pos"].sum()) for name, output in outputs.items()}


def page_of(mapping):
    return STATES.get(mapping, PAGE)


def first_positions(trial):
    """Drawn starts that leave room for a turn of every ring."""
    most = trial.op.parameters["max_seq_len"] - trial.op.deployment.seq - max(RINGS.values())
    batch = len(trial["start_pos"])
    starts = trial.data.draw(st.lists(st.integers(0, most), min_size=batch, max_size=batch), label="starts")
    return torch.tensor(starts, dtype=torch.int32)


def committed_columns(trial):
    return torch.arange(trial.op.deployment.seq) < trial["commit_tokens"]


@holds(OP, on=BOTH, spoil=leaky)
def test_positions_are_consecutive_and_lengths_end_with_what_is_committed(trial):
    found, start = trial.run(), trial["start_pos"]
    steps = torch.arange(trial.op.deployment.seq, dtype=torch.int32)
    assert_same(found["position_ids"], start.unsqueeze(1) + steps)
    assert_same(found["kv_seq_lens"], (start + trial["commit_tokens"]).int())


@holds(OP, on=BOTH, spoil=collapsed, where=lambda situation: situation.deployment != "prefill")
def test_no_row_is_written_twice_in_a_step(trial):
    for name, slots in trial.run().items():
        if name in TABLES:
            written = slots[slots >= 0]
            assert len(written.unique()) == len(written), name


@holds(OP, on=BOTH, spoil=started, names=FULL_TABLES)
def test_rows_are_used_again_after_a_turn_of_their_ring(trial):
    start = first_positions(trial)
    plain = trial.run(start_pos=start)
    for name, period in RINGS.items():
        later = trial.run(start_pos=start + period)
        assert_same(later[name], plain[name])
        assert_same(later["position_ids"], plain["position_ids"] + period)


@holds(OP, on=BOTH, spoil=started, names=FULL_TABLES)
def test_states_one_page_later_are_those_of_the_next_column(trial):
    start = first_positions(trial)
    for name, page in STATES.items():
        table = trial[TABLES[name]]
        later = trial.run(start_pos=start + page)[name]
        assert_same(later, trial.run(start_pos=start, **{TABLES[name]: table.roll(-1, dims=1)})[name])


@holds(OP, on=BOTH, spoil=shifted)
def test_a_compressed_slot_is_given_where_a_committed_group_closes_on_a_page_and_nowhere_else(trial):
    found = trial.run()
    positions = found["position_ids"].long()
    for name, ratio in COMPRESSED.items():
        table = trial[TABLES[name]]
        column = positions // ratio // PAGE
        paged = (column < table.shape[1]) & (table.gather(1, column.clamp(max=table.shape[1] - 1)) >= 0)
        closes = ((positions + 1) % ratio == 0) & committed_columns(trial)
        assert_same(found[name] >= 0, closes & paged)


@holds(OP, on=BOTH, spoil=shifted)
def test_every_slot_is_read_back_at_its_logical_place(trial):
    """The page is that of the table, the row within it that of the position: the reading rule of the indexer."""
    found = trial.run()
    positions = found["position_ids"].long()
    for name, table in TABLES.items():
        logical = positions // COMPRESSED.get(name, 1)
        if name == "ori_slot_mapping":
            logical = logical % trial.op.parameters["window"]
        page, slots = page_of(name), found[name]
        written = slots >= 0
        pages = trial[table].long().gather(1, (logical // page).clamp(max=trial[table].shape[1] - 1))
        assert_same((slots // page)[written], pages[written])
        assert_same((slots % page)[written], (logical % page)[written])


@holds(OP, on=BOTH, spoil=started, names=IN_ORDER)
def test_slots_of_groups_grow_with_them(trial):
    """Where pages lie in order: a group later is a row later."""
    for name, ratio in COMPRESSED.items():
        start = first_positions(trial) // ratio * ratio + ratio - 1
        plain = trial.run(start_pos=start, commit_tokens=trial.op.deployment.seq)[name][:, 0]
        later = trial.run(start_pos=start + ratio, commit_tokens=trial.op.deployment.seq)[name][:, 0]
        assert bool((plain >= 0).all())
        assert_same(later, plain + 1)


@holds(OP, on=BOTH, spoil=by_row, where=lambda situation: situation.deployment != "prefill")
def test_committing_less_only_takes_slots_of_groups_away(trial):
    fewer = trial.data.draw(st.integers(0, trial["commit_tokens"]), label="committed")
    found, plain = trial.run(commit_tokens=fewer), trial.run()
    dropped = torch.arange(trial.op.deployment.seq) >= fewer
    for name in TABLES:
        wanted = torch.where(dropped, -1, plain[name]) if name in COMPRESSED else plain[name]
        assert_same(found[name], wanted)


@holds(OP, on=BOTH, spoil=by_row, where=lambda situation: situation.deployment != "prefill")
def test_requests_in_another_order_give_the_same_rows(trial):
    order = trial.permutation(len(trial["start_pos"]))
    per_request = ("start_pos", *TABLES.values())
    found, plain = trial.run(**{name: trial[name][order].contiguous() for name in per_request}), trial.run()
    for name, output in plain.items():
        assert_same(found[name], output[order])


@holds(OP, on=BOTH, spoil=shifted)
def test_slots_follow_their_pages(trial):
    """Pages of a pool with other numbers: the rows of this pool move with them, all others stay."""
    plain = trial.run()
    for table in dict.fromkeys(TABLES.values()):
        order = trial.permutation(int(trial[table].max()) + 2)
        found = trial.run(**{table: relabelled(trial[table], order)})
        for name, slots in plain.items():
            own = TABLES.get(name) == table
            assert_same(found[name], moved(slots, order, page_of(name)) if own else slots)
