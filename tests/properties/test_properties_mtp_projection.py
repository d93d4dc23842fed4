"""mtp_projection: properties of contracts/dense.md, 9.8."""

import torch
from hypothesis import assume
from property_testing import (
    BOTH,
    GOLDEN,
    assert_near,
    assert_same,
    by_column,
    by_row,
    holds,
    leaky,
    mixed,
    scaled,
    shifted,
)

OUT = "hidden_states_out"
HIDDEN, PREVIOUS = "hidden_states", "prev_hidden_states"
BRANCH = {
    "e": (HIDDEN, "enorm_w", "e_proj_w", "e_proj_w_scale", "e_proj_smooth"),
    "h": (PREVIOUS, "hnorm_w", "h_proj_w", "h_proj_w_scale", "h_proj_smooth"),
}
"""Of each branch: the tokens, the norm weight, the projection, its scale, the smoothing."""

ORDINARY = ("default", "one_sided", "large_accumulators")
"""Cases without rows of zeros, around RMS_EPS or below the quantiser's floor."""

NEAR_A_TIE = 1e-3
"""A scaled value so close to .5 may become either code when 1/rms moves in its last bits."""

FLOOR = 1e-4
"""Of a row's largest magnitude, in the quantiser."""


def out(trial, **changes):
    return trial.run(**changes)[OUT]


def steady(trial):
    """Requests [B] of whose tokens no code is near a tie in either branch."""
    stages = trial.stages()
    scaled_values = [stages[f"{b}_norm"].double() / stages[f"{b}_scale"].double() for b in "eh"]
    apart = torch.cat([(v - v.floor() - 0.5).abs() for v in scaled_values], dim=2)
    return (apart > NEAR_A_TIE).all(dim=2).all(dim=1)


def above_the_floor(trial, branch, *factors):
    """Requests of whose tokens the quantiser's floor matters with none of the factors on the normed values."""
    norm = trial.stages()[f"{branch}_norm"].double().abs().amax(dim=2)
    return (norm * min(1.0, *factors) > FLOOR).all(dim=1)


def cancelled(trial):
    """What the sum of the branches leaves open where it cancels: 4e-6 of the row's RMS, of each branch."""
    stages = trial.stages()
    rms = sum(stages[f"{b}_branch"].double().square().mean(dim=2, keepdim=True).sqrt() for b in "eh")
    return 4e-6 * rms


def first_channel_counts_more(outputs, inputs):
    """The hidden states, and of these one channel, have an effect beside their branch."""
    return {name: output + inputs[HIDDEN][..., :1] for name, output in outputs.items()}


@holds("mtp_projection", on=BOTH, spoil=first_channel_counts_more)
def test_exchanging_the_branches_changes_nothing(trial):
    exchanged = dict(zip(BRANCH["e"] + BRANCH["h"], BRANCH["h"] + BRANCH["e"], strict=True))
    assert_same(out(trial, **{name: trial[other] for name, other in exchanged.items()}), out(trial))


@holds("mtp_projection", on=BOTH, spoil=shifted)
def test_negating_both_inputs_negates_the_output(trial):
    negated = out(trial, hidden_states=-trial[HIDDEN], prev_hidden_states=-trial[PREVIOUS])
    assert_same(negated, -out(trial), zero_sign=False)


@holds("mtp_projection", on=BOTH, spoil=leaky)
def test_a_power_of_two_may_move_from_the_norm_weight_to_the_smoothing(trial):
    factor = trial.power_of_two()
    moved = out(trial, enorm_w=trial["enorm_w"] * factor, e_proj_smooth=trial["e_proj_smooth"] / factor)
    assert_same(moved, out(trial))


@holds("mtp_projection", on=BOTH, spoil=leaky)
def test_a_branch_of_zeros_is_one_without_scale(trial):
    absent = out(trial, prev_hidden_states=torch.zeros_like(trial[PREVIOUS]))
    unscaled = out(trial, h_proj_w_scale=torch.zeros_like(trial["h_proj_w_scale"]))
    assert_same(absent, unscaled, zero_sign=False)


@holds("mtp_projection", on=BOTH, spoil=shifted)
def test_two_branches_of_zeros_give_zero(trial):
    zeros = {name: torch.zeros_like(trial[name]) for name in (HIDDEN, PREVIOUS)}
    assert bool((out(trial, **zeros) == 0).all())


@holds("mtp_projection", on=BOTH, spoil=leaky, names=ORDINARY, keep=("rms_norm_eps",))
def test_a_power_of_two_in_the_tokens_changes_nothing_but_for_eps(trial):
    kept = steady(trial)
    assume(bool(kept.any()))
    stages = trial.stages()
    factor = trial.power_of_two()
    mean_square = stages["e_sum_squares"].double() / trial[HIDDEN].shape[2]
    share = trial.op.config.rms_norm_eps / mean_square / min(1.0, factor) ** 2
    bound = share * stages["e_branch"].double().abs() + cancelled(trial)
    changed = out(trial, hidden_states=trial[HIDDEN] * factor)
    assert_near(changed[kept], out(trial)[kept], ulp=1, atol=bound[kept])


