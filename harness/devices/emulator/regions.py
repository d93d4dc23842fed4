"""Compute regions: `pl.at`, `pl.spmd` with its blocks and barriers (pypto_dsl.md 2.2, 2.4).

A region is a task. Its blocks are fibers and units of order of their own, and so are the `lanes` of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from harness.devices.emulator import enums
from harness.devices.emulator.fibers import Fiber, Wait, run_all, wait
from harness.devices.emulator.machine import Machine, Region, fault, machine
from harness.devices.emulator.tasks import Task
from harness.devices.emulator.units import Unit
from harness.devices.emulator.values import Array, Tensor, as_int, describe

CORES = 24  # cube cores of the 910B: what a hard barrier needs


@dataclass(frozen=True)
class TaskId:
    """An opaque task id; `None` is the invalid one."""

    task: Task


@dataclass(frozen=True)
class TaskIds:
    """The ids of all iterations of a pl.parallel loop (2.6)."""

    tasks: tuple[Task, ...]


class Barrier:
    """The syncalls of one dispatch. Every participant arrives once per phase; knowledge is merged when all have."""

    def __init__(self, participants: int) -> None:
        self.participants = participants
        self.known: list[int] = []  # per phase
        self.arrived: list[int] = []

    def arrive(self, phase: int, known: int) -> None:
        if phase == len(self.arrived):
            self.arrived.append(0)
            self.known.append(0)
        self.arrived[phase] += 1
        self.known[phase] |= known


# -- tasks --------------------------------------------------------------------------------------


def dependencies(deps: Any) -> list[Task]:
    """`deps=` holds task ids, None, or one whole array of them; None contributes nothing (2.6)."""
    if deps is None:
        return []
    entries = deps.cells if isinstance(deps, Array) else deps
    if not isinstance(entries, list):
        raise fault(f"deps= takes a list of task ids, not {describe(deps)}")
    found: list[Task] = []
    for entry in entries:
        if isinstance(entry, TaskId):
            found.append(entry.task)
        elif isinstance(entry, TaskIds):
            found += entry.tasks
        elif isinstance(entry, Array) and len(entries) == 1:
            found += dependencies(entry)
        elif entry is not None:
            raise fault(f"deps= takes task ids, not {describe(entry)}")
    return found


def submit(
    name: str, run: Callable[[Task], None], reads: Iterable[Any], writes: Iterable[Any], deps: Any, no_dep: Any = None
) -> Task:
    """Hand one task to the scheduler of this rank."""
    state = machine()
    if state.region is not None:
        raise fault(f"{name} inside pl.{state.region.kind} is refused: compute regions do not nest")
    free = {id(t.storage) for t in no_dep or () if isinstance(t, Tensor)}
    line = state.where()[1]
    state.count("tasks")
    return state.tasks.submit(
        f"{name} ({line})" if line else name,
        run,
        state.unit,
        reads=[t for t in reads if isinstance(t, Tensor) and id(t.storage) not in free],
        writes=[t for t in writes if isinstance(t, Tensor) and id(t.storage) not in free],
        deps=dependencies(deps),
        manual=bool(state.scopes and state.scopes[-1].manual),
    )


@contextmanager
def inside(region: Region, unit: Unit) -> Iterator[Machine]:
    """Run the enclosed code as `unit` in `region`, then put back what was."""
    state = machine()
    before = state.region, state.unit
    state.region, state.unit = region, unit
    try:
        yield state
    finally:
        for space, nbytes in region.ledger.peak.items():
            state.peak(f"peak_{space.lower()}_bytes", nbytes)
        state.region, state.unit = before


def _snapshot(body: Callable[..., Any]) -> dict[str, Any]:
    """The outer values that a rewritten body took along, by name."""
    defaults = body.__defaults__ or ()
    code = body.__code__
    names = code.co_varnames[: code.co_argcount]
    return dict(zip(names[len(names) - len(defaults) :], defaults, strict=True))


# -- pl.at --------------------------------------------------------------------------------------


def at(
    body: Callable[[], tuple[Any, ...]],
    level: Any = None,
    role: Any = None,
    *,
    gg_reads: tuple[str, ...],
    gg_writes: tuple[str, ...],
    gg_kept: tuple[str, ...],
    gg_stable: bool,
    optimizations: Any = None,
    deps: Any = None,
    no_dep_args: Any = None,
    dumps: Any = None,
    allow_early_resolve: bool = False,
    name_hint: str = "",
    windowize: bool = False,
) -> tuple[TaskId, tuple[Any, ...]]:
    """`with pl.at(…)`: one compute kernel, one task (2.2). Returns its id and the names it assigned.

    `gg_reads` and `gg_writes` name the outer tensors of the body. `gg_kept` are the names whose values leave it;
    `gg_stable` tells that each stays the tensor it was, so that the task may run later.
    """
    if not isinstance(level, enums.Level):
        raise fault("pl.at needs a level, e.g. level=pl.Level.CORE_GROUP")
    outer = _snapshot(body)
    outputs: list[tuple[Any, ...]] = []

    def run(task: Task) -> None:
        unit = machine().new_unit(task.name, task.start, task.number)
        with inside(Region("at"), unit) as state:
            outputs.append(body())
            task.after = task.start | state.unit.known | state.joint_readers(task.number)

    reads, writes = [outer.get(n) for n in gg_reads], [outer.get(n) for n in gg_writes]
    task = submit(name_hint or "pl.at", run, reads, writes, deps, no_dep_args)
    if not task.done and not (gg_stable and all(isinstance(outer.get(n), Tensor) for n in gg_kept)):
        machine().tasks.finish([task])
    return TaskId(task), outputs[0] if task.done else tuple(outer[n] for n in gg_kept)


# -- pl.spmd ------------------------------------------------------------------------------------


def spmd(
    body: Callable[[int], Any],
    core_num: Any,
    *,
    gg_reads: tuple[str, ...],
    gg_writes: tuple[str, ...],
    sync_start: bool = False,
    name_hint: str = "",
    optimizations: Any = None,
    deps: Any = None,
    allow_early_resolve: bool = False,
    predicate: Any = None,
) -> TaskId:
    """One task of `core_num` blocks in any order (2.4); the order is the schedule's."""
    outer = _snapshot(body)
    reads, writes = [outer.get(n) for n in gg_reads], [outer.get(n) for n in gg_writes]
    return dispatch(name_hint or "pl.spmd", body, core_num, reads, writes, deps, sync_start)


