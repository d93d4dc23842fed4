"""The state of one emulated run: schedule, region, findings, origins of undefined memory, source positions.

One run is active at a time per thread of control; ops reach it through `machine()`. Nothing else in the emulator is
global.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import TYPE_CHECKING, Any

from harness.devices.base import Finding
from harness.devices.emulator import lint
from harness.devices.emulator.current import fault, machine, running  # where most modules import them from
from harness.devices.emulator.ledger import Ledger
from harness.devices.emulator.tasks import Tasks
from harness.devices.emulator.units import Unit
from harness.devices.emulator.variance import Schedule

if TYPE_CHECKING:
    from harness.devices.emulator.order import Order, Race
    from harness.devices.emulator.values import Storage, Tensor, View
    from harness.devices.emulator.world import World

VECTOR_BYTES = 184 * 1024  # what the allocator may use of a vector core's memory


@dataclass(frozen=True)
class Region:
    """Where compute ops may run: the body of a `pl.at`, of one block of a `pl.spmd`, or an incore function.

    `phase` counts the barriers that this block or lane has passed; `barrier` is its dispatch's (`regions.Barrier`).
    """

    kind: str  # "at" | "spmd" | "incore"
    block: int = 0
    blocks: int = 1
    lane: int = 0
    lanes: int = 1
    phase: int = 0
    barrier: Any = None
    split: Any = None  # `lanes.Split` inside pl.split_aiv
    ledger: Ledger = field(default_factory=Ledger)

    def next_phase(self) -> Region:
        return replace(self, phase=self.phase + 1)

    def of_lane(self, lane: int, split: Any) -> Region:
        return replace(self, lane=lane, lanes=2, split=split, ledger=Ledger())


@dataclass
class Scope:
    """A runtime scope of orchestration. `born` are the storages created inside; they die with it."""

    manual: bool
    born: list[Storage] = field(default_factory=list)
    nbytes: int = 0


@dataclass
class Machine:
    """One run of one entry. `files` are the kernel sources; a frame of theirs is a source position."""

    schedule: Schedule
    files: set[str]
    order: Order | None = None  # None: accesses are not checked
    warnings: bool = True  # False: findings of that severity are not collected
    unit: Unit = field(default_factory=lambda: Unit(0, "orchestration", 1))
    rank: int = 0
    world: World | None = None  # the ranks this run belongs to, None for a single chip
    region: Region | None = None
    findings: list[Finding] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
    scopes: list[Scope] = field(default_factory=list)
    scratch: int = 0  # bytes of GM created outside any explicit scope
    wanted: frozenset[str] = frozenset()  # names of intermediates to keep
    kept: dict[str, tuple[bool, Tensor]] = field(default_factory=dict)  # name -> (created by the entry itself, tensor)
    collectives: dict[int, int] = field(default_factory=dict)  # signal -> uses in this run
    _origins: list[str] = field(default_factory=list)
    _numbers: dict[str, int] = field(default_factory=dict)
    _seen: set[tuple[str, str, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.tasks = Tasks(self.schedule.rng)

    def join(self, host: Machine) -> None:
        """Become a rank of the run of `host`: one list of findings, of counters, and of the origins of undefined
        memory, whose marks travel from rank to rank."""
        self.findings, self._seen = host.findings, host._seen
        self.counters = host.counters
        self._origins, self._numbers = host._origins, host._numbers

    def where(self) -> tuple[str, int]:
        """File and line of the innermost kernel frame; ("<kernel>", 0) outside a kernel."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_filename in self.files:
                return frame.f_code.co_filename, frame.f_lineno
            frame = frame.f_back
        return "<kernel>", 0

    def origin(self, text: str) -> int:
        """A number (from 1) that marks undefined memory; `origin_text` tells what it was and where it was born.

        The same text at the same line gets the same number, so a loop does not grow the list.
        """
        file, line = self.where()
        full = f"{text} ({file}:{line})" if line else text
        number = self._numbers.get(full)
        if number is None:
            self._origins.append(full)
            number = self._numbers[full] = len(self._origins)
        return number

    def origin_text(self, number: int) -> str:
        return self._origins[number - 1]

    def lint(self, code: str, message: str) -> None:
        """Record the finding `code` at the current source line, once per line."""
        rule = lint.rule(code)
        if not self.warnings and rule.severity != "error":
            return
        file, line = self.where()
        if (code, file, line) not in self._seen:
            self._seen.add((code, file, line))
            self.findings.append(Finding(code=code, message=message, file=file, line=line, severity=rule.severity))

    @contextmanager
    def scope(self, *, manual: bool) -> Iterator[None]:
        """Enter a runtime scope; at its end, memory born inside is dead."""
        _, line = self.where()
        self.scopes.append(Scope(manual))
        yield
        self.tasks.drain()  # memory is released when the scope and its tasks end
        for storage in self.scopes.pop().born:
            storage.dead = f"the end of the scope that created it (line {line})"

    def born(self, storage: Storage) -> None:
        """Register GM memory created in orchestration with the innermost runtime scope."""
        size = storage.data.nbytes
        if self.scopes:
            self.scopes[-1].born.append(storage)
            self.scopes[-1].nbytes += size
        else:
            self.scratch += size
        self.peak("peak_scratch_bytes", self.scratch + sum(scope.nbytes for scope in self.scopes))

    def keep(self, name: str, tensor: Tensor, *, outer: bool) -> None:
        """Keep an intermediate that is wanted. One of the entry itself stands before those of inlines, later ones
        before earlier ones."""
        if name in self.wanted and (outer or not self.kept.get(name, (False, tensor))[0]):
            self.kept[name] = outer, tensor

    def new_unit(self, name: str, known: int, task: int | None) -> Unit:
        """A place in the order that starts with the knowledge `known`."""
        if self.order is None:
            return Unit(0, name, known, rank=self.rank, task=task)
        return self.order.unit(name, known, rank=self.rank, task=task)

    def joint_readers(self, task: int) -> int:
        """What whoever waits for a task learns besides what its blocks knew: who in it reads the same elements."""
        return 0 if self.order is None else self.order.joint(self.rank, task)

    def await_tasks(self, view: Tensor, *, readers: bool) -> None:
        """Orchestration touches `view`: run the tasks that write it (with `readers`, also that read it) first."""
        self.unit.known |= self.tasks.finish(self.tasks.of(view, readers=readers))

    def reads(self, view: View) -> None:
        """Record that the running unit reads global memory."""
        if self.order is not None and not view.storage.readonly:
            file, line = self.where()
            race = self.order.read(self.unit, view, file, line)
            if race is not None:
                self._race(race)

    def writes(self, view: View, *, atomic: bool = False) -> None:
        """Record that the running unit writes global memory."""
        if self.order is not None:
            file, line = self.where()
            race = self.order.write(self.unit, view, file, line, atomic=atomic)
            if race is not None:
                self._race(race)

    def _race(self, race: Race) -> None:
        first, unit = race.first, self.unit
        did, does = race.kind.split("-")
        they = "several others" if first is None else f"{first} also"
        text = f"{unit.name} {does}s element {race.element} of {race.storage}, which {they} {did}{'s' if first else ''}"
        if first is not None and first.rank != unit.rank:
            self.lint("GG404", f"{text}: nothing orders the two ranks")
        elif first is not None and first.task is not None and first.task == unit.task:
            self.lint("GG401", f"{text}: blocks and lanes of one dispatch are not ordered")
        elif race.kind == "read-write":
            self.lint("GG403", f"{text}: the runtime does not make a writer wait for readers")
        else:
            self.lint("GG402", f"{text}: no dependency orders the two tasks")

    def peak(self, name: str, amount: int) -> None:
        """A counter that keeps its maximum."""
        self.counters[name] = max(self.counters.get(name, 0), amount)

    def allocated(self, storage: Storage) -> None:
        """Count an on-chip buffer of the running block; its operands and the names still to be read are alive."""
        region = self.region
        if region is None or self.order is None:
            return
        ledger, nbytes = region.ledger, storage.data.nbytes
        if ledger.computed > VECTOR_BYTES and storage.space == "Vec" and not ledger.spliced and region.split is None:
            self.lint("GG102", f"{ledger.computed} bytes of tiles are alive in Vec, {VECTOR_BYTES} are usable")
        ledger.add(storage.space, nbytes)
        if storage.computed:
            ledger.computed += nbytes
        storage.ledger = ledger

    def count(self, name: str, amount: int = 1) -> None:
        self.counters[name] = self.counters.get(name, 0) + amount


__all__ = ["VECTOR_BYTES", "Machine", "Region", "Scope", "fault", "machine", "running"]
