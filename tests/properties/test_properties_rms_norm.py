"""rms_norm: properties of contracts/dense.md, 4.8."""

import torch
from property_testing import (
    BOTH,
    assert_near,
    assert_same,
    by_column,
    by_row,
    holds,
    huge,
    leaky,
    mixed,
    scaled,
    shifted,
)

UNIT = ("default", "unit_weight", "wide_weight")
NEGLIGIBLE_EPS = ("rms_norm_eps",)


@holds("rms_norm", on=BOTH, spoil=shifted)
def test_negating_x_negates_y(trial):
    assert_same(trial.run(x=-trial["x"])["x_normed"], -trial.run()["x_normed"])


@holds("rms_norm", on=BOTH, spoil=shifted)
def test_a_power_of_two_in_the_weight_is_one_in_y(trial):
    factor = trial.power_of_two()
    assert_same(trial.run(norm_w=trial["norm_w"] * factor)["x_normed"], trial.run()["x_normed"] * factor)


@holds("rms_norm", on=BOTH, spoil=by_row)
def test_permuting_tokens_permutes_y(trial):
    order = trial.permutation(len(trial["x"]))
    assert_same(trial.run(x=trial["x"][order])["x_normed"], trial.run()["x_normed"][order])


@holds("rms_norm", on=BOTH, spoil=mixed)
def test_a_row_does_not_depend_on_the_others(trial):
    x = trial["x"].clone()
    x[1:] = torch.flip(x[1:], dims=(1,)) * 3 + 1
    assert_same(trial.run(x=x)["x_normed"][0], trial.run()["x_normed"][0])


@holds("rms_norm", on=BOTH, spoil=leaky, names=UNIT, keep=NEGLIGIBLE_EPS)
def test_a_power_of_two_in_x_changes_nothing_where_eps_is_negligible(trial):
    assert_near(trial.run(x=trial["x"] * trial.power_of_two())["x_normed"], trial.run()["x_normed"], ulp=1, rtol=3e-4)


@holds("rms_norm", on=BOTH, spoil=by_column, names=UNIT)
def test_permuting_channels_of_x_and_w_permutes_those_of_y(trial):
    order = trial.permutation(trial["x"].shape[1])
    permuted = trial.run(x=trial["x"][:, order].contiguous(), norm_w=trial["norm_w"][order])["x_normed"]
    assert_near(permuted, trial.run()["x_normed"][:, order], ulp=1)


@holds("rms_norm", on=BOTH, spoil=scaled, names=("unit_weight",), keep=NEGLIGIBLE_EPS)
def test_unit_weight_gives_unit_mean_square(trial):
    """Each element is within half a BF16 unit, 2^-9 of itself. Over the 4096 of FLASH the errors average to the 4e-4
    of the contract; a row of 256 with few different significands comes close to the bound."""
    y = trial.run()["x_normed"].double()
    assert bool(((y.square().mean(dim=1) - 1).abs() <= 2.0**-8 + 2.0**-18 + 1e-5).all())


@holds("rms_norm", on=BOTH, spoil=shifted, names=("unit_weight",), keep=NEGLIGIBLE_EPS)
def test_twice_is_once_with_unit_weight(trial):
    once = trial.run()["x_normed"]
    assert_near(trial.run(x=once)["x_normed"], once, ulp=1)


@holds("rms_norm", on=BOTH, spoil=huge)
def test_no_element_exceeds_the_root_of_the_width(trial):
    y = trial.run()["x_normed"]
    limit = y.shape[1] ** 0.5 * trial["norm_w"].double().abs() * (1 + 2.0**-8)
    assert bool((y.double().abs() <= limit).all())
