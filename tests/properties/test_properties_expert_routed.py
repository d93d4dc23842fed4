"""expert_routed: properties of contracts/hc_gate_experts.md, 5.8. They hold bit for bit, on rows below the counts."""

import torch
from property_testing import BOTH, GOLDEN, assert_same, by_column, golden, holds, leaky, mixed, scaled, shifted

X, X_SCALE, WEIGHTS, COUNT = "recv_x", "recv_scale_dq", "recv_weights", "recv_expert_count"
W1, W3, W2 = "routed_w1", "routed_w3", "routed_w2"
ROWS_OF_I = (W1, f"{W1}_scale", W3, f"{W3}_scale")
SMALL = ("hidden_size", "moe_intermediate_size", "n_routed_experts", "num_experts_per_tok")
"""Axes that only make this op slow to draw; its own axes are counts, ranks, tokens and the limit."""
FINITE = ("stale",)


def received(trial):
    """Bool [E, RECV_MAX]: rows below the counts."""
    return torch.arange(trial[X].shape[1]) < trial[COUNT]


def rows_of(trial, **changes):
    """The received rows of recv_y, [rows, D]."""
    return trial.run(**changes)["recv_y"][received(trial)]


@holds("expert_routed", on=BOTH, spoil=by_column, keep=SMALL)
def test_permuting_rows_of_w2_permutes_columns(trial):
    order = trial.permutation(trial[W2].shape[1])
    changed = rows_of(
        trial, routed_w2=trial[W2][:, order].contiguous(), routed_w2_scale=trial[f"{W2}_scale"][:, order].contiguous()
    )
    assert_same(changed, rows_of(trial)[:, order])


@holds("expert_routed", on=BOTH, spoil=leaky, keep=SMALL)
def test_permuting_inner_channels_changes_nothing(trial):
    order = trial.permutation(trial[W1].shape[1])
    changes = {name: trial[name][:, order].contiguous() for name in ROWS_OF_I}
    assert_same(rows_of(trial, **changes, routed_w2=trial[W2][:, :, order].contiguous()), rows_of(trial))


@holds("expert_routed", on=BOTH, spoil=leaky, keep=SMALL)
def test_permuting_inputs_changes_nothing(trial):
    order = trial.permutation(trial[W1].shape[2])
    assert_same(rows_of(trial, **{n: trial[n][:, :, order].contiguous() for n in (X, W1, W3)}), rows_of(trial))


@holds("expert_routed", on=BOTH, spoil=shifted, keep=SMALL)
def test_negating_w3_or_w2_negates_the_output(trial):
    plain = rows_of(trial)
    for name in (W3, W2):
        assert_same(rows_of(trial, **{name: -trial[name]}), -plain, zero_sign=False)


@holds("expert_routed", on=BOTH, spoil=leaky, keep=SMALL)
def test_negating_x_w1_and_w3_changes_nothing(trial):
    assert_same(rows_of(trial, **{name: -trial[name] for name in (X, W1, W3)}), rows_of(trial), zero_sign=False)


@holds("expert_routed", on=BOTH, spoil=leaky, keep=SMALL, without=FINITE)
def test_a_power_of_two_may_move_between_the_scales(trial):
    factor = trial.power_of_two()
    changed = rows_of(
        trial,
        recv_scale_dq=trial[X_SCALE] * factor,
        routed_w1_scale=trial[f"{W1}_scale"] / factor,
        routed_w3_scale=trial[f"{W3}_scale"] / factor,
    )
    assert_same(changed, rows_of(trial))


@holds("expert_routed", on=BOTH, spoil=shifted, keep=SMALL)
def test_a_power_of_two_in_weights_or_last_scale_is_one_in_the_output(trial):
    plain = rows_of(trial)
    assert_same(rows_of(trial, recv_weights=trial[WEIGHTS] * 2), plain * 2)
    factor = trial.power_of_two()
    assert_same(rows_of(trial, routed_w2_scale=trial[f"{W2}_scale"] * factor), plain * factor)


@holds("expert_routed", on=BOTH, spoil=shifted, keep=SMALL)
def test_zero_weight_or_zero_scale_gives_zero(trial):
    for name in (WEIGHTS, X_SCALE):
        assert bool((rows_of(trial, **{name: torch.zeros_like(trial[name])}) == 0).all())


