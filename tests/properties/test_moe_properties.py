"""moe: properties of contracts/moe_and_layers.md, 5.8, of the golden. They hold bit for bit.

A run of the kernel takes seconds; it is judged against this golden on every case (tests/ops).
"""

import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st
from moe_situations import place_of, rank_order, situations
from property_testing import GOLDEN, PROPERTIES, assert_near, assert_same, by_row, golden, holds, leaky, scaled

OP, OUT = "moe", "x_next"
SMALL = {"tokens": (8,), "ranks": (2, 4)}
SCORE = situations(OP, tags=("score",), without=("exact",), **SMALL)
HASH = situations(OP, tags=("hash",), **SMALL)
ANY = situations(OP, **SMALL)
FULL = situations(OP, without=("partial",), **SMALL)
ROUTED = ("routed_w1", "routed_w1_scale", "routed_w3", "routed_w3_scale", "routed_w2", "routed_w2_scale")
REPLICATED_BY_EXPERT = ("gate_w", "gate_bias")


def count(trial):
    """Active tokens."""
    return min(max(trial["num_tokens"], 0), trial["x_hc"].shape[1])


def zeros(trial, *names):
    return {name: torch.zeros_like(trial[name]) for name in names}


@holds(OP, on=GOLDEN, costs=3, spoil=leaky, among=ANY)
def test_a_rank_does_not_depend_on_the_tokens_of_others(trial):
    rank = trial.data.draw(st.integers(0, trial.op.world - 1), label="rank")
    others = torch.arange(trial.op.world) != rank
    x_hc, ids = trial["x_hc"].clone(), trial["input_ids"].clone()
    x_hc[others], ids[others] = x_hc[others].flip(1) * 2, ids[others].flip(1)
    assert_same(trial.run(x_hc=x_hc, input_ids=ids)[OUT][rank], trial.run()[OUT][rank])


def counted(outputs, inputs):
    """Rows depend on how many tokens are said to be active."""
    return {OUT: (outputs[OUT] * (1 + inputs["num_tokens"] % 11)).bfloat16()}


def by_token(outputs, inputs):
    """A row depends on which token of its rank it is."""
    tokens = 1 + torch.arange(outputs[OUT].shape[1])
    return {OUT: (outputs[OUT] * tokens.reshape(1, -1, 1, 1)).bfloat16()}


@holds(OP, on=GOLDEN, costs=3, spoil=by_token, among=FULL)
def test_permuting_tokens_permutes_rows(trial):
    order = trial.permutation(trial["x_hc"].shape[1])
    changed = {name: trial[name][:, order] for name in ("x_hc", "input_ids")}
    assert_same(trial.run(**changed)[OUT], trial.run()[OUT][:, order])


@holds(OP, on=GOLDEN, costs=3, spoil=counted, among=FULL)
def test_the_first_tokens_do_not_depend_on_how_many_are_active(trial):
    active = trial.data.draw(st.integers(0, trial["x_hc"].shape[1]), label="active")
    assert_same(trial.run(num_tokens=active)[OUT][:, :active], trial.run()[OUT][:, :active])


@holds(OP, on=GOLDEN, costs=3, spoil=counted, among=ANY)
def test_num_tokens_is_clamped(trial):
    tokens = trial["x_hc"].shape[1]
    assert_same(trial.run(num_tokens=2**31 - 1)[OUT], trial.run(num_tokens=tokens)[OUT])
    assert_same(trial.run(num_tokens=-(2**31))[OUT], trial.run(num_tokens=0)[OUT])


@holds(OP, on=GOLDEN, costs=3, spoil=by_row, among=ANY)
def test_relabelling_ranks_with_their_experts_exchanges_rows(trial):
    order, experts = rank_order(trial)
    changed = {name: trial[name][order] for name in ("x_hc", "input_ids", *ROUTED)}
    changed |= {name: trial[name][:, experts] for name in REPLICATED_BY_EXPERT}
    changed["tid2eid"] = place_of(experts)[trial["tid2eid"].long()].to(torch.int32)
    assume_no_ties(trial)
    assert_same(trial.run(**changed)[OUT], trial.run()[OUT][order])


def assume_no_ties(trial):
    """Of equal scores the lower id is chosen, which another labelling changes."""
    if trial["layer_id"] >= trial.op.config.num_hash_layers:
        biased = trial.stages()["biased"].sort(dim=2).values
        assume(bool((biased[..., 1:] != biased[..., :-1]).all()))


