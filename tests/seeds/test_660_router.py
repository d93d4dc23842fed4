"""Seed #660, router, EP sizes, collectives: its claims, one test per row (contracts/moe_and_layers.md, 15.5)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from goldens import gate as gate_module
from goldens.errors import CapacityError
from goldens.moe import moe
from goldens.moe_dispatch import moe_dispatch
from goldens.numerics.quant import quantize_rows
from goldens.numerics.reduce import chunked_sum
from harness.devices import get_device
from harness.run import Run
from harness.tolerances import load_tolerances
from harness.verify import Session
from specs.errors import SpecError
from specs.registry import load_op


def routed(**changes: Any) -> dict[str, Tensor]:
    """Stages of the golden of gate on its default case."""
    op = load_op("gate", deployment="prefill")
    taps: dict[str, Tensor] = {}
    gate_module.gate(**(op.inputs() | changes), **op.parameters, taps=taps)
    return taps


def test_660_1_logits_of_16_experts_alone_are_those_of_all() -> None:
    op = load_op("gate", deployment="prefill")
    inputs, whole = op.inputs(), routed()["logits"]
    for first in range(0, op.config.n_routed_experts, 16):
        part = slice(first, first + 16)
        table = inputs["tid2eid"] % 16
        few = routed(gate_w=inputs["gate_w"][part], gate_bias=inputs["gate_bias"][part], tid2eid=table)
        assert torch.equal(few["logits"], whole[:, part])


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_660_2_no_pad_column_is_chosen(ranks: int) -> None:
    """Every score lies below 0, where a pad of 0 behind the last expert would win."""
    run = Run("gate", case="bias_negative", overrides=(("ep_world_size", ranks),))
    verdict = Session(get_device("emulator"), load_tolerances()).verify(run)
    assert verdict.outputs["indices"].passed


def test_660_3_codes_are_those_of_the_rounded_norm() -> None:
    stages = routed()
    codes, scale = quantize_rows(stages["x_norm"].float())
    assert torch.equal(stages["x_norm_i8"], codes)
    assert torch.equal(stages["x_norm_scale"], scale)
    assert not torch.equal(stages["x_norm_i8"], quantize_rows(stages["normed"])[0])  # the test can tell them apart


@pytest.mark.parametrize("tile", [32, 256])
def test_660_4_wider_tiles_change_hardly_a_code(tile: int) -> None:
    """A row maximum is the same by any tiles. The sum of squares may lose a last bit."""
    x = torch.randn(128, 4096, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    by_tiles = x.abs().view(128, -1, tile).amax(dim=2).amax(dim=1)
    assert torch.equal(by_tiles, x.abs().amax(dim=1))

    def codes(sum_squares: Tensor) -> Tensor:
        inverse = torch.ones(()) / (sum_squares / 4096 + 1e-6).sqrt()
        return quantize_rows((x * inverse).bfloat16().float())[0]

    exact = (x.double() * x.double()).sum(dim=1, keepdim=True).float()
    differing = codes(chunked_sum(x * x, tile)) != codes(exact)
    assert float(differing.float().mean()) <= 1e-4


@pytest.mark.parametrize("ranks", [1, 3, 5, 16, 0])
def test_660_5_other_numbers_of_ranks_are_refused(ranks: int) -> None:
    with pytest.raises(SpecError, match="ep_world_size is"):
        load_op("moe", ep_world_size=ranks)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_660_5_the_golden_offers_one_rank_as_reference(ranks: int) -> None:
    """The tokens of rank 0 alone, with all experts on one rank: the same rows."""
    op = load_op("moe", ep_world_size=ranks)
    inputs = op.inputs("score_bias")
    one = {name: value[:1] if isinstance(value, Tensor) else value for name, value in inputs.items()}
    one |= {name: value.flatten(0, 1).unsqueeze(0) for name, value in inputs.items() if name.startswith("routed")}
    alone = moe(**one, **(dict(op.parameters) | {"recv_max": op.deployment.tokens}))
    assert torch.equal(alone["x_next"][0], op.golden(inputs)["x_next"][0])


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_660_6_every_rank_routes_over_all_experts(ranks: int) -> None:
    op = load_op("moe", "flash", ep_world_size=ranks)
    shapes = {spec.name: getattr(spec, "shape", ()) for spec in op.signature}
    assert shapes["gate_w"] == (ranks, 32 * ranks, 4096)
    assert shapes["gate_bias"] == (ranks, 32 * ranks)
    assert shapes["routed_w1"][:2] == (ranks, 32)


@pytest.mark.parametrize("case", ["overflow_first", "overflow_last"])
def test_660_7_a_slot_beyond_the_lane_is_refused(case: str) -> None:
    op = load_op("moe_dispatch")
    with pytest.raises(CapacityError, match="rank 0 sends 48 rows to expert"):
        op.golden(op.inputs(case))


def test_660_8_received_scalars_have_the_bits_that_were_sent() -> None:
    """Any FP32 pattern: denormals, both zeros, NaN with its payload."""
    op = load_op("moe_dispatch", ep_world_size=2)
    inputs, wild = op.inputs(), torch.Generator().manual_seed(3)
    for name in ("x_norm_scale", "weights"):
        patterns = torch.randint(-(2**31), 2**31, inputs[name].shape, generator=wild)
        inputs[name] = patterns.to(torch.int32).view(torch.float32)
    found = moe_dispatch(**inputs, **op.parameters)
    sent = inputs["weights"].view(torch.int32).flatten().sort().values
    rows = torch.arange(op.deployment.recv_max) < found["recv_count_out"]
    assert torch.equal(found["recv_w_out"].view(torch.int32)[rows].sort().values, sent)
    scales = inputs["x_norm_scale"].view(torch.int32).repeat(1, 1, 6).flatten().sort().values
    assert torch.equal(found["recv_scale_out"].view(torch.int32)[rows].sort().values, scales)


def test_660_9_counts_are_complete_and_of_this_call_alone() -> None:
    """All counts are published, zeros included, and a second routing sees nothing of the first."""
    op = load_op("moe_dispatch", ep_world_size=2)
    for case in ("default", "next_rank", "tokens_0"):
        inputs = op.inputs(case)
        meta = op.golden(inputs)["recv_meta"]
        active = inputs["num_tokens"].flatten().clamp(0, 8).tolist()
        wanted = torch.zeros_like(meta)
        for source in range(2):
            for expert in inputs["indices"][source, : active[source]].flatten().tolist():
                wanted[expert // 8, source, expert % 8] += 1
        assert torch.equal(meta, wanted)
