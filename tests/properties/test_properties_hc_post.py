"""hc_post: properties of contracts/hc_gate_experts.md, 2.8."""

import torch
from property_testing import BOTH, assert_near, assert_same, by_column, by_row, holds, mixed, scaled, shifted


def rounding(trial):
    """What FP32 sums in another order, or a fused multiply and add, may move: 2.5."""
    streams = trial["comb"].shape[1] // trial["post"].shape[1]
    comb = trial["comb"].double().reshape(-1, streams, streams)
    old = torch.einsum("tio,tid->tod", comb.abs(), trial["residual"].double().abs())
    return 1e-6 * (old + trial["post"].double().abs().unsqueeze(2) * trial["x"].double().abs().unsqueeze(1))


def square(comb):
    side = int(comb.shape[1] ** 0.5)
    return comb.reshape(-1, side, side)


@holds("hc_post", on=BOTH, spoil=shifted)
def test_a_power_of_two_in_both_inputs_is_one_in_y(trial):
    factor = trial.power_of_two()
    changed = trial.run(x=trial["x"] * factor, residual=trial["residual"] * factor)
    assert_same(changed["y"], trial.run()["y"] * factor)


@holds("hc_post", on=BOTH, spoil=shifted)
def test_y_is_the_sum_of_its_parts_up_to_rounding(trial):
    whole = trial.run()["y"].double()
    from_x = trial.run(residual=torch.zeros_like(trial["residual"]))["y"].double()
    from_residual = trial.run(x=torch.zeros_like(trial["x"]))["y"].double()
    bound = 2.0**-8 * (whole.abs() + from_x.abs() + from_residual.abs()) + rounding(trial)
    assert bool(((whole - from_x - from_residual).abs() <= bound).all())


@holds("hc_post", on=BOTH, spoil=by_row)
def test_permuting_tokens_permutes_y(trial):
    order = trial.permutation(len(trial["x"]))
    permuted = trial.run(**{name: value[order].contiguous() for name, value in trial.inputs.items()})
    assert_same(permuted["y"], trial.run()["y"][order])


@holds("hc_post", on=BOTH, spoil=mixed)
def test_a_token_does_not_depend_on_the_others(trial):
    changed = {name: value.clone() for name, value in trial.inputs.items()}
    for value in changed.values():
        value[1:] = value[1:] * 3 + 1
    assert_same(trial.run(**changed)["y"][0], trial.run()["y"][0])


def swapped_streams(outputs, inputs):
    """New streams depend on where they stand."""
    return {"y": outputs["y"] * torch.arange(1, 5).reshape(1, 4, 1)}


@holds("hc_post", on=BOTH, spoil=swapped_streams)
def test_permuting_new_streams_permutes_those_of_y(trial):
    order = trial.permutation(trial["post"].shape[1])
    comb = square(trial["comb"])[:, :, order].reshape(trial["comb"].shape).contiguous()
    permuted = trial.run(post=trial["post"][:, order].contiguous(), comb=comb)
    assert_same(permuted["y"], trial.run()["y"][:, order])


def first_stream_counts_twice(outputs, inputs):
    return {"y": (outputs["y"] + inputs["residual"][:, :1]).to(torch.bfloat16)}


@holds("hc_post", on=BOTH, spoil=first_stream_counts_twice)
def test_permuting_old_streams_changes_nothing_but_the_order_of_a_sum(trial):
    order = trial.permutation(trial["residual"].shape[1])
    comb = square(trial["comb"])[:, order].reshape(trial["comb"].shape).contiguous()
    permuted = trial.run(residual=trial["residual"][:, order].contiguous(), comb=comb)
    assert_near(permuted["y"], trial.run()["y"], ulp=1, atol=rounding(trial))


@holds("hc_post", on=BOTH, spoil=scaled)
def test_identity_gates_keep_the_residual(trial):
    identity = torch.eye(trial["post"].shape[1]).flatten().expand_as(trial["comb"]).contiguous()
    kept = trial.run(post=torch.zeros_like(trial["post"]), comb=identity)
    assert_same(kept["y"], trial["residual"], zero_sign=False)


@holds("hc_post", on=BOTH, spoil=by_column)
def test_replacing_gates_give_x_in_every_stream(trial):
    replaced = trial.run(post=torch.ones_like(trial["post"]), comb=torch.zeros_like(trial["comb"]))
    assert_same(replaced["y"], trial["x"].unsqueeze(1).expand_as(trial["residual"]), zero_sign=False)


@holds("hc_post", on=BOTH, spoil=shifted, names=("from_hc_pre",), keep=("hc_eps", "hc_sinkhorn_iters"))
def test_gates_of_hc_pre_conserve_equal_streams(trial):
    """Columns of comb sum to 1 within 1.2e-6: four streams r give r back, bit for bit."""
    first = trial["residual"][:, :1]
    kept = trial.run(x=torch.zeros_like(trial["x"]), residual=first.expand_as(trial["residual"]).contiguous())
    assert_same(kept["y"], first.expand_as(trial["residual"]), zero_sign=False)


def test_the_case_from_hc_pre_has_gates_of_hc_pre():
    """The property above would be empty with other gates: column sums are 1, row sums are not."""
    from specs.registry import load_op

    sums = square(load_op("hc_post").inputs("from_hc_pre")["comb"])
    assert bool(((sums.sum(dim=1) - 1).abs() < 2e-6).all())
    assert not bool(((sums.sum(dim=2) - 1).abs() < 2e-6).all())
