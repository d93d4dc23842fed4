"""moe_dispatch: properties of contracts/moe_and_layers.md, 3.8. They hold bit for bit."""

import itertools

import torch
from hypothesis import strategies as st
from moe_situations import active, place_of, rank_order, situations
from property_testing import BOTH, assert_same, by_row, holds, leaky, shifted

OP = "moe_dispatch"
ROWS = ("recv_x_out", "recv_scale_out", "recv_w_out", "recv_r_route_out")
ANY = situations(OP)
FINITE_TOKENS = situations(OP, tags=("default", "skew"))


def sources(outputs):
    """Source rank of every compact row, -1 beyond the count. [EP, N_LOCAL, RECV_MAX]"""
    ends = outputs["recv_meta"].cumsum(1)
    row = torch.arange(outputs["recv_w_out"].shape[2])
    source = (row >= ends.transpose(1, 2).unsqueeze(3)).sum(2)
    return torch.where(row < outputs["recv_count_out"], source, -1)


def routes(trial, outputs):
    """(source, key, expert) of every compact row, in the order of experts and rows. [R, 3]"""
    source = sources(outputs)
    rank, local, row = (source >= 0).nonzero().unbind(1)
    expert = rank * outputs["recv_meta"].shape[2] + local
    return torch.stack([source[rank, local, row], outputs["recv_r_route_out"][rank, local, row].long(), expert], 1)


def mask(trial):
    return active(trial["num_tokens"], trial["indices"].shape[1])


@holds(OP, on=BOTH, spoil=shifted, among=ANY)
def test_routes_are_conserved(trial):
    outputs, width = trial.run(), trial["indices"].shape[2]
    assert int(outputs["recv_count_out"].sum()) == width * int(mask(trial).sum())
    assert torch.equal(outputs["recv_meta"].sum((0, 2)), width * mask(trial).sum(1))


@holds(OP, on=BOTH, spoil=shifted, among=ANY)
def test_every_route_arrives_once(trial):
    found, width = routes(trial, trial.run()), trial["indices"].shape[2]
    wanted = [(a, r) for a, count in enumerate(mask(trial).sum(1).tolist()) for r in range(width * count)]
    assert sorted(map(tuple, found[:, :2].tolist())) == wanted


def other_payload(outputs, inputs):
    """Rows are not what was sent."""
    return {**outputs, "recv_x_out": outputs["recv_x_out"] + 1}


@holds(OP, on=BOTH, spoil=other_payload, among=ANY)
def test_a_row_is_its_token_on_its_expert(trial):
    outputs = trial.run()
    found, width = routes(trial, outputs), trial["indices"].shape[2]
    source, token, choice, expert = found[:, 0], found[:, 1] // width, found[:, 1] % width, found[:, 2]
    valid = sources(outputs) >= 0
    assert torch.equal(trial["indices"][source, token, choice].long(), expert)
    assert_same(outputs["recv_x_out"][valid], trial["x_norm_i8"][source, token])
    assert_same(outputs["recv_scale_out"][valid], trial["x_norm_scale"][source, token, 0])
    assert_same(outputs["recv_w_out"][valid], trial["weights"][source, token, choice])


@holds(OP, on=BOTH, spoil=shifted, among=ANY)
def test_rows_of_an_expert_are_in_the_order_of_source_and_key(trial):
    found = routes(trial, trial.run()).tolist()
    assert len(found) == int(mask(trial).sum()) * trial["indices"].shape[2]
    for before, after in itertools.pairwise(found):
        assert before[2] < after[2] or before[:2] < after[:2]


@holds(OP, on=BOTH, spoil=leaky, among=FINITE_TOKENS)
def test_permuting_the_tokens_of_a_rank_permutes_its_keys_and_no_counts(trial):
    tokens, width = trial["indices"].shape[1:]
    rank = trial.data.draw(st.integers(0, trial.op.world - 1), label="rank")
    order = trial.permutation(tokens)
    changed = {}
    for name in ("indices", "x_norm_i8", "x_norm_scale", "weights"):
        changed[name] = trial[name].clone()
        changed[name][rank] = trial[name][rank, order]
    before, after = trial.run(), trial.run(**changed)
    assert_same(after["recv_meta"], before["recv_meta"])
    old, new = routes(trial, before), routes(trial, after)
    moved = new[:, 0] == rank
    new[moved, 1] = order[new[moved, 1] // width] * width + new[moved, 1] % width
    assert sorted(old.tolist()) == sorted(new.tolist())


@holds(OP, on=BOTH, spoil=by_row, among=FINITE_TOKENS)
def test_relabelling_ranks_with_their_experts_relabels_counts(trial):
    order, experts = rank_order(trial)
    changed = {name: trial[name][order] for name in ("indices", "x_norm_i8", "x_norm_scale", "weights", "num_tokens")}
    changed["indices"] = place_of(experts)[changed["indices"].long()].to(torch.int32)
    before, after = trial.run(), trial.run(**changed)
    assert_same(after["recv_meta"], before["recv_meta"][order][:, order])
    assert_same(after["recv_count_out"], before["recv_count_out"][order])


@holds(OP, on=BOTH, spoil=shifted, among=situations(OP, without=("partial",)))
def test_lanes_of_distinct_ids_hold_at_most_all_tokens(trial):
    assert int(trial.run()["recv_meta"].max()) <= trial["indices"].shape[1]
    assert int(trial.run()["recv_meta"].min()) >= 0
    assert not trial.run()["overflow"].any()


@holds(OP, on=BOTH, spoil=leaky, among=FINITE_TOKENS)
def test_token_counts_are_clamped(trial):
    tokens = trial["indices"].shape[1]
    full = trial["num_tokens"].clone().fill_(tokens)
    over, under = full.clone(), full.clone()
    over[0], under[0], full[0] = 2**31 - 1, -(2**31), tokens
    empty = full.clone()
    empty[0] = 0
    for wild, tame in ((over, full), (under, empty)):
        found, wanted = trial.run(num_tokens=wild), trial.run(num_tokens=tame)
        for name in wanted:
            assert_same(found[name], wanted[name])


@holds(OP, on=BOTH, spoil=leaky, among=situations(OP, tags=("partial",)))
def test_inactive_tokens_do_not_matter(trial):
    idle = ~mask(trial)
    changed = {name: trial[name].clone() for name in ("indices", "x_norm_i8", "x_norm_scale", "weights")}
    changed["indices"][idle] = trial.op.config.n_routed_experts - 1
    changed["x_norm_i8"][idle] = -128
    changed["x_norm_scale"][idle] = 1e30
    changed["weights"][idle] = -1e30
    plain, found = trial.run(), trial.run(**changed)
    for name in plain:
        assert_same(found[name], plain[name])
