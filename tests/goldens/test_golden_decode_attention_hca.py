"""Golden of decode_attention_hca: the step against dense attention over history and closed groups
(decode_attention.md 6)."""

import pytest
import torch
from attention_layer_testing import assert_near_fp64, fp64_layer, one_at_a_time, slot_row
from attention_testing import relative_error
from golden_testing import assert_same_bits

from specs.registry import load_op

OP = "decode_attention_hca"
CASES = [case.name for case in load_op(OP).cases]


def drawn(case="default", deployment="decode", seed=0):
    op = load_op(OP, deployment=deployment)
    return op, op.inputs(case, seed)


def closed_slots(op, inputs, token):
    """Groups of 128 closed up to the token and committed."""
    request = token // op.deployment.seq
    return min(int(inputs["position_ids"][token]) + 1, int(inputs["kv_seq_lens"][request])) // 128


@pytest.mark.parametrize("deployment", ["decode", "decode_mtp"])
@pytest.mark.parametrize("case", ["default", "first_tokens", "last_positions", "uncommitted"])
def test_is_dense_attention_over_history_and_closed_groups(case, deployment):
    op, inputs = drawn(case, deployment)
    taps = {}
    found = op.golden(inputs, taps)
    for token in range(len(inputs["x_hc"])):
        rows = [slot_row(inputs, found["cmp_kv"], token, c) for c in range(closed_slots(op, inputs, token))]
        assert_near_fp64(found, taps, token, fp64_layer(op, inputs, token, rows))


def test_a_group_that_closes_in_this_step_is_attended_in_it():
    """p = 127: slot 0 is written and listed; for S = 2 and a first position of 126 the second token alone (6.4)."""
    op, inputs = drawn(deployment="decode_mtp")
    first = inputs["position_ids"][0::2]
    request = int((first == 126).nonzero()[0])
    taps = {}
    op.golden(inputs, taps)
    tail = taps["cmp_sparse_indices"][2 * request : 2 * request + 2, 130:]
    assert (tail >= 0).sum(dim=1).tolist() == [0, 1]
    without = taps["cmp_kv"].clone()
    without[op.mapped(inputs)["cmp_kv"]] = 0
    other = {}
    op.golden(inputs, other, {"cmp_kv": without})
    assert_same_bits(other["attn_out"][2 * request], taps["attn_out"][2 * request])
    assert not torch.equal(other["attn_out"][2 * request + 1], taps["attn_out"][2 * request + 1])


@pytest.mark.parametrize("case", ["default", "window_edges"])
def test_two_tokens_at_once_are_two_steps(case):
    """Pools and states are equal; attention of the second token up to the block of the first one's row (5.8, 4)."""
    op, inputs = drawn(case, "decode_mtp")
    taps, steps = {}, ({}, {})
    both = op.golden(inputs, taps)
    single = one_at_a_time(op, inputs, steps)
    for pool in ("kv_cache", "compress_state", "cmp_kv"):
        assert_same_bits(single[pool], both[pool])
    assert_same_bits(steps[0]["attn_out"], taps["attn_out"][0::2])
    assert relative_error(steps[1]["attn_out"], taps["attn_out"][1::2].double()) < 0.02


def test_zeroed_rows_are_not_missing_rows():
    """A compressed row of zeros still takes its share of the softmax (6.8)."""
    op, inputs = drawn("all_close")
    taps, zeroed, unlisted = {}, {}, {}
    op.golden(inputs, taps)
    op.golden(inputs, zeroed, {"cmp_kv": torch.zeros_like(taps["cmp_kv"])})
    listed = taps["cmp_sparse_indices"].clone()
    listed[:, 129:] = -1
    op.golden(inputs, unlisted, {"cmp_sparse_indices": listed})
    assert relative_error(zeroed["attn_out"], unlisted["attn_out"].double()) > 0.01


def test_rotation_of_the_compressed_row_is_that_of_its_first_position():
    op, inputs = drawn(deployment="decode_mtp")
    taps = {}
    op.golden(inputs, taps)
    first = inputs["position_ids"][0::2].long()
    assert_same_bits(taps["cmp_cos"], inputs["freqs_cos"][first - first % 128, :32].float())
    assert_same_bits(taps["rope_sin"], inputs["freqs_sin"][inputs["position_ids"].long()])


@pytest.mark.parametrize("deployment", ["decode", "decode_mtp"])
@pytest.mark.parametrize("case", CASES)
def test_taps_are_the_stages_and_only_mapped_rows_change(case, deployment):
    op, inputs = drawn(case, deployment)
    before = {name: value.clone() for name, value in inputs.items()}
    taps = {}
    found = op.golden(inputs, taps)
    assert tuple(taps) == op.stages
    for pool, mapped in op.mapped(inputs).items():
        assert_same_bits(found[pool][~mapped], inputs[pool][~mapped])
    for name, value in inputs.items():
        assert_same_bits(value, before[name])
