"""hc_pre: properties of contracts/hc_gate_experts.md, 1.8."""

import torch
from property_testing import (
    BOTH,
    GOLDEN,
    assert_near,
    assert_same,
    by_column,
    by_row,
    holds,
    huge,
    leaky,
    mixed,
    shifted,
)

HC = 4
NEGLIGIBLE_EPS = ("rms_norm_eps",)
CONVERGED = ("hc_eps", "hc_sinkhorn_iters")
REAL = ("default", "csa_layer8", "hca_layer9", "swa_layer0", "ffn_layer0")


def largest(trial):
    """What x_mixed may be off by where terms cancel: 4e-6 of the largest element of the token (1.5)."""
    return 4e-6 * trial["x"].double().abs().amax(dim=(1, 2)).unsqueeze(1)


def assert_gates(actual, expected):
    """The bounds of 1.5, for FP32 sums in another order."""
    assert_near(actual["post"], expected["post"], rtol=2e-5)
    assert_near(actual["comb"], expected["comb"], rtol=2e-5, atol=1e-6)


def permuted_rows(tensor, pre=None, ins=None, outs=None):
    """The rows of hc_fn or hc_base with streams of pre, in-rows or out-columns of comb in another order."""
    keep = torch.arange(HC)
    comb = 2 * HC + (keep if ins is None else ins)[:, None] * HC + (keep if outs is None else outs)
    return tensor[torch.cat([keep if pre is None else pre, HC + keep, comb.flatten()])].contiguous()


@holds("hc_pre", on=BOTH, spoil=by_row)
def test_permuting_tokens_permutes_outputs(trial):
    order = trial.permutation(len(trial["x"]))
    permuted, plain = trial.run(x=trial["x"][order].contiguous()), trial.run()
    for name in plain:
        assert_same(permuted[name], plain[name][order])


@holds("hc_pre", on=BOTH, spoil=mixed)
def test_a_token_does_not_depend_on_the_others(trial):
    x = trial["x"].clone()
    x[1:] = torch.flip(x[1:], dims=(2,)) * 3 + 1
    changed, plain = trial.run(x=x), trial.run()
    for name in plain:
        assert_same(changed[name][0], plain[name][0])


@holds("hc_pre", on=GOLDEN, spoil=mixed)
def test_nan_in_one_token_does_not_reach_another(trial):
    x = torch.cat([trial["x"], torch.full_like(trial["x"][:1], float("nan"))])
    poisoned, plain = trial.run(x=x), trial.run()
    for name in plain:
        assert_same(poisoned[name][:-1], plain[name])
        assert bool(poisoned[name][-1].isnan().all())


@holds("hc_pre", on=GOLDEN, spoil=mixed)
def test_outputs_do_not_depend_on_the_number_of_tokens(trial):
    alone, plain = trial.run(x=trial["x"][-1:].contiguous()), trial.run(x=torch.cat([trial["x"]] * 2))
    for name in plain:
        assert_same(alone[name][0], plain[name][-1])


@holds("hc_pre", on=BOTH, spoil=leaky, names=("csa_layer8", "hca_layer9", "ffn_layer0"), keep=NEGLIGIBLE_EPS)
def test_a_power_of_two_in_x_moves_to_x_mixed_and_leaves_the_gates(trial):
    """Up to what RMS_EPS does: 1e-6 of a mean square of 0.3 or 1 moves a logit of 10 by 2e-5 at most."""
    factor = max(2.0, trial.power_of_two())  # a smaller x would let RMS_EPS count for more
    changed, plain = trial.run(x=trial["x"] * factor), trial.run()
    assert_near(changed["x_mixed"] / factor, plain["x_mixed"], ulp=1, atol=5 * largest(trial))
    assert_near(changed["post"], plain["post"], rtol=5e-5)
    assert_near(changed["comb"], plain["comb"], rtol=5e-5, atol=1e-6)


