"""Several MoE calls on one set of windows: interleavings, the invariants of 7.4, and faults that only a second call
shows (contracts/moe_and_layers.md 3.8.7, 3.8.8, 7).

S1 and S2 (nothing is read before it was announced, nothing overwritten before it was read) are the emulator's own:
races between ranks are findings (GG404), whatever the order of the run. S3 is its dead-lock report (GG405), a fault.
S4 (signals count calls) and S5 (slots and keys are in range) are asserted here, on the outputs of the program.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fault import Fault
from moe_testing import CALLS, PROGRAM, World, differences, draw, load, run

from harness.devices.base import KernelFault
from harness.devices.emulator.device import EmulatorDevice
from harness.devices.emulator.host import execute_host
from specs.registry import load_op

SLOW_SEEDS = 500
PER_TEST = 50
LAYERS = PROGRAM.with_name("moe_layers.py")


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_calls_follow_one_another_without_a_barrier(ranks: int) -> None:
    world = World.of(ranks)
    kernel = load(world)
    inputs = draw(world, ranks)
    for schedule in range(3):
        assert differences(world, inputs, run(kernel, world, inputs, schedule)) == []


@pytest.mark.parametrize(
    "tokens",
    [
        pytest.param(lambda ranks: torch.zeros(ranks, CALLS), id="nobody"),
        pytest.param(lambda ranks: (torch.arange(ranks) == 1).float().mul(8).repeat(CALLS, 1).T, id="one_rank"),
        pytest.param(lambda ranks: torch.tensor([8, 0, 8]).repeat(ranks, 1), id="idle_call"),
        pytest.param(lambda ranks: torch.tensor([-1, 9, 1]).repeat(ranks, 1), id="clamped"),
        pytest.param(lambda ranks: torch.arange(ranks * CALLS).reshape(ranks, CALLS) % 9, id="all_differ"),
    ],
)
def test_any_number_of_tokens_per_rank_and_call(tokens) -> None:
    world = World.of(4)
    inputs = draw(world, 0, tokens(4))
    clamped = inputs | {"num_tokens": inputs["num_tokens"].clamp(0, world.size("T"))}
    assert differences(world, clamped, run(load(world), world, inputs, 1)) == []


def test_no_slot_leaves_its_lane_when_all_tokens_choose_the_same_experts() -> None:
    """S5 at its edge: every lane of the chosen experts is full, none of the others has a row."""
    world = World.of(4)
    inputs = draw(world, 0, torch.full((4, CALLS), world.size("T")))
    inputs["indices"] = (torch.arange(6) * 11).to(torch.int32).expand(inputs["indices"].shape).contiguous()
    result = run(load(world), world, inputs, 2)
    assert differences(world, inputs, result) == []
    assert set(result.outputs["recv_meta"].unique().tolist()) == {0, world.size("T")}


def test_no_peer_runs_ahead_by_a_call(tmp_path: Path) -> None:
    """7.4 would have "=" fail for >= when a peer runs ahead. Here none can: it sends once it has summed this call."""
    world = World.of(4)
    inputs = draw(world, 5)
    for fault in EQUAL:
        kernel = load(world, tmp_path, fault)
        for schedule in range(3):
            assert differences(world, inputs, run(kernel, world, inputs, schedule)) == []


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("first", range(0, SLOW_SEEDS, PER_TEST))
def test_500_interleavings_of_4_ranks(first: int) -> None:
    """About 40 s a part; `-m slow`. Each seed draws its own inputs, too."""
    world = World.of(4)
    kernel = load(world)
    for seed in range(first, first + PER_TEST):
        inputs = draw(world, seed)
        assert differences(world, inputs, run(kernel, world, inputs, seed + 1)) == [], f"schedule {seed + 1}"


ARRIVED = "pld.system.wait(arrived, [source, 0], moe_epoch, cmp=pld.WaitCmp.Ge)"
RETURNED = "pld.system.wait(combine_arrived, [peer, 0], moe_epoch, cmp=pld.WaitCmp.Ge)"
SUMMED = "pld.system.wait(combine_arrived, [my_rank, 0], moe_epoch - 1, cmp=pld.WaitCmp.Ge)"


def sequence_fault(name: str, part: str, before: str, after: str, found: str, why: str) -> Fault:
    """A fault of a part; `found` is what must be reported: a code, or an output."""
    return Fault("moe_calls", name, before, after, found, why, part=part)


FAULTS = (
    sequence_fault(
        "arrival_of_an_earlier_call",
        "moe_dispatch",
        ARRIVED,
        ARRIVED.replace("moe_epoch", "1"),
        "GG404",
        "a fixed value is satisfied by the first call for ever",
    ),
    sequence_fault(
        "arrival_an_epoch_too_early",
        "moe_dispatch",
        ARRIVED,
        ARRIVED.replace("moe_epoch", "moe_epoch - 1"),
        "GG404",
        "lanes of this call are read while they are written",
    ),
    sequence_fault(
        "return_an_epoch_too_early",
        "moe_combine",
        RETURNED,
        RETURNED.replace("moe_epoch", "moe_epoch - 1"),
        "GG404",
        "rows of this call are summed while they are written",
    ),
    sequence_fault(
        "windows_reused_an_epoch_too_early",
        "moe_dispatch",
        SUMMED,
        "pass",
        "GG404",
        "lanes of the call before are overwritten while a slower rank reads them",
    ),
    sequence_fault(
        "closed_before_the_sum",
        "moe_combine",
        ", deps=[reduce_task])",
        ")",
        "GG404",
        "a peer hears of the next call and returns its rows into a sum that is not done",
    ),
    sequence_fault(
        "never_closed",
        "moe_combine",
        "pl.write(combine_arrived, [my_rank, 0], moe_epoch)",
        "pass",
        "GG405",
        "the next send waits for ever",
    ),
    sequence_fault(
        "signal_set_instead_of_counted",
        "moe_dispatch",
        "pld.system.notify(arrived, peer, [my_rank, 0], 1, op=pld.NotifyOp.AtomicAdd)",
        "pld.system.notify(arrived, peer, [my_rank, 0], 1, op=pld.NotifyOp.Set)",
        "GG405",
        "the second call waits for a 2 that never comes",
    ),
    sequence_fault(
        "idle_tokens_summed",
        "moe_combine",
        "            if t < active:\n",
        "            if t < T:\n",
        "ffn_out",
        "their rows of the window are those of an earlier call",
    ),
    sequence_fault(
        "return_counted_twice",
        "moe_combine",
        "pld.system.notify(combine_arrived, peer, [my_rank, 0], 1, op=pld.NotifyOp.AtomicAdd)",
        "pld.system.notify(combine_arrived, peer, [my_rank, 0], 2, op=pld.NotifyOp.AtomicAdd)",
        "GG404",
        "the second call's wait is satisfied by the first",
    ),
    sequence_fault(
        "epoch_never_rises",
        "moe_dispatch",
        "    active = pl.max(pl.min(num_tokens, T), 0)\n    x_rows",
        "    active = pl.max(pl.min(num_tokens, T), 0)\n    moe_epoch = pl.const(1, pl.INT32)\n    x_rows",
        "GG404",
        "windows keep their counts while the epoch starts again",
    ),
    sequence_fault(
        "zero_counts_not_published",
        "moe_dispatch",
        "            pld.tensor.put(meta_window, peer, counts, [my_rank, 0], [peer, 0], [1, N_LOCAL])\n",
        "            if active > 0:\n"
        "                pld.tensor.put(meta_window, peer, counts, [my_rank, 0], [peer, 0], [1, N_LOCAL])\n",
        "recv_meta",
        "counts of the call before survive",
    ),
    sequence_fault(
        "counts_accumulate",
        "moe_dispatch",
        "counts, [my_rank, 0], [peer, 0], [1, N_LOCAL])",
        "counts, [my_rank, 0], [peer, 0], [1, N_LOCAL], atomic=pl.AtomicType.Add)",
        "recv_meta",
        "counts of the calls before are added",
    ),
    sequence_fault(
        "inactive_rows_summed",
        "moe_combine",
        "            if t < active:",
        "            if t < T:",
        "ffn_out",
        "rows that the call before left are added to inactive tokens",
    ),
)

EQUAL = tuple(
    sequence_fault("equal", part, wait, wait.replace("Ge", "Eq"), "", "the cell must hold exactly this call")
    for part, wait in (("moe_dispatch", ARRIVED), ("moe_combine", RETURNED))
)


ALWAYS = 4
"""The first faults are planted always; the others are slow, a part of them every day."""
MARKED = [
    pytest.param(fault, id=fault.name, marks=() if number < ALWAYS else pytest.mark.slow)
    for number, fault in enumerate(FAULTS)
]


@pytest.mark.parametrize("fault", MARKED)
def test_rejects_planted_fault_of_a_sequence(fault: Fault, tmp_path: Path) -> None:
    world = World.of(2)
    kernel = load(world, tmp_path, fault)
    inputs = draw(world, 3, torch.tensor([[8, 0, 8], [8, 8, 0]]))
    for schedule in range(4):
        try:
            found = differences(world, inputs, run(kernel, world, inputs, schedule))
        except KernelFault as error:
            found = [str(error)]
        assert any(fault.output in text for text in found), f"schedule {schedule}: {found}"


def test_three_layers_in_one_program_are_three_programs() -> None:
    """Windows, counters and the lanes of earlier layers change no bit of a later one."""
    op = load_op("moe", ep_world_size=2)
    device = EmulatorDevice()
    alone = device.load(op.kernel, "moe", op.sizes)
    chained = device.load(LAYERS, "moe_layers", op.sizes)
    inputs = op.inputs() | {"num_tokens": 5}
    first_score = op.config.num_hash_layers
    step = dict(inputs)
    for layer in (0, first_score, first_score + 1):
        result = execute_host(alone.entry, step | {"layer_id": layer}, 0, alone.files, world=2)
        step["x_hc"] = result.outputs["x_next"]
    for schedule in (0, 1):
        together = execute_host(chained.entry, inputs, schedule, chained.files, world=2)
        assert together.findings == []
        assert not together.outputs["overflow"].any()
        if schedule == 0:  # others draw another order of FP32 sums
            assert torch.equal(together.outputs["x_next"], step["x_hc"])
