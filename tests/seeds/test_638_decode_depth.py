"""Seed #638, one token per request and receive depth: its claims, one test per row (contracts/moe_and_layers.md 15.3).

Rows 638.2 and 638.3 concern QKV and attention.
"""

from __future__ import annotations

import pytest
import torch

from goldens.errors import CapacityError
from harness import capacity
from harness.devices import get_device
from harness.run import Run
from harness.verify import Session
from specs.capacity import formula_depth
from specs.registry import Op, load_op

NARROW = {"hidden_size": 256, "moe_intermediate_size": 128, "vocab_size": 4096}
"""FLASH with the routing of FLASH (tokens, experts, ranks) and little to compute."""


def prefill() -> Op:
    """The router of the seed: 8 ranks, 128 tokens each, 256 experts."""
    op = load_op("moe", "flash", "prefill", **NARROW)
    assert (op.world, op.deployment.tokens, op.config.n_routed_experts) == (8, 128, 256)
    return op


def test_638_1_only_the_tokens_count_not_how_they_are_requests() -> None:
    one, two = load_op("moe", deployment="decode"), load_op("moe", deployment="decode_mtp")
    assert (one.deployment.batch, one.deployment.seq) != (two.deployment.batch, two.deployment.seq)
    first, second = one.inputs("score_bias"), two.inputs("score_bias")
    assert all(torch.equal(torch.as_tensor(first[name]), torch.as_tensor(second[name])) for name in first)
    assert torch.equal(one.golden(first)["x_next"], two.golden(second)["x_next"])


def test_638_4_depth_96_overflows_on_a_skewed_routing_and_1024_does_not() -> None:
    """The formula's 96 rows, and a routing whose busiest expert gets 769 to 1024 rows, 32 to 43 times the mean."""
    op = prefill()
    assert formula_depth(op.config, op.deployment, 4.0) == 96
    load = capacity.load_of(op, "hash_zipf_steep")
    most = int(load.by_expert.max())
    assert 768 < most <= 1024
    assert 32 < most / load.mean < 43
    error = load.overflow(96)
    assert error is not None
    assert error.depth == 12
    assert int(load.rows[error.source, error.expert]) == error.load > 12
    assert load.overflow(1024) is None


def test_638_4_the_smallest_depth_is_the_first_that_passes() -> None:
    for case in ("hash_zipf", "hash_hot", "default"):
        load = capacity.load_of(prefill(), case)
        assert load.overflow(load.smallest_depth) is None
        assert load.overflow(load.smallest_depth - 16) is not None


def test_638_4_the_uniform_routing_passes_at_96() -> None:
    load = capacity.load_of(prefill(), "hash_round_robin")
    assert load.overflow(96) is None
    assert load.mean == 24.0


@pytest.mark.parametrize("case", ["score_ties_all", "hash_same_token", "hash_zipf_steep"])
def test_638_4_the_worst_case_holds_every_distinct_routing(case: str) -> None:
    load = capacity.load_of(prefill(), case)
    assert int(load.rows.max()) <= 128
    assert load.overflow(1024) is None


def test_638_5_an_overflow_is_an_error_that_names_the_bucket_and_no_hang() -> None:
    op = load_op("moe_dispatch", recv_depth=32)
    inputs = op.inputs("ties_all")
    with pytest.raises(CapacityError) as caught:
        op.golden(inputs)
    error = caught.value
    assert (error.source, error.destination, error.expert, error.load, error.depth) == (0, 0, 0, 8, 4)
    for part in ("rank 0 sends 8 rows", "expert 0 on rank 0", "at most the 4 of its lane"):
        assert part in str(error)


def test_638_7_a_run_without_reference_is_unverified() -> None:
    verdict = Session(get_device("emulator"), {}).verify(Run("hc_post"))
    assert verdict.status == "unverified"
    assert {judgement.status for judgement in verdict.outputs.values()} == {"unverified"}


def test_638_8_two_configurations_live_in_one_process() -> None:
    decode, wide = load_op("moe", ep_world_size=2), load_op("moe", ep_world_size=2, tokens=16, recv_depth=48)
    before = decode.golden(decode.inputs("score_bias"))["x_next"]
    assert wide.golden(wide.inputs("score_bias"))["x_next"].shape == (2, 16, 4, 256)
    assert torch.equal(decode.golden(decode.inputs("score_bias"))["x_next"], before)
    sizes = [(op.sizes["T"], op.sizes["RECV_MAX"], op.sizes["MAX_PER_SRC"]) for op in (decode, wide)]
    assert sizes == [(8, 16, 8), (16, 48, 24)]
