"""Golden of moe: the protocol route by route, any spread of the experts, stages to go on from, rejected inputs."""

import moe_protocol
import pytest
import torch
from golden_testing import K, assert_same_bits, moe_inputs, run

from goldens.errors import CapacityError, GoldenInputError

OP, OUT = "moe", "x_next"
GIVEN = (
    "x_mixed",
    "post",
    "comb",
    "x_norm",
    "x_norm_i8",
    "x_norm_scale",
    "indices",
    "weights",
    "sh",
    "recv_y",
    "ffn_out",
)


@pytest.mark.parametrize("ep", [1, 2, 4, 8])
@pytest.mark.parametrize("layer_id", [0, 3])
def test_equals_the_protocol(ep, layer_id):
    tensors, parameters = moe_inputs(ep, ep=ep, layer_id=layer_id, n_local=32 // ep)
    assert_same_bits(run(OP, (tensors, parameters))[OUT], moe_protocol.moe(tensors, parameters, seed=ep))


@pytest.mark.parametrize("count", [-3, 0, 1, 3, 9])
def test_equals_the_protocol_for_any_active_tokens(count):
    tensors, parameters = moe_inputs(count, layer_id=count % 4, num_tokens=count)
    found = run(OP, (tensors, parameters))[OUT]
    assert_same_bits(found, moe_protocol.moe(tensors, parameters))


def spread(tensors, parameters, ep):
    """The same experts and tokens over `ep` ranks, from two."""

    def tokens(name):
        return tensors[name].reshape(ep, -1, *tensors[name].shape[2:])

    changed = {name: tokens(name) for name in ("x_hc", "input_ids")}
    for name, value in tensors.items():
        if name.startswith("routed"):
            changed[name] = value.flatten(0, 1).view(ep, -1, *value.shape[2:])
        elif isinstance(value, torch.Tensor) and name not in changed:
            changed[name] = value[:1].expand(ep, *value.shape[1:]).contiguous()
    t = changed["x_hc"].shape[1]
    return tensors | changed | {"num_tokens": t}, parameters | {"recv_max": ep * t}


@pytest.mark.parametrize("ep", [1, 4, 8])
def test_the_spread_of_the_experts_does_not_matter(ep):
    """EP invariance (5.8.6); one rank is the reference."""
    inputs = moe_inputs(11, t=8)
    found = run(OP, spread(*inputs, ep))[OUT]
    assert_same_bits(found.flatten(0, 1), run(OP, inputs)[OUT].flatten(0, 1))


@pytest.mark.parametrize("stage", GIVEN)
def test_goes_on_from_a_devices_stage(stage):
    """Continued from its own stage the golden changes nothing; from another one the output changes."""
    inputs = moe_inputs(12)
    taps = {}
    plain = run(OP, inputs, taps=taps)
    assert_same_bits(run(OP, inputs, given={stage: taps[stage].clone()})[OUT], plain[OUT])
    other = taps[stage].flip(1) if stage != "recv_y" else taps[stage] * 2
    again = {}
    found = run(OP, inputs, given={stage: other}, taps=again)
    assert_same_bits(again[stage], other)
    assert (found[OUT] != plain[OUT]).any()


def test_stages_before_a_given_one_stay():
    inputs = moe_inputs(13)
    taps, again = {}, {}
    run(OP, inputs, taps=taps)
    run(OP, inputs, taps=again, given={"sh": taps["sh"] * 2})
    changed = [name for name in taps if not torch.equal(taps[name], again[name])]
    assert changed == ["sh", "ffn_out", "x_next"]


def test_rejects_a_given_stage_of_another_shape():
    with pytest.raises(GoldenInputError, match=r"^moe: given sh has shape \[2, 5, 1\], expected \[2, 5, 96\]$"):
        run(OP, moe_inputs(), given={"sh": torch.zeros(2, 5, 1, dtype=torch.bfloat16)})


REPLICATED = [name for name in moe_inputs()[0] if name.startswith(("hc_ffn", "norm", "gate", "tid2eid", "shared"))]


@pytest.mark.parametrize("name", REPLICATED)
def test_rejects_ranks_that_disagree(name):
    tensors, parameters = moe_inputs()
    place = tuple(extent - 1 for extent in tensors[name].shape)
    tensors[name][place] += 1
    index = ", ".join(map(str, place))
    with pytest.raises(GoldenInputError, match=rf"^moe: {name}\[{index}\] is .* and on rank 0 .*, expected the same"):
        run(OP, (tensors, parameters))


def test_accepts_ranks_that_agree_in_nan():
    tensors, parameters = moe_inputs()
    tensors["shared_w2_scale"][:, 3] = torch.nan
    assert run(OP, (tensors, parameters))[OUT].isnan().any()


def test_rejects_lanes_that_are_too_shallow():
    """All tokens choose the same experts: their lanes need a row for every token."""
    tensors, parameters = moe_inputs()
    same = tensors | {
        "gate_w": torch.zeros_like(tensors["gate_w"]),
        "gate_bias": torch.zeros_like(tensors["gate_bias"]),
    }
    taps = {}
    run(OP, (same, parameters), taps=taps)
    assert taps["recv_meta"][0, :, :K].tolist() == [[5] * K] * 2
    with pytest.raises(CapacityError, match="rank 0 sends 5 rows to expert 0 on rank 0, expected at most the 4"):
        run(OP, (same, parameters | {"recv_max": 8}))


def test_weights_of_a_token_sum_to_the_factor():
    taps = {}
    run(OP, moe_inputs(14, num_tokens=3), taps=taps)
    sums = taps["weights"].double().sum(2)
    assert ((sums[:, :3] - 1.5).abs() < 2e-5).all()
    assert not sums[:, 3:].any()


def test_a_poisoned_expert_spoils_its_tokens_only():
    tensors, parameters = moe_inputs(15)
    taps = {}
    plain = run(OP, (tensors, parameters), taps=taps)[OUT]
    chosen, counts = torch.unique(taps["indices"], return_counts=True)
    expert = int(chosen[counts.argmin()])
    tensors["routed_w2_scale"][expert // 16, expert % 16] = torch.inf
    found = run(OP, (tensors, parameters))[OUT]
    spoiled = (taps["indices"] == expert).any(dim=2)
    assert spoiled.any()
    assert not spoiled.all()
    assert_same_bits(found[~spoiled], plain[~spoiled])
    assert (~found[spoiled].isfinite()).any(dim=(1, 2)).all()
