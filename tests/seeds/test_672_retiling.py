"""Seed #672, retiling: its claims about ops that we have, one test per row (contracts/moe_and_layers.md 15.2)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness import equiv
from harness.compare import Exact, Output, Ulp
from harness.devices import get_device
from harness.devices.base import KernelRefused
from harness.run import Run
from specs.errors import SpecError
from specs.registry import all_ops, load_op

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


WIDE_HEADS = {"head_dim": 512, "num_attention_heads": 2}
"""Seven plain chunks of 64 lanes and a rotary one, as in FLASH. TINY's heads have one of each: no order differs."""


@pytest.mark.parametrize("case", [case.name for case in load_op("qkv_proj_rope").cases])
def test_672_7_query_heads_differ_by_a_bit_and_nothing_else_does(case: str) -> None:
    """One row sum of 448 lanes and one of 64 against eight of 64, one after the other. A lane that cancels in the
    rotation is held to 4e-6 of its row's RMS (dense.md 3): there a last bit of 1/rms is many units."""
    op = load_op("qkv_proj_rope", **WIDE_HEADS)
    device = get_device("emulator")
    inputs = op.inputs(case)
    old, new = (device.run(device.load(op.kernel, op.name, op.sizes, s.tiles), op, dict(inputs), 0) for s in SIDES)
    one_bit = Ulp(max_ulp=1, atol_rms=4e-6, differing_fraction=1e-3, differing_points=0)
    for name, rule in {"q": one_bit, "kv": Exact(), "qr": Exact(), "qr_scale": Exact()}.items():
        judged = rule.judge(Output(actual=new.outputs[name], expected=old.outputs[name]))
        assert judged.passed, f"{name}: {judged.reason}"
    q = {side: run.outputs["q"].double() for side, run in (("old", old), ("new", new))}
    allowed = q["old"].abs() / 128 + 4e-6 * q["old"].square().mean(dim=2, keepdim=True).sqrt()
    assert bool(((q["new"] - q["old"]).abs() <= allowed).all())


def test_672_7_the_order_of_the_sum_of_squares_is_another_one() -> None:
    """So the row above is no comparison of a kernel with itself: in 131072 values, the two orders show."""
    op = load_op("qkv_proj_rope", deployment="prefill", **WIDE_HEADS)
    device = get_device("emulator")
    inputs = op.inputs()
    old, new = (device.run(device.load(op.kernel, op.name, op.sizes, s.tiles), op, dict(inputs), 0) for s in SIDES)
    differing = int((old.outputs["q"] != new.outputs["q"]).sum())
    assert 0 < differing <= 1e-3 * old.outputs["q"].numel()
    assert old.counters["gm_read_bytes"] > new.counters["gm_read_bytes"]  # each head is loaded once, not twice


@pytest.mark.parametrize("case", [case.name for case in load_op("moe_combine").cases])
def test_672_8_combine_is_bit_equal_with_one_token_per_block(case: str) -> None:
    run = Run("moe_combine", case=case, overrides=(("ep_world_size", 2),))
    (comparison,) = equiv.compare_all(get_device("emulator"), [run], SIDES, ())
    assert comparison.status == "pass", equiv.failure_text(comparison)


def test_672_8_a_block_of_combine_touches_its_own_token_only_for_any_number_of_tokens() -> None:
    """Six tokens are six blocks; the old form takes whole fours and is refused. A NaN of one token stays there."""
    op = load_op("moe_combine", tokens=6)
    device = get_device("emulator")
    kernel = device.load(op.kernel, op.name, op.sizes, "pr672")
    inputs = op.inputs()
    clean = device.run(kernel, op, dict(inputs), 0)
    assert clean.undefined["ffn_out"] is None
    inputs["sh"][:, 2] = float("nan")
    poisoned = device.run(kernel, op, dict(inputs), 0)
    assert poisoned.findings == []
    assert poisoned.outputs["ffn_out"][:, 2].isnan().all()
    others = [0, 1, 3, 4, 5]
    assert torch.equal(poisoned.outputs["ffn_out"][:, others], clean.outputs["ffn_out"][:, others])
    with pytest.raises(KernelRefused, match="T = 6 is not a multiple of 4"):
        device.load(op.kernel, op.name, op.sizes, "before_pr672")


def with_tasks_of_their_own() -> list[object]:
    """Ops whose kernel file opens scopes; the others are made of those. The long ones run with -m slow."""
    own = [op for op in all_ops() if "name_hint=" in load_op(op).kernel.read_text(encoding="utf-8")]
    slow = ("decode_attention", "decode_indexer", "decode_layer", "decode_fwd", "prefill_", "moe")
    return [pytest.param(op, marks=pytest.mark.slow) if op.startswith(slow) else op for op in own]


@pytest.mark.parametrize("schedule", [0, 1])
@pytest.mark.parametrize("op", with_tasks_of_their_own())
def test_672_9_no_value_depends_on_an_early_start(op: str, schedule: int, tmp_path: Path) -> None:
    """Every task of the shipped kernel with the hint against the same without it."""
    source = load_op(op).kernel.read_text(encoding="utf-8")
    assert "allow_early_resolve" not in source
    kernel = tmp_path / f"{op}.py"
    kernel.write_text(source.replace("name_hint=", "allow_early_resolve=True, name_hint="), encoding="utf-8")
    sides = (equiv.Side(), equiv.Side(kernel=str(kernel)))
    (comparison,) = equiv.compare_all(get_device("emulator"), [Run(op, schedule=schedule)], sides, ())
    assert comparison.status == "pass", equiv.failure_text(comparison)
