"""Several ranks in one process: windows, signals, the dispatches of a host program (pypto_dsl.md section 4).

Every rank is a fiber with a machine of its own. Ranks switch where they communicate; which one goes next is drawn by
the schedule, so every interleaving can be replayed. Order between ranks comes from notify and wait only: a notify
leaves what its unit knows at the cell, a wait that succeeds takes it up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from harness.devices.emulator.dtypes import DType
from harness.devices.emulator.fibers import Fiber, run_all
from harness.devices.emulator.machine import Machine, fault, running
from harness.devices.emulator.order import Order
from harness.devices.emulator.values import Storage, Tensor, row_major
from harness.devices.emulator.variance import Schedule


@dataclass(eq=False)
class WindowBuffer:
    """`pld.alloc_window_buffer`: the same number of zero bytes on every rank, typed when a window is laid on it."""

    name: str
    nbytes: int
    ranks: int
    _typed: dict[DType, tuple[Storage, ...]] = field(default_factory=dict)
    _bytes: tuple[torch.Tensor, ...] = ()

    def storages(self, dtype: DType) -> tuple[Storage, ...]:
        """The memory of every rank as elements of `dtype`."""
        if not self._bytes:
            self._bytes = tuple(torch.zeros(self.nbytes, dtype=torch.uint8) for _ in range(self.ranks))
        if dtype not in self._typed:
            if dtype.storage is None or self.nbytes % dtype.nbytes:
                raise fault(f"a window buffer of {self.nbytes} bytes cannot hold {dtype}")
            self._typed[dtype] = tuple(
                Storage(data.view(dtype.storage), dtype, f"{self.name} of rank {rank}", "GM")
                for rank, data in enumerate(self._bytes)
            )
        return self._typed[dtype]


@dataclass(frozen=True)
class Window:
    """`pld.window`: a typed view of a buffer, before it is handed to a rank."""

    buffer: WindowBuffer
    shape: tuple[int, ...]
    dtype: DType

    def on(self, rank: int) -> WindowTensor:
        """The rank's own copy, from which the others are reached."""
        ranks = self.buffer.storages(self.dtype)
        if not 0 <= rank < len(ranks):
            raise fault(f"device={rank}: the world has ranks 0..{len(ranks) - 1}")
        return WindowTensor(ranks, rank, self.dtype, self.shape, row_major(self.shape), 0)


class WindowTensor(Tensor):
    """A window as a kernel sees it: the own rank's copy, like any GM tensor; `peer(p)` is the same place on rank p."""

    __slots__ = ("rank", "ranks")

    def __init__(
        self,
        ranks: tuple[Storage, ...],
        rank: int,
        dtype: DType,
        shape: Sequence[int],
        strides: Sequence[int],
        offset: int,
    ) -> None:
        super().__init__(ranks[rank], dtype, shape, strides, offset)
        self.ranks = ranks
        self.rank = rank

    def window(self, offsets: Sequence[int], shape: Sequence[int]) -> WindowTensor:
        return WindowTensor(self.ranks, self.rank, self.dtype, shape, self.strides, self._window(offsets))

    def peer(self, rank: int) -> Tensor:
        """The same region on another rank, or on this one."""
        if not 0 <= rank < len(self.ranks):
            raise fault(f"peer {rank} of {self.name}: the world has ranks 0..{len(self.ranks) - 1}")
        return Tensor(self.ranks[rank], self.dtype, self.shape, self.strides, self.offset)


@dataclass
class Gathering:
    """One call of a collective: the data of the ranks that have arrived, and what they knew."""

    data: dict[int, torch.Tensor] = field(default_factory=dict)
    known: int = 0


@dataclass
class Cell:
    """What has been notified to one signal cell since it was last set: the amount of each notify and what its unit
    knew."""

    notifies: list[tuple[int, int]] = field(default_factory=list)

    def guaranteed(self, value: int, wanted: int, *, exact: bool) -> int:
        """What is known once the cell, now at `value`, has reached `wanted`.

        A counter does not tell who counted. Where one notify more has arrived than was waited for, only what all but
        one of them knew is certain, and so on: a site counts when too few notifies are left that do not know it.
        """
        spare = value - wanted
        if exact or spare <= 0 or any(amount != 1 for amount, _ in self.notifies):
            spare = 0
        levels = [0] * (spare + 1)  # levels[i]: known to more than i notifies
        for _, known in self.notifies:
            for i in range(spare, 0, -1):
                levels[i] |= levels[i - 1] & known
            levels[0] |= known
        return levels[spare]


class World:
    """The ranks of one run. `residency` maps tensors of the host entry to their mode: a rank number or "stacked"."""

    def __init__(
        self,
        size: int,
        schedule: int,
        files: set[str],
        residency: dict[str, int | str] | None = None,
        *,
        checks: bool = True,
    ) -> None:
        self.size = size
        self.order = Order()
        self.residency = residency or {}
        self.cells: dict[tuple[int, int], Cell] = {}  # by storage and element
        self.gatherings: dict[tuple[int, int], Gathering] = {}
        self.buffers = 0
        order = self.order if checks else None
        self.host = Machine(schedule=Schedule(schedule), files=files, order=order, warnings=checks, world=self)
        self.machines = [
            Machine(schedule=Schedule(schedule), files=files, order=order, warnings=checks, world=self, rank=rank)
            for rank in range(size)
        ]
        for machine in self.machines:
            machine.unit = self.order.unit(f"rank {machine.rank}", 0, rank=machine.rank)
            machine.join(self.host)
            machine.schedule = Schedule(schedule)
            machine.tasks.reseed(Schedule(schedule * 1009 + machine.rank + 1) if schedule else machine.schedule)
        self._queues: list[list[Callable[[], Any]]] = [[] for _ in range(size)]
        self._resident: set[tuple[str, int]] = set()

    def dispatch(self, rank: int, run: Callable[[], Any]) -> None:
        """Queue a child for a rank; it runs when the host program has submitted everything."""
        if not 0 <= rank < self.size:
            raise fault(f"device={rank}: the world has ranks 0..{self.size - 1}")
        self._queues[rank].append(run)

    def run(self) -> None:
        """Run the queues of all ranks concurrently, each in its order."""

        def program(rank: int) -> Callable[[], None]:
            def go() -> None:
                machine = self.machines[rank]
                machine.unit.known |= self.host.unit.known
                with running(machine):
                    for child in self._queues[rank]:
                        child()
                        machine.unit.known |= machine.tasks.settle()
                    self._queues[rank].clear()

            return go

        with running(self.host):
            run_all([Fiber(program(r), f"rank {r}") for r in range(self.size)], self.host.schedule.rng)
            for machine in self.machines:
                self.host.unit.known |= machine.unit.known

    def transfer(self, tensor: Tensor, name: str, rank: int, direction: str) -> None:
        """Count the copies between host and rank that one dispatch of a child makes for an argument."""
        size = math.prod(tensor.shape) * tensor.dtype.nbytes
        resident = name in self.residency
        if resident and (name, rank) in self._resident:
            return
        if direction != "out" or resident:
            self.host.count(f"uploads.{name}")
            self.host.count("upload_bytes", size)
        if resident:
            self._resident.add((name, rank))
        elif direction != "in":
            self.host.count(f"downloads.{name}")
            self.host.count("download_bytes", size)