@holds("hc_pre", on=BOTH, spoil=huge, names=REAL, keep=CONVERGED)
def test_columns_of_comb_sum_to_one(trial):
    """Rows do not: 20 iterations leave them up to 8 % off."""
    sums = trial.run()["comb"].double().reshape(-1, HC, HC).sum(dim=1)
    assert bool(((sums - 1).abs() <= 2e-6).all())


@holds("hc_pre", on=BOTH, spoil=huge, without=("extreme",), keep=CONVERGED)
def test_gates_stay_in_their_ranges(trial):
    found = trial.run()
    assert bool(((found["comb"] > 0) & (found["comb"] < 1.01)).all())
    assert bool(((found["post"] >= 0) & (found["post"] <= 2)).all())
    pre = trial.stages()["pre"]
    assert bool(((pre >= 1e-6) & (pre <= 1 + 1.1e-6)).all())


@holds("hc_pre", on=BOTH, spoil=leaky, names=REAL)
def test_a_constant_on_one_row_of_comb_logits_changes_nothing(trial):
    base = trial["hc_base"].clone()
    first = 2 * HC + HC * int(trial.permutation(HC)[0])
    base[first : first + HC] += 0.5
    assert_near(trial.run(hc_base=base)["comb"], trial.run()["comb"], rtol=2e-5, atol=1e-6)


@holds("hc_pre", on=BOTH, spoil=leaky, names=REAL)
def test_permuting_streams_with_their_parameters_leaves_x_mixed(trial):
    order = trial.permutation(HC)
    width = trial["x"].shape[2]
    blocks = trial["hc_fn"].reshape(-1, HC, width)[:, order].reshape(trial["hc_fn"].shape)
    changed = trial.run(
        x=trial["x"][:, order].contiguous(),
        hc_fn=permuted_rows(blocks, pre=order),
        hc_base=permuted_rows(trial["hc_base"], pre=order),
    )
    plain = trial.run()
    assert_near(changed["x_mixed"], plain["x_mixed"], ulp=1, atol=largest(trial))
    assert_gates(changed, plain)


@holds("hc_pre", on=BOTH, spoil=by_column, names=REAL)
def test_permuting_rows_and_columns_of_comb_permutes_comb(trial):
    ins, outs = trial.permutation(HC), trial.permutation(HC)
    changed = trial.run(
        hc_fn=permuted_rows(trial["hc_fn"], ins=ins, outs=outs),
        hc_base=permuted_rows(trial["hc_base"], ins=ins, outs=outs),
    )
    plain = trial.run()
    expected = plain["comb"].reshape(-1, HC, HC)[:, ins][:, :, outs].reshape(plain["comb"].shape)
    assert_near(changed["comb"], expected, rtol=2e-5, atol=1e-6)
    assert_same(changed["x_mixed"], plain["x_mixed"])


@holds("hc_pre", on=BOTH, spoil=huge, names=("default", "csa_layer8"))
def test_equal_streams_give_the_sum_of_the_gates(trial):
    x = trial["x"][:, :1].expand_as(trial["x"]).contiguous()
    total = trial.stages(x=x)["pre"].double().sum(dim=1, keepdim=True)
    expected = (x[:, 0].double() * total).to(torch.bfloat16)
    assert_near(trial.run(x=x)["x_mixed"], expected, ulp=1)


@holds("hc_pre", on=BOTH, spoil=shifted, names=("default", "csa_layer8"))
def test_without_projection_gates_come_from_the_base_and_x_mixed_is_linear(trial):
    none = torch.zeros_like(trial["hc_fn"])
    factor = trial.power_of_two()
    plain, scaled = trial.run(hc_fn=none), trial.run(hc_fn=none, x=trial["x"] * factor)
    assert_same(scaled["x_mixed"], plain["x_mixed"] * factor)
    assert_same(scaled["post"], plain["post"])
    assert_same(scaled["comb"], plain["comb"])
    closed_form = 2 * torch.sigmoid(trial["hc_base"][HC : 2 * HC].double()).expand_as(plain["post"])
    assert_near(plain["post"], closed_form, rtol=2e-6)
