"""decode_compressor_ratio4: properties of contracts/decode_compressor_indexer.md, 2.8."""

import torch
from property_testing import BOTH, assert_near, assert_same, by_row, holds, leaky, shifted

OP = "decode_compressor_ratio4"
WRITTEN = ("default", "first_tokens", "window_edges", "ring_edges", "last_positions", "sharp_scores")
"""Cases whose tokens all have a state slot."""
PER_REQUEST = (
    "x",
    "compress_state_block_table",
    "cos",
    "sin",
    "position_ids",
    "cmp_slot_mapping",
    "state_slot_mapping",
)


def tinted(outputs, inputs):
    """Every output depends on the rotary rows and on the encoding of the position."""
    tint = float(inputs["cos"].sum() + inputs["ape"].sum())
    return {name: output + tint for name, output in outputs.items()}


def relabelled(pages, order):
    """Page numbers, or -1, in the order in which page order[i] becomes page i."""
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order))
    return torch.where(pages < 0, pages, inverse[pages.clamp(min=0).long()].to(pages.dtype))


def moved(slots, order, page):
    """Flat rows of a pool whose pages were reordered."""
    pages = relabelled(torch.where(slots < 0, -1, slots // page), order)
    return torch.where(slots < 0, slots, pages * page + slots % page)


@holds(OP, on=BOTH, spoil=shifted, names=WRITTEN)
def test_a_step_done_twice_leaves_what_it_left_once(trial):
    once = trial.run()
    twice = trial.run(compress_state=once["compress_state"], cmp_kv_cache=once["cmp_kv_cache"])
    for name, output in once.items():
        assert_same(twice[name], output)


@holds(OP, on=BOTH, spoil=by_row, names=WRITTEN)
def test_requests_in_another_order_give_the_same_rows(trial):
    order = trial.permutation(len(trial["position_ids"]))
    found = trial.run(**{name: trial[name][order].contiguous() for name in PER_REQUEST})
    plain = trial.run()
    assert_same(found["kv"], plain["kv"][order])
    assert_same(found["compress_state"], plain["compress_state"])
    assert_same(found["cmp_kv_cache"], plain["cmp_kv_cache"])


@holds(OP, on=BOTH, spoil=by_row, names=WRITTEN)
def test_pages_of_the_state_may_lie_anywhere(trial):
    order = trial.permutation(len(trial["compress_state"]))
    page = trial["compress_state"].shape[1]
    found = trial.run(
        compress_state=trial["compress_state"][order].contiguous(),
        compress_state_block_table=relabelled(trial["compress_state_block_table"], order),
        state_slot_mapping=moved(trial["state_slot_mapping"], order, page),
    )
    plain = trial.run()
    assert_same(found["kv"], plain["kv"])
    assert_same(found["cmp_kv_cache"], plain["cmp_kv_cache"])
    assert_same(found["compress_state"], plain["compress_state"][order])


@holds(OP, on=BOTH, spoil=by_row, names=WRITTEN)
def test_pages_of_the_cache_may_lie_anywhere(trial):
    order = trial.permutation(len(trial["cmp_kv_cache"]))
    found = trial.run(
        cmp_kv_cache=trial["cmp_kv_cache"][order].contiguous(),
        cmp_slot_mapping=moved(trial["cmp_slot_mapping"], order, 128),
    )
    assert_same(found["cmp_kv_cache"], trial.run()["cmp_kv_cache"][order])


@holds(OP, on=BOTH, spoil=leaky, names=WRITTEN)
def test_rows_outside_the_window_do_not_matter(trial):
    """Of the state those that no window reaches, of the cache all."""
    state, cache = trial["compress_state"], trial["cmp_kv_cache"]
    unread = (state == state.max()).all(dim=2, keepdim=True)
    found = trial.run(compress_state=torch.where(unread, -1e20, state), cmp_kv_cache=torch.full_like(cache, 3.0))
    assert bool(unread.any())
    assert_same(found["kv"], trial.run()["kv"])


@holds(OP, on=BOTH, spoil=shifted, names=WRITTEN)
def test_rows_of_no_slot_keep_their_bits(trial):
    found = trial.run()
    for name, mask in trial.op.mapped(trial.inputs).items():
        assert_same(found[name][~mask], trial[name][~mask])


@holds(OP, on=BOTH, spoil=shifted, names=("default", "ring_edges", "all_close"))
def test_the_cache_holds_kv_rounded(trial):
    found = trial.run()
    positions, slots = trial["position_ids"], trial["cmp_slot_mapping"]
    closing = (positions + 1) % 4 == 0
    requests = closing.any(dim=1).nonzero().squeeze(1)
    assert len(requests)
    rows = torch.where(closing, slots, -1).amax(dim=1)[requests]
    cache = found["cmp_kv_cache"].view(-1, found["kv"].shape[2])
    assert_same(cache[rows], found["kv"][requests, 0].bfloat16())


@holds(OP, on=BOTH, spoil=shifted, names=WRITTEN)
def test_doubling_the_norm_weight_doubles_the_row(trial):
    assert_same(trial.run(norm_w=trial["norm_w"] * 2)["kv"], trial.run()["kv"] * 2)


@holds(OP, on=BOTH, spoil=tinted, names=WRITTEN)
def test_rotary_rows_turn_the_last_lanes_alone(trial):
    found, plain = trial.run(cos=-trial["sin"], sin=trial["cos"].contiguous()), trial.run()
    nope = found["kv"].shape[2] - 2 * trial["cos"].shape[1]
    assert_same(found["kv"][..., :nope], plain["kv"][..., :nope])
    assert_same(found["compress_state"], plain["compress_state"])


@holds(OP, on=BOTH, spoil=tinted, names=("default", "ring_edges", "all_close"))
def test_one_constant_on_all_scores_changes_nothing(trial):
    """Softmax shift invariance, to the rounding of scores."""
    state = trial["compress_state"].clone()
    state[..., state.shape[2] // 2 :] += 1.0
    found = trial.run(compress_state=state, ape=trial["ape"] + 1.0)["kv"]
    assert_near(found, trial.run()["kv"], rtol=1e-4, atol=1e-4)