@holds(OP, on=GOLDEN, costs=3, spoil=leaky, among=FULL)
def test_the_spread_of_the_experts_over_ranks_does_not_matter(trial):
    """5.8.6, with one rank as the reference."""
    ranks = trial.data.draw(st.sampled_from([n for n in (1, 2, 4, 8) if n != trial.op.world]), label="ranks")
    tokens = trial["x_hc"].shape[0] * trial["x_hc"].shape[1]
    arguments = {**trial.inputs, **trial.op.parameters, "num_tokens": tokens // ranks, "recv_max": tokens}
    for name, value in trial.inputs.items():
        if name in ("x_hc", "input_ids"):
            arguments[name] = value.reshape(ranks, -1, *value.shape[2:])
        elif name in ROUTED:
            arguments[name] = value.flatten(0, 1).unflatten(0, (ranks, -1))
        elif isinstance(value, torch.Tensor):
            arguments[name] = value[:1].expand(ranks, *value.shape[1:])
    found = golden(OP)(**arguments)
    found = found if trial.spoil is None else trial.spoil(found, arguments)
    assert_same(found[OUT].flatten(0, 1), trial.run()[OUT].flatten(0, 1))


@holds(OP, on=GOLDEN, costs=3, spoil=scaled, among=ANY)
def test_without_both_outputs_the_streams_are_mixed_alone(trial):
    """5.8.8 and 5.8.12: y of stream o is the sum of x[i] * comb[i, o], i ascending, whatever the experts."""
    found = trial.run(**zeros(trial, "routed_w2_scale", "shared_w2_scale"))[OUT]
    comb = trial.stages()["comb"].unflatten(2, (4, 4))
    streams = trial["x_hc"].float()
    mixed = torch.zeros_like(streams)
    for old in range(4):
        mixed = mixed + streams[:, :, old].unsqueeze(2) * comb[:, :, old].unsqueeze(3)
    assert_same(found, mixed.bfloat16(), zero_sign=False)


@holds(OP, on=GOLDEN, costs=3, spoil=leaky, among=ANY)
def test_without_routed_outputs_routing_does_not_matter(trial):
    """ffn_out is sh: another router changes nothing."""
    silent = zeros(trial, "routed_w2_scale")
    other = {"gate_w": trial["gate_w"].flip(1).contiguous(), "tid2eid": trial["tid2eid"].flip(1).contiguous()}
    assert_same(trial.run(**silent, **other)[OUT], trial.run(**silent)[OUT])


@holds(OP, on=GOLDEN, costs=3, spoil=leaky, among=HASH)
def test_hash_layers_do_not_depend_on_the_bias(trial):
    other = trial["gate_bias"] + torch.arange(trial["gate_bias"].shape[1])
    assert_same(trial.run(gate_bias=other)[OUT], trial.run()[OUT])


@holds(OP, on=GOLDEN, costs=3, spoil=leaky, among=SCORE)
def test_score_layers_do_not_depend_on_ids_and_table(trial):
    changed = {"input_ids": trial["input_ids"].flip(1), "tid2eid": trial["tid2eid"].flip(1).contiguous()}
    assert_same(trial.run(**changed)[OUT], trial.run()[OUT])


@holds(OP, on=GOLDEN, costs=3, spoil=scaled, among=ANY)
def test_weights_of_an_active_token_sum_to_the_factor(trial):
    sums = trial.judged_stages()["weights"][:, : count(trial)].double().sum(2)
    assert_near(sums, torch.full_like(sums, trial.op.config.routed_scaling_factor), atol=2e-5)
    if not sums.numel():
        assert_same(trial.run()[OUT], trial.run(num_tokens=0)[OUT])


@holds(OP, on=GOLDEN, costs=3, spoil=leaky, among=ANY)
def test_experts_that_nobody_chose_do_not_matter(trial):
    ids = trial.stages()["indices"][:, : count(trial)].flatten().long()
    chosen = torch.zeros(trial.op.config.n_routed_experts, dtype=torch.bool)
    chosen[ids] = True
    scale = trial["routed_w2_scale"].clone().flatten(0, 1)
    scale[~chosen] = torch.nan
    assert_same(trial.run(routed_w2_scale=scale.view_as(trial["routed_w2_scale"]))[OUT], trial.run()[OUT])


@holds(OP, on=GOLDEN, costs=3, spoil=scaled, among=ANY)
def test_the_result_equals_one_evaluation_per_rank(trial):
    """6.8: every rank by itself, all experts at hand."""
    whole = trial.run()[OUT]
    for rank in (0, trial.op.world - 1):
        alone = {**trial.inputs, **trial.op.parameters, "recv_max": trial["x_hc"].shape[1]}
        for name, value in trial.inputs.items():
            if name in ROUTED:
                alone[name] = value.flatten(0, 1).unsqueeze(0)
            elif isinstance(value, torch.Tensor):
                alone[name] = value[rank : rank + 1]
        assert_same(golden(OP)(**alone)[OUT][0], whole[rank])


@pytest.mark.parametrize("declared", PROPERTIES[OP], ids=lambda declared: declared.name)
def test_rejects_a_spoiled_golden(declared):
    """Every property above is seen to fail."""
    with pytest.raises(AssertionError):
        declared.check("golden", declared.spoil)
