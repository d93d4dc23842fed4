"""Vector lanes: `pl.split_aiv`, and what its two lanes and the cube unit hand each other (pypto_dsl.md 2.5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from harness.devices.emulator import enums
from harness.devices.emulator.fibers import Fiber, Wait, run_all, wait
from harness.devices.emulator.machine import fault, machine
from harness.devices.emulator.ops.common import as_tile
from harness.devices.emulator.regions import inside
from harness.devices.emulator.values import Tile, describe

# Calls that are the cube's wherever their operands are.
_CUBE_ALWAYS = frozenset(("matmul", "matmul_bias", "gemv", "gemv_bias", "batch_matmul", "create_l1"))


class Split:
    """What the two lanes of one pl.split_aiv share: the mode, and their meetings in the order of the text.

    In the split modes the cube unit works once for both lanes. The lane that comes first does its part, the other one
    gets the same result.
    """

    def __init__(self, mode: enums.SplitMode) -> None:
        self.mode = mode
        self._met = [0, 0]
        self._meetings: list[dict[Any, Any]] = []

    @property
    def axis(self) -> int:
        """The axis that is divided: rows or columns."""
        return -2 if self.mode is enums.SplitMode.UP_DOWN else -1

    def meet(self, lane: int) -> dict[Any, Any]:
        """The next meeting of this lane."""
        if self._met[lane] == len(self._meetings):
            self._meetings.append({})
        self._met[lane] += 1
        return self._meetings[self._met[lane] - 1]


def split_aiv(body: Callable[[int], Any], lanes: Any, *, mode: Any = enums.SplitMode.NONE) -> None:
    """`for lane in pl.split_aiv(2, mode=…)`: both vector lanes run the body, in any order (2.5)."""
    state = machine()
    region, unit = state.region, state.unit
    if region is None or region.split is not None:
        raise fault("pl.split_aiv belongs inside a compute region, not inside another pl.split_aiv")
    if type(lanes) is not int or lanes != 2:
        raise fault("pl.split_aiv takes the literal 2")
    if not isinstance(mode, enums.SplitMode):
        raise fault(f"pl.split_aiv: mode is a pl.SplitMode, not {describe(mode)}")
    after = unit.known
    split = Split(mode)

    def lane(index: int) -> Callable[[], None]:
        def go() -> None:
            nonlocal after
            own = state.new_unit(f"lane {index} of {unit.name}", unit.known, unit.task)
            with inside(region.of_lane(index, split), own):
                body(index)
                after |= state.unit.known

        return go

    if region.barrier is not None:
        region.barrier.participants = 2 * region.blocks
    run_all([Fiber(lane(i), f"lane {i} of {unit.name}") for i in state.schedule.order(2)], state.schedule.rng)
    state.region = region
    state.unit = state.new_unit(unit.name, after, unit.task)


def _lane_split(name: str) -> tuple[Split, int]:
    region = machine().region
    if region is None or region.split is None:
        raise fault(f"pl.{name} belongs inside pl.split_aiv")
    if region.split.mode is enums.SplitMode.NONE:
        machine().lint("GG306", f"pl.{name} under SplitMode.NONE hands its operand on")
    return region.split, region.lane


def aiv_shard(x: Any) -> Any:
    """This lane's half of a tile that comes from the cube side; of an odd extent lane 0 has one more (2.5)."""
    split, lane = _lane_split("aiv_shard")
    if split.mode is enums.SplitMode.NONE:
        return x
    meeting = split.meet(lane)
    if "whole" not in meeting:  # the cube may go on and change it before the other lane comes
        meeting["whole"] = _copied(as_tile(x, "aiv_shard"))
    tile: Tile = meeting["whole"]
    count = tile.shape[split.axis]
    first = (count + 1) // 2
    start, extent = (0, first) if lane == 0 else (first, count - first)
    offsets, shape = [0] * len(tile.shape), list(tile.shape)
    offsets[split.axis], shape[split.axis] = start, extent
    valid = [max(0, min(e, v - o)) for e, v, o in zip(shape, tile.valid, offsets, strict=True)]
    return _copied(tile.window(offsets, shape, valid))


def _copied(tile: Tile) -> Tile:
    taint = tile.taint
    copy = None if taint is None else taint.clone()
    return Tile.of(tile.data.clone(), tile.dtype, valid=tile.valid, taint=copy, name=tile.name)


def aic_gather(x: Any) -> Any:
    """Both lanes' halves joined for the cube side; each lane waits for the other (2.5)."""
    split, lane = _lane_split("aic_gather")
    if split.mode is enums.SplitMode.NONE:
        return x
    meeting = split.meet(lane)
    meeting[lane] = as_tile(x, "aic_gather")
    file, line = machine().where()
    wait(Wait(lambda: len(meeting) > 1, lambda: [f"waits for the other lane in pl.aic_gather at {file}:{line}"]))
    if "joined" not in meeting:
        upper, lower = meeting[0], meeting[1]
        if upper.shape != lower.shape or upper.dtype is not lower.dtype:
            raise fault(f"pl.aic_gather: the lanes bring {describe(upper)} and {describe(lower)}")
        taints = [torch.zeros(t.shape, dtype=torch.int32) if t.taint is None else t.taint for t in (upper, lower)]
        data = torch.cat([upper.data, lower.data], split.axis)
        meeting["joined"] = Tile.of(data, upper.dtype, taint=torch.cat(taints, split.axis), name="aic_gather")
    return meeting["joined"]


def on_cube(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """A call inside pl.split_aiv that may be the cube's: in the split modes it happens once for both lanes."""
    region = machine().region
    split = None if region is None else region.split
    if region is None or split is None or split.mode is enums.SplitMode.NONE:
        return function(*arguments, **keywords)
    cube = any(isinstance(a, Tile) and a.space != "Vec" for a in (*arguments, *keywords.values()))
    if not cube and getattr(function, "__name__", "") not in _CUBE_ALWAYS:
        return function(*arguments, **keywords)
    meeting = split.meet(region.lane)
    if "result" not in meeting:
        meeting["result"] = function(*arguments, **keywords)
    return meeting["result"]
