"""Seed #672, retiling: its claims about ops that we have, one test per row (contracts/moe_and_layers.md 15.2)."""

from __future__ import annotations

import pytest
import torch

from harness import equiv
from harness.devices import get_device
from harness.run import Run
from specs.errors import SpecError
from specs.registry import load_op

SIDES = (equiv.Side(tiles="before_pr672"), equiv.Side(tiles="pr672"))
OPS = ("hc_post", "expert_shared", "expert_routed")
ROUTED = ("default", "second_tile", "full", "clamp", "stale_tail")


def runs(op: str) -> list[Run]:
    """All cases in decode (those of expert_routed that reach its parts, for time), two in prefill, other schedules."""
    cases = ROUTED if op == "expert_routed" else tuple(case.name for case in load_op(op).cases)
    decode = [Run(op, case=case, seed=seed) for seed, case in enumerate(cases)]
    schedules = [Run(op, schedule=schedule) for schedule in (1, 2)]
    return [*decode, *schedules, Run(op, deployment="prefill", case=cases[1])]


@pytest.mark.parametrize("op", OPS)
def test_672_1_old_and_new_tiling_are_bit_equal(op: str) -> None:
    comparisons = list(equiv.compare_all(get_device("emulator"), runs(op), SIDES, ()))
    assert {comparison.status for comparison in comparisons} == {"pass"}, equiv.failure_text(
        next(c for c in comparisons if c.status != "pass")
    )
    assert all(comparison.outputs for comparison in comparisons)


@pytest.mark.parametrize("tiles", ["pr672", "before_pr672"])
@pytest.mark.parametrize("hidden", [256, 384, 896, 1792])
def test_672_5_every_output_channel_is_written_for_any_width(hidden: int, tiles: str) -> None:
    """No width need be a multiple of 4096, or of any one tile: 1792 is 7 * 256, as the 7168 of PRO is 14 * 512."""
    for name in ("expert_shared", "expert_routed"):
        op = load_op(name, hidden_size=hidden, n_routed_experts=16)
        device = get_device("emulator")
        inputs = op.inputs()
        run = device.run(device.load(op.kernel, name, op.sizes, tiles), op, dict(inputs), 0)
        (output,) = op.outputs
        defined = op.valid(inputs)[output.name]
        unwritten = run.undefined.get(output.name)
        assert unwritten is None or (defined is not None and not bool((unwritten & defined).any()))
        expected = op.golden(inputs)[output.name]
        reached = run.outputs[output.name] if defined is None else run.outputs[output.name].where(defined, expected)
        assert bool((reached.reshape(-1, hidden) != 0).any(dim=0).all()), "a channel that no row writes"


def test_672_6_hc_post_row_tile_of_4() -> None:
    """T / 4 * 4 blocks instead of T / 8 * 4, T a multiple of 4, and bit-equal."""
    op = load_op("hc_post", tokens=24)
    device = get_device("emulator")
    inputs = op.inputs()
    old, new = (device.run(device.load(op.kernel, op.name, op.sizes, s.tiles), op, dict(inputs), 0) for s in SIDES)
    assert (old.counters["blocks"], new.counters["blocks"]) == (24 // 8 * 4, 24 // 4 * 4)
    assert torch.equal(old.outputs["y"].view(torch.int16), new.outputs["y"].view(torch.int16))

    # 12 tokens are three new tiles; the old form would leave four of them out.
    narrow = load_op("hc_post", tokens=12)
    found = device.run(device.load(narrow.kernel, "hc_post", narrow.sizes, "pr672"), narrow, narrow.inputs(), 0)
    assert found.undefined["y"] is None
    with pytest.raises(SpecError, match="T = 10 is no multiple of 4"):
        load_op("hc_post", tokens=10)