@holds("expert_routed", on=BOTH, spoil=scaled, keep=SMALL)
def test_weight_one_is_the_shared_expert_with_these_weights(trial):
    found = trial.run(recv_weights=torch.ones_like(trial[WEIGHTS]))["recv_y"]
    for expert, count in enumerate(trial[COUNT].flatten().tolist()):
        weights = [trial[name][expert] for name in (*ROWS_OF_I, W2, f"{W2}_scale")]
        if count:
            x, scale = trial[X][expert, :count], trial[X_SCALE][expert, :count].unsqueeze(1)
            limit = trial.op.config.swiglu_limit
            shared = golden("expert_shared")(x, scale, *weights, swiglu_limit=limit)["sh"]
            assert_same(found[expert, :count], shared)


def by_slot(outputs, inputs):
    return {"recv_y": (outputs["recv_y"] * torch.arange(1, outputs["recv_y"].shape[1] + 1).unsqueeze(1)).bfloat16()}


@holds("expert_routed", on=BOTH, spoil=by_slot, keep=SMALL)
def test_moving_a_row_to_another_slot_moves_its_output(trial):
    """Also why the packing of dispatch does not matter."""
    changed = {name: trial[name].clone() for name in (X, X_SCALE, WEIGHTS)}
    orders = []
    for expert, count in enumerate(trial[COUNT].flatten().tolist()):
        orders.append(trial.permutation(count) if count > 1 else torch.arange(count))
        for value in changed.values():
            value[expert, :count] = value[expert, :count][orders[-1]]
    moved, plain = trial.run(**changed)["recv_y"], trial.run()["recv_y"]
    for expert, order in enumerate(orders):
        assert_same(moved[expert, : len(order)], plain[expert, : len(order)][order])


@holds("expert_routed", on=BOTH, spoil=by_slot, keep=SMALL)
def test_splitting_rows_over_two_experts_with_equal_weights_changes_nothing(trial):
    """Expert 1 gets the weights of expert 0 and the second half of its rows."""
    half = int(trial[COUNT][0, 0]) // 2
    rest = int(trial[COUNT][0, 0]) - half
    weights = {name: trial[name].clone() for name in (*ROWS_OF_I, W2, f"{W2}_scale")}
    for value in weights.values():
        value[1] = value[0]
    received_rows = {name: trial[name].clone() for name in (X, X_SCALE, WEIGHTS)}
    for value in received_rows.values():
        value[1, :rest] = value[0, half : half + rest]
    counts = trial[COUNT].clone()
    counts[:2, 0] = torch.tensor([half, rest])
    split = trial.run(**weights, **received_rows, recv_expert_count=counts)["recv_y"]
    plain = trial.run(**weights)["recv_y"]
    assert_same(split[0, :half], plain[0, :half])
    assert_same(split[1, :rest], plain[0, half : half + rest])


@holds("expert_routed", on=BOTH, spoil=mixed, keep=SMALL)
def test_an_expert_depends_on_its_own_inputs_only(trial):
    changed = {name: value.clone() for name, value in trial.inputs.items()}
    for name in (X, W1, W3, W2):
        changed[name][1:] = torch.flip(changed[name][1:], dims=(2,))
    changed[COUNT][-1] = trial[X].shape[1]
    changed[X_SCALE][-1], changed[WEIGHTS][-1] = 0.01, 1.0
    count = int(trial[COUNT][0, 0])
    assert_same(trial.run(**changed)["recv_y"][0, :count], trial.run()["recv_y"][0, :count])


def reads_the_tail(outputs, inputs):
    return {"recv_y": outputs["recv_y"] + inputs["recv_scale_dq"].sum().bfloat16()}


@holds("expert_routed", on=BOTH, spoil=reads_the_tail, keep=SMALL)
def test_what_stands_behind_the_counts_changes_nothing(trial):
    rows = received(trial)
    stale_scale = trial[X_SCALE].where(rows, torch.tensor(float("nan")))
    stale_x = trial[X].where(rows.unsqueeze(2), torch.tensor(77, dtype=torch.int8))
    assert_same(rows_of(trial, recv_x=stale_x, recv_scale_dq=stale_scale), rows_of(trial))


@holds("expert_routed", on=GOLDEN, spoil=leaky, keep=SMALL, without=FINITE)
def test_the_sum_of_a_token_does_not_depend_on_the_packing(trial):
    """Routes are rounded one by one: reversing the rows of every expert reverses the rounded rows."""
    reverse = {name: torch.flip(trial[name], dims=(1,)) for name in (X, X_SCALE, WEIGHTS)}
    full = torch.full_like(trial[COUNT], trial[X].shape[1])
    reversed_rows = trial.run(**reverse, recv_expert_count=full)["recv_y"]
    assert_same(torch.flip(reversed_rows, dims=(1,)), trial.run(recv_expert_count=full)["recv_y"])