def dispatch(
    name: str,
    body: Callable[[int], Any],
    core_num: Any,
    reads: Iterable[Any],
    writes: Iterable[Any],
    deps: Any,
    sync_start: bool = False,
) -> TaskId:
    """Submit a task of `core_num` blocks."""
    count = as_int(core_num, "block count of pl.spmd")
    if count < 0:
        raise fault(f"pl.spmd with {count} blocks")
    if sync_start and count > CORES:
        machine().lint("GG311", f"sync_start of {count} blocks: only {CORES} cores can start at once")
    if count == 0:
        machine().lint("GG304", "pl.spmd is launched with 0 blocks")
    machine().count("blocks", count)

    def run(task: Task) -> None:
        state = machine()
        barrier = Barrier(count)
        after = task.start

        def block(index: int) -> Callable[[], None]:
            def go() -> None:
                nonlocal after
                unit = state.new_unit(f"block {index} of {task.name}", task.start, task.number)
                with inside(Region("spmd", index, count, barrier=barrier), unit):
                    body(index)
                    after |= state.unit.known

            return go

        order = state.schedule.order(count)
        run_all([Fiber(block(i), f"block {i} of {task.name}") for i in order], state.schedule.rng)
        task.after = after | state.joint_readers(task.number)

    return TaskId(submit(name, run, reads, writes, deps))


def syncall(
    *,
    core_type: str = "mix",
    mode: str = "hard",
    gm_workspace: Any = None,
    used_cores: Any = None,
    **_: Any,
) -> None:
    """`pl.system.syncall`: every block of the dispatch arrives, then all go on and see what the others wrote (2.4)."""
    state = machine()
    region = state.region
    if region is None or region.barrier is None:
        raise fault("pl.system.syncall belongs inside a pl.spmd dispatch")
    if mode not in ("hard", "soft") or core_type not in ("mix", "aiv_only", "aic_only"):
        raise fault(f"pl.system.syncall(core_type={core_type!r}, mode={mode!r}) does not exist")
    if mode == "hard" and region.blocks != CORES:
        state.lint("GG305", f"a hard syncall in a dispatch of {region.blocks} blocks: {CORES} cores must all arrive")
    if mode == "soft" and not isinstance(gm_workspace, Tensor):
        raise fault("a soft syncall needs gm_workspace=, an INT32 tensor")
    barrier: Barrier = region.barrier
    phase = region.phase
    barrier.arrive(phase, state.unit.known)
    file, line = state.where()

    def texts() -> list[str]:
        return [f"waits at the syncall {file}:{line} where {barrier.arrived[phase]} of {barrier.participants} arrived"]

    wait(Wait(lambda: barrier.arrived[phase] >= barrier.participants, texts))
    state.region = region.next_phase()
    state.unit = state.new_unit(state.unit.name, state.unit.known | barrier.known[phase], state.unit.task)