@holds("mtp_projection", on=BOTH, spoil=shifted)
def test_a_power_of_two_in_the_smoothing_is_one_in_its_branch(trial):
    factor = trial.power_of_two()
    kept = above_the_floor(trial, "e", factor)
    assume(bool(kept.any()))
    alone = {PREVIOUS: torch.zeros_like(trial[PREVIOUS])}
    changed = out(trial, **alone, e_proj_smooth=trial["e_proj_smooth"] * factor)
    assert_same(changed[kept], (out(trial, **alone) * factor)[kept])


@holds("mtp_projection", on=BOTH, spoil=shifted)
def test_a_power_of_two_in_both_weight_scales_is_one_in_the_output(trial):
    factor = trial.power_of_two()
    scales = {name: trial[name] * factor for name in ("e_proj_w_scale", "h_proj_w_scale")}
    assert_same(out(trial, **scales), out(trial) * factor)


@holds("mtp_projection", on=BOTH, spoil=by_row)
def test_permuting_requests_permutes_the_output(trial):
    assume(len(trial[HIDDEN]) > 1)
    order = trial.permutation(len(trial[HIDDEN]))
    permuted = {name: trial[name][order].contiguous() for name in (HIDDEN, PREVIOUS)}
    assert_same(out(trial, **permuted), out(trial)[order])


@holds("mtp_projection", on=BOTH, spoil=mixed)
def test_a_request_does_not_depend_on_the_others(trial):
    assume(len(trial[HIDDEN]) > 1)
    changed = {name: trial[name].clone() for name in (HIDDEN, PREVIOUS)}
    for value in changed.values():
        value[1:] = torch.flip(value[1:], dims=(2,)) * 3 + 1
    assert_same(out(trial, **changed)[0], out(trial)[0])


@holds("mtp_projection", on=BOTH, spoil=by_column)
def test_permuting_output_channels_permutes_the_output(trial):
    order = trial.permutation(trial[HIDDEN].shape[2])
    names = ("e_proj_w", "e_proj_w_scale", "h_proj_w", "h_proj_w_scale")
    assert_same(out(trial, **{name: trial[name][order].contiguous() for name in names}), out(trial)[..., order])


def permuted_inputs(trial, order):
    rows = {name: trial[name][..., order].contiguous() for name in (HIDDEN, PREVIOUS)}
    columns = {name: trial[name][..., order].contiguous() for tensors in BRANCH.values() for name in tensors[:3]}
    smoothing = {name: trial[name][order] for name in ("e_proj_smooth", "h_proj_smooth")}
    return {**columns, **rows, **smoothing}


@holds("mtp_projection", on=BOTH, spoil=first_channel_counts_more, names=ORDINARY)
def test_permuting_input_channels_changes_nothing_but_the_order_of_a_sum(trial):
    kept = steady(trial)
    assume(bool(kept.any()))
    changes = permuted_inputs(trial, trial.permutation(trial[HIDDEN].shape[2]))
    assert_near(out(trial, **changes)[kept], out(trial)[kept], ulp=1, atol=cancelled(trial)[kept])


def codes_of_the_first_channel_are_wrong(outputs, inputs):
    taps = dict(outputs)
    taps["e_i8"] = taps["e_i8"].clone()
    taps["e_i8"][..., 0] += 1
    return taps


@holds("mtp_projection", on=GOLDEN, spoil=codes_of_the_first_channel_are_wrong, names=ORDINARY)
def test_permuting_input_channels_permutes_codes_and_keeps_accumulators(trial):
    kept = steady(trial)
    assume(bool(kept.any()))
    order = trial.permutation(trial[HIDDEN].shape[2])
    plain, permuted = trial.judged_stages(), trial.stages(**permuted_inputs(trial, order))
    for branch in "eh":
        assert_same(permuted[f"{branch}_i8"][kept], plain[f"{branch}_i8"][..., order][kept])
        assert_same(permuted[f"{branch}_acc"][kept], plain[f"{branch}_acc"][kept])


@holds("mtp_projection", on=BOTH, spoil=scaled)
def test_an_identity_projection_returns_the_normed_tokens(trial):
    """Within half a step of their codes, and a BF16 rounding."""
    width = trial[HIDDEN].shape[2]
    identity = {"e_proj_w": torch.eye(width, dtype=torch.int8), "e_proj_w_scale": torch.ones(width)}
    stages = trial.stages()
    step = stages["e_scale"].double() * 0.501
    found = out(trial, **identity, prev_hidden_states=torch.zeros_like(trial[PREVIOUS]))
    assert_near(found, stages["e_norm"], rtol=2.0**-8, atol=step * (1 + 2.0**-8))
