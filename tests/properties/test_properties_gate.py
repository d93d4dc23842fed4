"""gate: properties of contracts/hc_gate_experts.md, 3.8. Active rows are those below num_tokens."""

import torch
from hypothesis import assume
from property_testing import (
    BOTH,
    GOLDEN,
    assert_near,
    assert_same,
    by_row,
    holds,
    huge,
    leaky,
    mixed,
    scaled,
    shifted,
)

SCORE = ("default", "score_first", "gamma_spread", "no_bias", "bias_large", "skew_zipf", "skew_hot", "one_rank")
UNIT = ("default", "gamma_spread", "no_bias", "hash")
ROUTES = ("indices", "weights")
BAND = 1e-5
"""Scores closer than this are a tie for a device (3.5)."""


def active(trial):
    return min(max(trial["num_tokens"], 0), len(trial["x_mixed"]))


def biased(trial, **changes):
    return trial.stages(**changes)["biased"][: active(trial)].double()


def without_ties(scores, k):
    """Rows in which the k + 1 best differ by more than the band."""
    best = scores.topk(min(k + 1, scores.shape[1]), dim=1).values
    return ((best[:, :-1] - best[:, 1:]) > BAND).all(dim=1)


@holds("gate", on=BOTH, spoil=scaled)
def test_weights_are_positive_and_sum_to_the_factor(trial):
    weights = trial.run()["weights"][: active(trial)].double()
    factor = trial.op.config.routed_scaling_factor
    assert bool((weights > 0).all())
    assert bool(((weights.sum(dim=1) - factor).abs() <= 5e-7 * factor).all())


def first_expert_twice(outputs, inputs):
    outputs["indices"][:, -1] = outputs["indices"][:, 0]
    return outputs | {"indices": outputs["indices"] + (outputs["indices"].shape[1] == 1) * 1000}


@holds("gate", on=BOTH, spoil=first_expert_twice, names=(*SCORE, "ties_all", "ties_some"))
def test_the_score_path_takes_the_best_once_each_in_order(trial):
    n, scores = len(trial["gate_w"]), biased(trial)
    ids = trial.run()["indices"][: active(trial)].long()
    assert bool(((ids >= 0) & (ids < n)).all())
    ordered = ids.sort(dim=1).values
    assert bool((ordered[:, 1:] > ordered[:, :-1]).all())
    chosen = scores.gather(1, ids)
    assert bool((chosen[:, 1:] <= chosen[:, :-1] + BAND).all())
    rest = scores.scatter(1, ids, -torch.inf).amax(dim=1)
    assert bool((rest <= chosen[:, -1] + BAND).all())


@holds("gate", on=BOTH, spoil=shifted, names=("ties_all",))
def test_of_equal_scores_the_lower_ids_win(trial):
    ids = trial.run()["indices"][: active(trial)]
    assert_same(ids, torch.arange(ids.shape[1], dtype=torch.int32).expand_as(ids))


@holds("gate", on=BOTH, spoil=leaky, names=SCORE)
def test_a_constant_on_all_biases_changes_nothing(trial):
    keep = without_ties(biased(trial), trial["tid2eid"].shape[1])
    changed, plain = trial.run(gate_bias=trial["gate_bias"] + 0.5), trial.run()
    for name in ROUTES:
        assert_same(changed[name][: len(keep)][keep], plain[name][: len(keep)][keep])


@holds("gate", on=BOTH, spoil=leaky, tags=("hash",))
def test_the_bias_never_weighs(trial):
    """A hash layer has its ids from the table: no bias changes anything."""
    changed, plain = trial.run(gate_bias=torch.flip(trial["gate_bias"], dims=(0,)) * 5 + 1), trial.run()
    for name in ROUTES:
        assert_same(changed[name], plain[name])


@holds("gate", on=BOTH, spoil=shifted, names=SCORE)
def test_permuting_experts_permutes_ids_and_leaves_weights(trial):
    order = trial.permutation(len(trial["gate_w"]))
    changed = trial.run(gate_w=trial["gate_w"][order].contiguous(), gate_bias=trial["gate_bias"][order])
    plain = trial.run()
    keep = without_ties(biased(trial), trial["tid2eid"].shape[1])
    found = changed["indices"][: len(keep)][keep].long()
    assert_same(order[found].int(), plain["indices"][: len(keep)][keep])
    assert_near(changed["weights"][: len(keep)][keep], plain["weights"][: len(keep)][keep], rtol=1e-6)


@holds("gate", on=BOTH, spoil=by_row, tags=("hash",))
def test_the_hash_path_is_a_look_up(trial):
    rows = slice(0, active(trial))
    found = trial.run()
    assert_same(found["indices"][rows], trial["tid2eid"][trial["input_ids"]][rows])
    one = torch.full_like(trial["input_ids"], int(trial["input_ids"][0]))
    assert len(trial.run(input_ids=one)["indices"][rows].unique(dim=0)) <= 1
    other = trial.run(x_mixed=torch.flip(trial["x_mixed"], dims=(1,)))
    assert_same(other["indices"], found["indices"])


