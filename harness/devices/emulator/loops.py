"""Loops at run time, and what becomes of names in them (pypto_dsl.md 1.3, 1.5, 2.6)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from harness.devices.emulator.machine import Machine, fault, machine
from harness.devices.emulator.regions import TaskId, TaskIds
from harness.devices.emulator.values import Scalar, Tile, View, as_int, describe, scalar_dtype


def _bounds(kind: str, bounds: tuple[Any, ...]) -> range:
    if not 1 <= len(bounds) <= 3:
        raise fault(f"pl.{kind} takes 1 to 3 bounds, got {len(bounds)}")
    values = [as_int(b, f"bound of pl.{kind}") for b in bounds]
    if len(values) == 3 and values[2] <= 0 and kind != "unroll":
        raise fault(f"pl.{kind} with step {values[2]}: loops never count down")
    if len(values) == 3 and values[2] == 0:
        raise fault("pl.unroll with step 0")
    return range(*values)


def range_(*bounds: Any) -> Iterable[int]:
    return _bounds("range", bounds)


def pipeline_(*bounds: Any, stage: Any = None) -> Iterable[int]:
    """Sequential semantics; `stage` copies of the body's tiles cost capacity, not bits."""
    if type(stage) is not int or stage < 1:
        raise fault("pl.pipeline needs a constant stage= of at least 1")
    return _bounds("pipeline", bounds)


def unroll_(*bounds: Any) -> Iterable[int]:
    return _bounds("unroll", bounds)


def parallel_(*bounds: Any) -> Iterable[int]:
    """Iterations are asserted independent: in orchestration their order is the schedule's, in a kernel plain."""
    steps = _bounds("parallel", bounds)
    run = machine()
    return steps if run.region is not None else _unordered(run, steps)


def _unordered(run: Machine, steps: range) -> Iterator[int]:
    loops = run.tasks.loops
    loop = run.tasks.new_loop()
    for position in run.schedule.order(len(steps)):
        loops[loop] = position
        yield steps[position]
    loops.pop(loop, None)


class ParallelIds:
    """Task ids that a pl.parallel loop carries: every iteration starts with the one from before the loop, and after the
    loop the name stands for the ids of all iterations (2.6). Other values pass through."""

    def __init__(self) -> None:
        self._before: dict[str, Any] = {}
        self._found: dict[str, list[Any]] = {}

    def enter(self, name: str, value: Any) -> Any:
        """The name at the start of an iteration."""
        before = self._before.setdefault(name, value)
        return before if isinstance(value, (TaskId, TaskIds)) else value

    def leave(self, name: str, value: Any) -> Any:
        """The name at the end of an iteration."""
        if isinstance(value, TaskId):
            self._found.setdefault(name, []).append(value.task)
        return value

    def all(self, name: str, value: Any) -> Any:
        """The name after the loop."""
        return TaskIds(tuple(self._found[name])) if name in self._found and isinstance(value, TaskId) else value


# -- carried names ---------------------------------------------------------------------------------


class Unassigned:
    """What a name stands for after a loop of zero iterations that would have assigned it; no op accepts it."""


UNASSIGNED = Unassigned()


class Released:
    """What a name stands for after its last use: the tile is gone, its type is known."""

    __slots__ = ("type",)

    def __init__(self, of: View) -> None:
        self.type = of.dtype, of.shape


def release(value: Any) -> Any:
    """A name after its last use: a tile is let go."""
    return Released(value) if isinstance(value, Tile) else value


def carried(name: str, old: Any, new: Any) -> Any:
    """A name of an outer level that a loop or branch assigns: it keeps its kind, dtype and shape (1.5)."""
    if old is new or old is UNASSIGNED:
        return new
    before, now = _type_of(old), _type_of(new)
    if before != now:
        raise fault(f"{name} is {_words(old)} and becomes {describe(new)} in a loop or branch", "GG310")
    return new


def _words(value: Any) -> str:
    return f"a tile {list(value.type[1])} {value.type[0]}" if isinstance(value, Released) else describe(value)


def _type_of(value: Any) -> tuple[Any, ...]:
    if isinstance(value, View):
        return value.dtype, value.shape
    if isinstance(value, Released):
        return value.type
    if isinstance(value, (int, float, Scalar)):
        return (scalar_dtype(value),)
    return ("task id",) if value is None or isinstance(value, (TaskId, TaskIds)) else (type(value),)
