"""expert_shared: properties of contracts/hc_gate_experts.md, 4.8. They hold bit for bit."""

import torch
from hypothesis import assume
from property_testing import (
    BOTH,
    GOLDEN,
    assert_same,
    by_column,
    by_row,
    golden,
    holds,
    huge,
    leaky,
    mixed,
    scaled,
    shifted,
)

X, X_SCALE = "x_local_i8", "x_local_scale_dq"
W1, W3, W2 = "shared_w1", "shared_w3", "shared_w2"
ROWS_OF_I = (W1, f"{W1}_scale", W3, f"{W3}_scale")


@holds("expert_shared", on=BOTH, spoil=by_row)
def test_permuting_rows_permutes_outputs(trial):
    order = trial.permutation(len(trial[X]))
    permuted = trial.run(x_local_i8=trial[X][order].contiguous(), x_local_scale_dq=trial[X_SCALE][order])
    assert_same(permuted["sh"], trial.run()["sh"][order])


@holds("expert_shared", on=BOTH, spoil=mixed)
def test_a_row_does_not_depend_on_the_others(trial):
    x = trial[X].clone()
    x[1:] = torch.flip(x[1:], dims=(1,))
    assert_same(trial.run(x_local_i8=x)["sh"][0], trial.run()["sh"][0])


@holds("expert_shared", on=GOLDEN, spoil=mixed)
def test_outputs_do_not_depend_on_the_number_of_rows(trial):
    alone = trial.run(x_local_i8=trial[X][-1:].contiguous(), x_local_scale_dq=trial[X_SCALE][-1:])
    twice = trial.run(x_local_i8=torch.cat([trial[X]] * 2), x_local_scale_dq=torch.cat([trial[X_SCALE]] * 2))
    assert_same(alone["sh"][0], twice["sh"][-1])


@holds("expert_shared", on=BOTH, spoil=leaky)
def test_permuting_inner_channels_changes_nothing(trial):
    order = trial.permutation(trial[W1].shape[0])
    changes = {name: trial[name][order].contiguous() for name in ROWS_OF_I}
    assert_same(trial.run(**changes, shared_w2=trial[W2][:, order].contiguous())["sh"], trial.run()["sh"])


@holds("expert_shared", on=BOTH, spoil=leaky)
def test_permuting_inputs_changes_nothing(trial):
    order = trial.permutation(trial[W1].shape[1])
    changes = {name: trial[name][:, order].contiguous() for name in (X, W1, W3)}
    assert_same(trial.run(**changes)["sh"], trial.run()["sh"])


@holds("expert_shared", on=BOTH, spoil=by_column)
def test_permuting_rows_of_w2_permutes_columns(trial):
    order = trial.permutation(trial[W2].shape[0])
    changed = trial.run(shared_w2=trial[W2][order].contiguous(), shared_w2_scale=trial[f"{W2}_scale"][order])
    assert_same(changed["sh"], trial.run()["sh"][:, order])


@holds("expert_shared", on=BOTH, spoil=shifted)
def test_negating_w3_or_w2_negates_the_output(trial):
    plain = trial.run()["sh"]
    for name in (W3, W2):
        assert int(trial[name].min()) > -128
        assert_same(trial.run(**{name: -trial[name]})["sh"], -plain, zero_sign=False)


@holds("expert_shared", on=BOTH, spoil=leaky)
def test_negating_x_w1_and_w3_changes_nothing(trial):
    changed = trial.run(**{name: -trial[name] for name in (X, W1, W3)})
    assert_same(changed["sh"], trial.run()["sh"], zero_sign=False)


@holds("expert_shared", on=BOTH, spoil=leaky)
def test_a_power_of_two_may_move_between_the_scales(trial):
    factor = trial.power_of_two()
    changed = trial.run(
        x_local_scale_dq=trial[X_SCALE] * factor,
        shared_w1_scale=trial[f"{W1}_scale"] / factor,
        shared_w3_scale=trial[f"{W3}_scale"] / factor,
    )
    assert_same(changed["sh"], trial.run()["sh"])


@holds("expert_shared", on=BOTH, spoil=shifted)
def test_a_power_of_two_in_the_last_scale_is_one_in_the_output(trial):
    factor = trial.power_of_two()
    assert_same(trial.run(shared_w2_scale=trial[f"{W2}_scale"] * factor)["sh"], trial.run()["sh"] * factor)


@holds("expert_shared", on=BOTH, spoil=shifted)
def test_a_zero_scale_gives_zero(trial):
    assert bool((trial.run(x_local_scale_dq=torch.zeros_like(trial[X_SCALE]))["sh"] == 0).all())


@holds("expert_shared", on=BOTH, spoil=scaled)
def test_equals_the_routed_expert_with_weight_one(trial):
    rows, width = trial[X].shape
    padded = -(-rows // 16) * 16
    x = torch.zeros(1, padded, width, dtype=torch.int8)
    x[0, :rows] = trial[X]
    scale = torch.zeros(1, padded)
    scale[0, :rows] = trial[X_SCALE].flatten()
    weights = [trial[name].unsqueeze(0) for name in (*ROWS_OF_I, W2, f"{W2}_scale")]
    count = torch.tensor([[rows]], dtype=torch.int32)
    limit = trial.op.config.swiglu_limit
    routed = golden("expert_routed")(x, scale, torch.ones(1, padded), count, *weights, swiglu_limit=limit)
    assert_same(trial.run()["sh"], routed["recv_y"][0, :rows])


@holds("expert_shared", on=GOLDEN, spoil=huge)
def test_the_clamp_bounds_h(trial):
    limit = trial.op.config.swiglu_limit
    assume(limit > 0)
    assert bool((trial.judged_stages()["h"].abs() <= limit * limit).all())


def counts_the_limit(outputs, inputs):
    return {"sh": outputs["sh"] + (inputs["swiglu_limit"] > 0)}


@holds("expert_shared", on=GOLDEN, spoil=counts_the_limit)
def test_a_large_limit_is_none(trial):
    assert_same(trial.run(swiglu_limit=1e30)["sh"], trial.run(swiglu_limit=0.0)["sh"])