@holds("gate", on=GOLDEN, spoil=leaky, names=("hash",))
def test_weights_of_the_hash_path_depend_on_x(trial):
    assume(trial["tid2eid"].shape[1] > 1 and active(trial) > 0)
    changed = trial.run(x_mixed=torch.flip(trial["x_mixed"], dims=(1,)))["weights"]
    assert not torch.equal(changed, trial.run()["weights"])
    assert_near(changed.sum(dim=1), trial.run()["weights"].sum(dim=1), rtol=1e-6)


@holds("gate", on=BOTH, spoil=by_row, without=("partial",))
def test_permuting_tokens_permutes_outputs(trial):
    assume(active(trial) == len(trial["x_mixed"]))
    order = trial.permutation(len(trial["x_mixed"]))
    permuted = trial.run(x_mixed=trial["x_mixed"][order].contiguous(), input_ids=trial["input_ids"][order])
    plain = trial.run()
    for name in plain:
        assert_same(permuted[name], plain[name][order])


@holds("gate", on=BOTH, spoil=mixed, tags=("partial",))
def test_active_tokens_do_not_depend_on_inactive_ones(trial):
    rows = active(trial)
    x = trial["x_mixed"].clone()
    x[rows:] = 3 - 2 * x[rows:]
    changed, plain = trial.run(x_mixed=x), trial.run()
    for name in plain:
        assert_same(changed[name][:rows], plain[name][:rows])
    for name in ("x_norm_scale", *ROUTES):
        assert bool((plain[name][rows:] == 0).all()), f"{name} of inactive tokens is not 0"


def counts_tokens(outputs, inputs):
    return {name: (x + inputs["num_tokens"]).to(x.dtype) for name, x in outputs.items()}


@holds("gate", on=BOTH, spoil=counts_tokens, names=("default", "hash", "no_bias"))
def test_num_tokens_only_cuts_the_prefix(trial):
    tokens = len(trial["x_mixed"])
    fewer = (tokens + 1) // 2
    cut, plain = trial.run(num_tokens=fewer), trial.run(num_tokens=tokens)
    for name in plain:
        assert_same(cut[name][:fewer], plain[name][:fewer])


@holds("gate", on=BOTH, spoil=shifted, names=UNIT, keep=("rms_norm_eps",))
def test_a_power_of_two_in_x_flips_last_bits_at_most(trial):
    factor = trial.power_of_two()
    changed, plain = trial.run(x_mixed=trial["x_mixed"] * factor), trial.run()
    assert_near(changed["x_norm"], plain["x_norm"], ulp=1, rtol=3e-4)
    assert int((changed["x_norm_i8"].int() - plain["x_norm_i8"].int()).abs().max()) <= 1
    assert bool((plain["x_norm"].float().square().mean(dim=1) < 4 * trial["norm_w"].float().abs().max() ** 2).all())
    assert_near(plain["x_norm"], _unrounded_norm(trial), rtol=2.0**-8)


def _unrounded_norm(trial):
    x = trial["x_mixed"].double()
    inverse = 1 / (x.square().mean(dim=1, keepdim=True) + trial.op.config.rms_norm_eps).sqrt()
    return x * inverse * trial["norm_w"].double()


@holds("gate", on=BOTH, spoil=shifted, names=UNIT)
def test_a_power_of_two_in_the_weight_moves_to_norm_and_scale(trial):
    factor = trial.power_of_two()
    changed, plain = trial.run(norm_w=trial["norm_w"] * factor), trial.run()
    assert_same(changed["x_norm"], plain["x_norm"] * factor)
    assert_same(changed["x_norm_scale"], plain["x_norm_scale"] * factor)
    assert_same(changed["x_norm_i8"], plain["x_norm_i8"])


@holds("gate", on=BOTH, spoil=huge, names=UNIT)
def test_codes_are_within_half_a_step_and_reach_127(trial):
    """The product v * q and the two quotients round: 127 * 3 * 2^-24 of a step on top of the half."""
    rows = active(trial)
    found = {name: value[:rows] for name, value in trial.run().items()}
    error = found["x_norm"].double() - found["x_norm_i8"].double() * found["x_norm_scale"].double()
    assert bool((error.abs() <= found["x_norm_scale"].double() * (0.5 + 127 * 3 * 2.0**-24)).all())
    assert bool((found["x_norm_i8"].int().abs().amax(dim=1) == 127).all())


@holds("gate", on=BOTH, spoil=shifted, names=UNIT)
def test_negating_the_weight_negates_norm_and_codes(trial):
    changed, plain = trial.run(norm_w=-trial["norm_w"]), trial.run()
    assert_same(changed["x_norm"], -plain["x_norm"])
    assert_same(changed["x_norm_i8"], -plain["x_norm_i8"])
    assert_same(changed["x_norm_scale"], plain["x_norm_scale"])
