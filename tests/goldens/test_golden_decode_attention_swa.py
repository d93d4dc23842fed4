"""Golden of decode_attention_swa: the step against dense attention over the history (decode_attention.md 5)."""

import pytest
import torch
from attention_layer_testing import assert_near_fp64, fp64_layer, golden, one_at_a_time
from attention_testing import relative_error
from golden_testing import assert_same_bits

from goldens.errors import GoldenInputError
from specs.registry import load_op

OP = "decode_attention_swa"
CASES = [case.name for case in load_op(OP).cases]


def drawn(case="default", deployment="decode", seed=0):
    op = load_op(OP, deployment=deployment)
    return op, op.inputs(case, seed)


@pytest.mark.parametrize("deployment", ["decode", "decode_mtp"])
@pytest.mark.parametrize("case", ["default", "first_tokens", "window_edges", "last_positions", "open_gates"])
def test_is_dense_attention_over_the_history(case, deployment):
    op, inputs = drawn(case, deployment)
    taps = {}
    found = op.golden(inputs, taps)
    for token in range(len(inputs["x_hc"])):
        assert_near_fp64(found, taps, token, fp64_layer(op, inputs, token), out=0.05)


@pytest.mark.parametrize("case", ["default", "first_tokens", "window_edges", "reference_starts"])
def test_two_tokens_at_once_are_two_steps(case):
    """The rings are equal; attention of the second token up to the block of the first one's row (5.8, 4)."""
    op, inputs = drawn(case, "decode_mtp")
    taps, steps = {}, ({}, {})
    both = op.golden(inputs, taps)
    single = one_at_a_time(op, inputs, steps)
    assert_same_bits(single["kv_cache"], both["kv_cache"])
    assert_same_bits(steps[0]["attn_out"], taps["attn_out"][0::2])
    assert relative_error(steps[1]["attn_out"], taps["attn_out"][1::2].double()) < 0.02
    assert_same_bits(steps[1]["q"], taps["q"][1::2])


@pytest.mark.parametrize("deployment", ["decode", "decode_mtp"])
def test_a_token_does_not_see_what_comes_later(deployment):
    op, inputs = drawn(deployment=deployment)
    changed = inputs["x_hc"].clone()
    changed[-1] *= -2
    found, wanted = op.golden(inputs | {"x_hc": changed}), op.golden(inputs)
    assert_same_bits(found["x_out"][:-1], wanted["x_out"][:-1])
    assert not torch.equal(found["x_out"][-1], wanted["x_out"][-1])


def test_rows_without_a_slot_are_attended_and_not_stored():
    op, inputs = drawn("unstored_rows")
    stored = inputs["ori_slot_mapping"] >= 0
    assert 0 < int(stored.sum()) < len(stored)
    taps = {}
    found = op.golden(inputs, taps)
    flat = found["kv_cache"].view(-1, taps["kv"].shape[1])
    assert_same_bits(flat[inputs["ori_slot_mapping"][stored]], taps["kv"][stored])
    assert_same_bits(
        found["kv_cache"][~op.mapped(inputs)["kv_cache"]], inputs["kv_cache"][~op.mapped(inputs)["kv_cache"]]
    )
    everything = op.golden(inputs | {"ori_slot_mapping": torch.full_like(inputs["ori_slot_mapping"], -1)})
    assert_same_bits(everything["x_out"], found["x_out"])
    assert_same_bits(everything["kv_cache"], inputs["kv_cache"])


@pytest.mark.parametrize("deployment", ["decode", "decode_mtp"])
@pytest.mark.parametrize("case", CASES)
def test_taps_are_the_stages_and_inputs_are_left_alone(case, deployment):
    op, inputs = drawn(case, deployment)
    before = {name: value.clone() for name, value in inputs.items()}
    taps = {}
    found = op.golden(inputs, taps)
    assert tuple(taps) == op.stages
    assert set(found) == {spec.name for spec in op.outputs}
    for name, value in found.items():
        assert_same_bits(value, taps[name])
        assert value.isfinite().all() or name == "cmp_kv"
    for name, value in inputs.items():
        assert_same_bits(value, before[name])


NORMED_AWAY = "qr_scale"
"""Every head is divided by its own RMS: a factor of the token leaves nothing behind but roundings."""


@pytest.mark.parametrize("stage", [s for s in load_op(OP).stages if s not in ("kv_cache", "x_out", NORMED_AWAY)])
def test_goes_on_from_every_stage_of_a_device(stage):
    """From its own stage the golden does not change; from another one something behind it does."""
    op, inputs = drawn(deployment="decode_mtp")
    taps = {}
    op.golden(inputs, taps)
    same, other = {}, {}
    op.golden(inputs, same, {stage: taps[stage]})
    assert all(torch.equal(same[name].view(torch.uint8), taps[name].view(torch.uint8)) for name in taps)
    op.golden(inputs, other, {stage: taps[stage].flip(0).contiguous()})
    assert_same_bits(other[stage], taps[stage].flip(0))
    assert not torch.equal(other["x_out"], taps["x_out"])


@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    [
        ("position_ids", 3, 1024, r"position_ids\[3\] is 1024, expected 0\.\.1023"),
        ("position_ids", 3, -1, r"position_ids\[3\] is -1, expected 0\.\.1023"),
        ("ori_slot_mapping", 2, 1024, r"ori_slot_mapping\[2\] is 1024, expected -1\.\.1023"),
        ("block_table", (1, 0), 8, r"ori_block_table\[1, 0\] is 8, expected 0\.\.7"),
    ],
)
def test_refuses_places_that_do_not_exist(name, index, value, message):
    op, inputs = drawn()
    changed = inputs[name].clone()
    changed[index] = value
    with pytest.raises(GoldenInputError, match=message):
        op.golden(inputs | {name: changed})


def test_refuses_positions_that_are_not_consecutive():
    op, inputs = drawn(deployment="decode_mtp")
    positions = inputs["position_ids"].clone()
    positions[3] += 1
    with pytest.raises(GoldenInputError, match=r"position_ids\[3\] is \d+, expected \d+: positions of a request are"):
        op.golden(inputs | {"position_ids": positions})
    single = inputs | {name: inputs[name][:6] for name in ("x_hc", "ori_slot_mapping", "position_ids")}
    with pytest.raises(GoldenInputError, match="6 tokens, expected a multiple of the 4 requests"):
        golden(op, single)
