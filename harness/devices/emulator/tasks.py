"""Tasks of one rank: what each waits for, and in which order they run (pypto_dsl.md 2.3).

Schedule 0 runs a task where it is submitted. Any other schedule queues it and later runs a random task whose
dependencies are done, so that every legal order can occur. Dependencies follow the runtime's rules: a task that reads
a tensor waits for earlier registered writers of an overlapping region; one that writes it waits too, unless both stand
in different iterations of a `pl.parallel`; readers are not waited for; in a manual scope only `deps=`
counts and nothing is registered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from harness.devices.emulator.fibers import Fiber, Wait, pass_on, wait, waiting_texts
from harness.devices.emulator.units import Unit

if TYPE_CHECKING:
    from harness.devices.emulator.values import Storage, Tensor
    from harness.devices.emulator.variance import Schedule


@dataclass(frozen=True)
class Span:
    """The elements [low, high) of a storage that a view can reach."""

    storage: Storage
    low: int
    high: int

    @classmethod
    def of(cls, view: Tensor) -> Span:
        reach = sum((n - 1) * s for n, s in zip(view.shape, view.strides, strict=True)) if 0 not in view.shape else -1
        return cls(view.storage, view.offset, view.offset + reach + 1)

    def covers(self, other: Span) -> bool:
        return self.storage is other.storage and self.low <= other.low and other.high <= self.high

    def overlaps(self, other: Span) -> bool:
        return self.storage is other.storage and self.low < other.high and other.low < self.high


@dataclass(eq=False)
class Task:
    """One submitted task. `run(task)` executes it; `after` is what is known once it is done."""

    number: int
    name: str
    run: Callable[[Task], None]
    reads: tuple[Span, ...]
    writes: tuple[Span, ...]
    manual: bool
    loops: dict[int, int]  # pl.parallel loop -> iteration
    waits: set[Task] = field(default_factory=set)
    start: int = 0
    after: int = 0
    done: bool = False

    def apart(self, other: Task) -> bool:
        """Whether the two stand in different iterations of one pl.parallel."""
        return any(other.loops.get(loop, step) != step for loop, step in self.loops.items())


class Tasks:
    """The queue and the dependency graph of one rank."""

    def __init__(self, rng: np.random.Generator | None) -> None:
        self._rng = rng
        self._readers: dict[int, list[tuple[Span, Task]]] = {}  # by the identity of the storage
        self._writers: dict[int, list[tuple[Span, Task]]] = {}
        self._unregistered: list[Task] = []
        self._queue: list[Task] = []
        self._running: dict[Task, Fiber] = {}  # started and waiting for something
        self._count = 0
        self._loops = 0
        self.loops: dict[int, int] = {}  # the pl.parallel iterations that orchestration is in

    def reseed(self, schedule: Schedule) -> None:
        """Draw from a stream of its own: the ranks of a world must not move in step."""
        self._rng = schedule.rng

    def settle(self) -> int:
        """Run everything to its end and forget it; what is known then. Between the dispatches of a rank."""
        self.drain()
        known = 0
        for found in (*self._readers.values(), *self._writers.values()):
            for _, task in found:
                known |= task.after
        for task in self._unregistered:
            known |= task.after
        self._readers.clear()
        self._writers.clear()
        self._unregistered.clear()
        return known

    def new_loop(self) -> int:
        """An identity for one run of a pl.parallel loop."""
        self._loops += 1
        return self._loops

    def submit(
        self,
        name: str,
        run: Callable[[Task], None],
        orchestrator: Unit,
        *,
        reads: Iterable[Tensor] = (),
        writes: Iterable[Tensor] = (),
        deps: Iterable[Task] = (),
        manual: bool = False,
    ) -> Task:
        """Add a task, and run it or some others as the schedule wants."""
        self._count += 1
        task = Task(
            self._count,
            name,
            run,
            tuple(Span.of(t) for t in reads if not t.manual_dep),
            tuple(Span.of(t) for t in writes if not t.manual_dep),
            manual,
            dict(self.loops),
            start=orchestrator.known,
        )
        task.waits |= set(deps)
        if not manual:
            task.waits |= set(self._earlier_writers(task))
            self._register(task)
        if manual or not (task.reads or task.writes):
            self._unregistered.append(task)
        self._queue.append(task)
        if self._rng is None:
            if all(earlier.done for earlier in task.waits):
                self._go_on(task)
        else:
            while self._rng.random() < 0.5 and (ready := self._startable()):
                self._go_on(ready[int(self._rng.integers(len(ready)))])
        return task

    def _startable(self) -> list[Task]:
        return [t for t in self._queue if all(w.done for w in t.waits)]

    def _earlier_writers(self, task: Task) -> Iterable[Task]:
        for span in task.reads:
            yield from (t for s, t in self._writers.get(id(span.storage), ()) if s.overlaps(span))
        for span in task.writes:
            found = self._writers.get(id(span.storage), ())
            yield from (t for s, t in found if s.overlaps(span) and not task.apart(t))

    def _register(self, task: Task) -> None:
        for span in task.reads:
            self._readers.setdefault(id(span.storage), []).append((span, task))
        for span in task.writes:
            found = self._writers.setdefault(id(span.storage), [])
            # Who waits for this task waits for the writers it covers: they need not be found again.
            found[:] = [(s, t) for s, t in found if not (span.covers(s) and t in task.waits)]
            found.append((span, task))

    def of(self, view: Tensor, *, readers: bool) -> list[Task]:
        """Registered tasks that write (with `readers`, also that read) memory of `view`: what pl.read and pl.write
        in orchestration wait for."""
        span = Span.of(view)
        found = list(self._writers.get(id(view.storage), ()))
        if readers:
            found += self._readers.get(id(view.storage), ())
        return [t for s, t in found if s.overlaps(span)]

    def finish(self, tasks: Iterable[Task] | None = None) -> int:
        """Run these tasks and what they wait for, or all; what is known once they are done."""
        wanted = list(tasks) if tasks is not None else [*self._queue, *self._running]
        known = 0
        for task in wanted:
            while not task.done:
                self._advance(_needed(task))
            known |= task.after
        return known

    def drain(self) -> None:
        """Run everything to its end, in a drawn order."""
        while self._queue or self._running:
            self._advance(None)

    def _advance(self, only: set[Task] | None) -> None:
        """Start or resume one task (of `only`, where that is given and one of them can go on); wait when none can."""
        able = [t for t, fiber in self._running.items() if fiber.runnable] + self._startable()
        if not able:
            fibers = list(self._running.values())
            wait(Wait(lambda: any(f.runnable for f in fibers), lambda: waiting_texts(fibers)))
            return
        preferred = [t for t in able if only is None or t in only] or able
        self._go_on(preferred[0] if self._rng is None else preferred[int(self._rng.integers(len(preferred)))])

    def _go_on(self, task: Task) -> None:
        """Start a queued task or resume a running one. A task that must wait lets others go first: they run on other
        cores."""
        fiber = self._running.get(task)
        if fiber is None:
            self._queue.remove(task)
            for earlier in task.waits:
                task.start |= earlier.after
            fiber = self._running[task] = Fiber(lambda: task.run(task), f"task {task.name}")
        fiber.resume()
        if fiber.done:
            del self._running[task]
            task.done = True
        else:
            pass_on(fiber)


def _needed(task: Task) -> set[Task]:
    """The task and everything unfinished that it waits for."""
    found, todo = {task}, [task]
    while todo:
        for earlier in todo.pop().waits:
            if not earlier.done and earlier not in found:
                found.add(earlier)
                todo.append(earlier)
    return found
