"""hc_head: properties of contracts/dense.md, 8.8."""

import torch
from hypothesis import strategies as st
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
    scaled,
    shifted,
)

X, FN, SCALE, BASE = "x_hc", "hc_head_fn", "hc_head_scale", "hc_head_base"
MAGNITUDES = ("default", "even_gates", "unit_scale", "base_only", "equal_streams")
"""Cases whose tokens are far above RMS_EPS and far from overflow."""


def cancelled(trial):
    """What the FP32 sum of the gated streams leaves open where they cancel: a few units of their magnitudes."""
    return 2.0**-20 * trial[X].double().abs().sum(dim=1)


def gates(trial):
    """The golden's gates, [T, 4, 1]."""
    return trial.stages()["pre"].double().unsqueeze(2)


@holds("hc_head", on=GOLDEN, spoil=huge)
def test_gates_lie_between_epsilon_and_one_more(trial):
    eps = trial.op.config.hc_eps
    pre = trial.judged_stages()["pre"]
    assert bool(((pre >= torch.tensor(eps)) & (pre <= 1 + torch.tensor(eps))).all())


@holds("hc_head", on=BOTH, spoil=scaled)
def test_an_open_gate_is_one_plus_epsilon_and_a_closed_one_epsilon(trial):
    """Both ends of the range of a gate, for a stream among zeros."""
    stream = trial.data.draw(st.integers(0, 3), label="stream")
    logit, gate = trial.data.draw(st.sampled_from(((30.0, 1.0), (-200.0, 0.0))), label="logit and gate")
    x, base = torch.zeros_like(trial[X]), trial[BASE].clone()
    x[:, stream], base[stream] = trial[X][:, stream], logit
    y = trial.run(x_hc=x, hc_head_fn=torch.zeros_like(trial[FN]), hc_head_base=base)["y"]
    assert_near(y, x[:, stream].double() * (gate + trial.op.config.hc_eps), rtol=2.0**-8)


@holds("hc_head", on=BOTH, spoil=leaky)
def test_without_projection_the_scale_counts_for_nothing(trial):
    fn = torch.zeros_like(trial[FN])
    plain = trial.run(hc_head_fn=fn)["y"]
    assert_same(trial.run(hc_head_fn=fn, hc_head_scale=trial[SCALE] * 3 + 1)["y"], plain)


@holds("hc_head", on=BOTH, spoil=shifted)
def test_without_projection_the_gates_are_those_of_the_base(trial):
    y = trial.run(hc_head_fn=torch.zeros_like(trial[FN]))["y"]
    gate = trial[BASE].double().sigmoid() + trial.op.config.hc_eps
    expected = (trial[X].double() * gate.reshape(1, -1, 1)).sum(dim=1)
    assert_near(y, expected, rtol=2.0**-8, atol=cancelled(trial))


@holds("hc_head", on=BOTH, spoil=by_row)
def test_permuting_tokens_permutes_y(trial):
    order = trial.permutation(len(trial[X]))
    assert_same(trial.run(x_hc=trial[X][order].contiguous())["y"], trial.run()["y"][order])


@holds("hc_head", on=BOTH, spoil=mixed)
def test_a_token_does_not_depend_on_the_others(trial):
    x = trial[X].clone()
    x[1:] = torch.flip(x[1:], dims=(1,)) * 3 + 1
    assert_same(trial.run(x_hc=x)["y"][0], trial.run()["y"][0])


def first_stream_counts_twice(outputs, inputs):
    return {"y": (outputs["y"] + inputs[X][:, 0]).to(torch.bfloat16)}


@holds("hc_head", on=BOTH, spoil=first_stream_counts_twice)
def test_permuting_streams_with_their_gates_changes_nothing_but_the_order_of_a_sum(trial):
    order = trial.permutation(4)
    fn = trial[FN].reshape(4, 4, -1)[order][:, order].reshape(trial[FN].shape).contiguous()
    permuted = trial.run(x_hc=trial[X][:, order].contiguous(), hc_head_fn=fn, hc_head_base=trial[BASE][order])
    moved = gate_noise(trial)
    assert_near(permuted["y"], trial.run()["y"], ulp=1, atol=cancelled(trial) + moved)


@holds("hc_head", on=BOTH, spoil=by_column)
def test_permuting_channels_of_the_streams_permutes_those_of_y(trial):
    width = trial[X].shape[2]
    order = trial.permutation(width)
    fn = trial[FN].reshape(4, 4, width)[..., order].reshape(trial[FN].shape).contiguous()
    permuted = trial.run(x_hc=trial[X][..., order].contiguous(), hc_head_fn=fn)["y"]
    assert_near(permuted, trial.run()["y"][:, order], ulp=1, atol=(cancelled(trial) + gate_noise(trial))[:, order])


def gate_noise(trial):
    """What another order of the projection's FP32 sum moves y by: the gate's slope is at most 1/4."""
    x = trial[X].double()
    flat = x.flatten(1)
    inv = (flat.square().mean(dim=1, keepdim=True) + trial.op.config.rms_norm_eps).rsqrt()
    magnitude = (flat.abs() @ trial[FN].double().abs().t()) * inv * trial[SCALE].double().abs()
    moved = 2.0**-24 * (flat.shape[1] / 8 + 32) * magnitude
    return ((moved / 4).clamp(max=1).unsqueeze(2) * x.abs()).sum(dim=1)


@holds("hc_head", on=BOTH, spoil=by_column, names=("equal_streams",))
def test_equal_streams_are_scaled_by_the_sum_of_the_gates(trial):
    expected = trial[X][:, 0].double() * gates(trial).sum(dim=1)
    assert_near(trial.run()["y"], expected, rtol=2.0**-8 + 1e-5)


@holds("hc_head", on=BOTH, spoil=leaky, names=MAGNITUDES, keep=("rms_norm_eps",))
def test_a_power_of_two_in_x_is_one_in_y_but_for_eps(trial):
    """The logits move with the mean square's share of RMS_EPS, and a gate by at most a quarter of that."""
    factor = abs(trial.power_of_two())
    factor = max(factor, 1 / factor)
    stages = trial.stages()
    share = 0.5 * trial.op.config.rms_norm_eps / (stages["sum_squares"].double() / trial[X][0].numel())
    moved = (stages["mix"].double() * trial[SCALE].double()).abs() * share / 4
    bound = (moved.unsqueeze(2) * trial[X].double().abs()).sum(dim=1) + cancelled(trial) + gate_noise(trial)
    grown = trial.run(x_hc=trial[X] * factor)["y"]
    assert_near(grown / factor, trial.run()["y"], ulp=1, atol=bound)


def silenced(outputs, inputs):
    return {name: torch.zeros_like(output) for name, output in outputs.items()}


@holds("hc_head", on=BOTH, spoil=silenced, names=("even_gates", "unit_scale"))
def test_y_is_not_odd_in_x(trial):
    """The gates see the sign: a projection of -x closes what one of x opens."""
    assert not torch.equal(trial.run(x_hc=-trial[X])["y"], -trial.run()["y"])
