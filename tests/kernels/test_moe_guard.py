"""The guards of moe_dispatch: a lane that would overflow is refused before anything is sent, never a hang, never a
neighbour's lane (contracts/moe_and_layers.md 8.4; rows 638.4, 638.5 and 660.7 of section 15, on the kernel's side)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from fault import Fault
from moe_testing import World
from torch import Tensor

from harness.devices.base import DeviceRun, KernelFault, KernelRefused
from harness.devices.emulator.device import EmulatorDevice, EmulatorKernel
from harness.devices.emulator.host import execute_host
from specs.registry import Op, load_op

RANKS = 4
SCHEDULES = range(3)


def load_dispatch(op: Op, depth: int | None = None, path: Path | None = None) -> EmulatorKernel:
    """moe_dispatch with lanes of `depth` rows, T where not given."""
    sizes = dict(op.sizes) | ({} if depth is None else {"RECV_MAX": depth * op.world})
    return EmulatorDevice().load(path or op.kernel, "moe_dispatch", sizes)


def run(kernel: EmulatorKernel, inputs: Mapping[str, Tensor], schedule: int) -> DeviceRun:
    return execute_host(kernel.entry, inputs, schedule, kernel.files, world=inputs["num_tokens"].shape[0])


def crowd(op: Op, load: int, experts: tuple[int, ...], rank: int = 1) -> dict[str, Tensor]:
    """Inputs in which `load` tokens of one rank name each of `experts`, and no two routes of a token coincide."""
    inputs = op.inputs()
    tokens, choices = inputs["indices"].shape[1:]
    others = torch.tensor([e for e in range(op.config.n_routed_experts) if e not in experts])
    free = others[torch.arange(tokens * choices) % len(others)].reshape(tokens, choices)
    free[:load, : len(experts)] = torch.tensor(experts)
    inputs["indices"][rank] = free.to(torch.int32)
    return inputs


@pytest.mark.parametrize("depth", [2, 4, 7])
def test_the_guard_fires_when_a_lane_is_one_row_too_short_and_not_before(depth: int) -> None:
    op = load_op("moe_dispatch", ep_world_size=RANKS)
    kernel = load_dispatch(op, depth)
    expert = 17
    for load, record in ((depth, [0, 0, 0, 0]), (depth + 1, [1, expert, depth + 1, depth])):
        inputs = crowd(op, load, (expert,))
        inputs["num_tokens"][[0, 2, 3]] = 0
        for schedule in SCHEDULES:
            result = run(kernel, inputs, schedule)
            assert result.findings == []
            assert result.outputs["overflow"].tolist() == [[0] * 4, record, [0] * 4, [0] * 4]


def test_a_rank_that_overflows_sends_nothing_and_disturbs_nobody() -> None:
    op = load_op("moe_dispatch", ep_world_size=RANKS)
    inputs = op.inputs()
    inputs["indices"][1] = 5  # every choice of every token
    without = inputs | {"num_tokens": torch.tensor([[8], [0], [8], [8]], dtype=torch.int32)}
    expected, valid = op.golden(without), op.valid(without)
    kernel = load_dispatch(op)
    for schedule in SCHEDULES:
        result = run(kernel, inputs, schedule)
        assert result.findings == []
        assert result.outputs["overflow"][1].tolist() == [1, 5, 48, 8]
        for name, value in expected.items():
            mask = valid[name]
            if name == "overflow":
                continue
            defined = torch.ones_like(value, dtype=torch.bool) if mask is None else mask
            assert torch.equal(result.outputs[name][defined], value[defined]), name


def test_the_lowest_expert_is_named() -> None:
    op = load_op("moe_dispatch", ep_world_size=RANKS)
    result = run(load_dispatch(op, 4), crowd(op, 6, (30, 9, 21)), 0)
    assert result.outputs["overflow"][1].tolist() == [1, 9, 6, 4]


def planted(tmp_path: Path, before: str, after: str) -> Path:
    return Fault("moe_dispatch", "planted", before, after, "overflow", "a test").write(tmp_path)[0]


def test_without_the_guard_rows_leave_their_lane(tmp_path: Path) -> None:
    op = load_op("moe_dispatch", ep_world_size=RANKS)
    path = planted(tmp_path, "if highest <= MAX_PER_SRC:", "if highest >= 0:")
    kernel = load_dispatch(op, path=path)
    inputs = op.inputs()
    inputs["indices"][:] = 5
    for schedule in SCHEDULES:
        result = run(kernel, inputs, schedule)
        assert "GG404" in {finding.code for finding in result.findings}
    inputs["indices"][:] = op.config.n_routed_experts - 1
    with pytest.raises(KernelFault, match="out of bounds"):
        run(kernel, inputs, 0)


@pytest.mark.parametrize("count", [9, -1])
def test_a_receiver_takes_no_count_that_a_lane_cannot_hold(count: int, tmp_path: Path) -> None:
    """Rank 1 publishes a count for the first expert of every rank, without having sent a row."""
    op = load_op("moe_dispatch", ep_world_size=RANKS)
    lying = "0:N_LOCAL] = loads"
    path = planted(
        tmp_path,
        f"            counts[peer : peer + 1, {lying}",
        f"            if my_rank == 1:\n                pl.write(loads, [0, 0], pl.const({count}, pl.INT32))\n"
        f"            counts[peer : peer + 1, {lying}",
    )
    inputs = op.inputs() | {"num_tokens": torch.zeros(RANKS, 1, dtype=torch.int32)}
    result = run(load_dispatch(op, path=path), inputs, 0)
    first = [rank * op.deployment.local_experts(op.config) for rank in range(RANKS)]
    assert result.outputs["overflow"].tolist() == [[1, expert, count, 8] for expert in first]
    assert not result.outputs["recv_meta"].any()
    assert not result.outputs["recv_count_out"].any()


def test_a_receiver_records_a_key_that_is_no_route(tmp_path: Path) -> None:
    op = load_op("moe_dispatch", ep_world_size=RANKS)
    path = planted(tmp_path, "pl.cast(t * TOPK + k, pl.INT32)", "pl.cast(t * TOPK + k + 48, pl.INT32)")
    inputs = op.inputs() | {"num_tokens": torch.tensor([[0], [0], [1], [0]], dtype=torch.int32)}
    expert = int(inputs["indices"][2, 0, 0])
    inputs["indices"][2, 0] = expert
    result = run(load_dispatch(op, path=path), inputs, 0)
    owner = expert // op.deployment.local_experts(op.config)
    assert result.outputs["overflow"][owner].tolist() == [2, expert, 53, 48]


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_whole_ffn_ends_and_says_so(ranks: int) -> None:
    """Row 638.5: a table with repeats overflows a lane; all ranks come to their end and one of them has a record."""
    op = load_op("moe", ep_world_size=ranks)
    inputs = op.inputs()
    inputs["tid2eid"][:] = 3
    device = EmulatorDevice()
    kernel = device.load(op.kernel, "moe", op.sizes)
    result = execute_host(kernel.entry, inputs, 1, kernel.files, world=ranks)
    assert result.findings == []
    assert result.outputs["overflow"].tolist() == [[rank, 3, 48, 8] for rank in range(ranks)]
    assert result.undefined["x_next"] is None


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "fires"), [(96, True), (1024, False)])
def test_the_depth_of_4_times_the_uniform_load_overflows(depth: int, fires: bool) -> None:
    """8.2: 8 ranks of 128 tokens, a table after Zipf: one expert has more than 75 % of all tokens; about 10 s."""
    op = load_op("moe_dispatch", deployment="prefill")
    inputs = op.inputs("skew_zipf")
    ids = inputs["indices"].flatten().long()
    hottest = int(ids.bincount().max())
    assert 769 <= hottest <= 1024
    result = run(load_dispatch(op, depth // op.world), inputs, 0)
    assert result.findings == []
    assert bool(result.outputs["overflow"].any()) == fires


def test_sizes_that_do_not_fit_are_refused() -> None:
    world = World.of(RANKS)
    for change, reason in (
        ({"RECV_MAX": 34}, "RECV_MAX = 34 does not divide over 4 sources"),
        ({"N_LOCAL": 8}, "4 ranks of 8 experts do not make N_EXPERTS = 64"),
        ({"N_LOCAL": 12, "N_EXPERTS": 48}, "N_LOCAL = 12 is not a multiple of 8"),
        ({"TOPK": 9}, "TOPK = 9 is more than 8"),
    ):
        with pytest.raises(KernelRefused, match=reason):
            EmulatorDevice().load(load_op("moe_dispatch").kernel, "moe_dispatch", dict(world.sizes) | change)


@pytest.mark.parametrize("tiles", ["pr672", "before_pr672"])
@pytest.mark.parametrize("deployment", ["decode", "decode_mtp", "prefill"])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_the_front_end_accepts_every_world(ranks: int, deployment: str, tiles: str) -> None:
    """`moe` splices in all of its parts; 32 experts per rank, as the model has."""
    op = load_op("moe", "flash", deployment, ep_world_size=ranks, n_routed_experts=32 * ranks)
    assert EmulatorDevice().load(op.kernel, "moe", op.sizes, tiles).function == "moe"
