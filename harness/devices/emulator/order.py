"""What happens before what, and accesses that are not ordered: the race detector (pypto_dsl.md 2.3, 4.4).

A *unit* is a stretch of execution with one place in the order: a block of a task, a lane, a task, the orchestrating
code of a rank. Every source line at which a unit touches memory is a *site*, numbered in the order of appearance. A
unit knows the sites that happened before it, as a bit set; dependencies, barriers, notifies and waits hand knowledge
on. Each storage remembers, per element, the site that wrote it last and the site that read it last (its *shadow*). An
access to an element whose last writer (for a write: or reader) the unit does not know is a race, whatever order this
run happened to take. Blocks of one task that read the same element share a site of their own, which whoever waits for
the task knows; of unordered readers in different tasks only is kept that there are several.

Two short cuts keep this cheap and change no answer: a storage also keeps the set of all sites that may stand in its
shadow, so that a unit that knows them all need not look; and a window that one site wrote or read as a whole needs one
look.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor as Torch

from harness.devices.emulator.units import Unit
from harness.devices.emulator.values import Storage, View

NOBODY = 0
SEVERAL = 1  # readers of different tasks that are not ordered among themselves
_READER_SHIFT = 32  # a shadow element is writer | reader << 32
_WRITER = (1 << _READER_SHIFT) - 1


@dataclass(frozen=True)
class Site:
    """A line at which a unit touches memory. `task` is None for orchestration."""

    unit: str
    rank: int
    task: int | None
    file: str
    line: int
    atomic: bool

    def __str__(self) -> str:
        return f"{self.unit} at {self.file}:{self.line}"


@dataclass(frozen=True)
class Race:
    """Two accesses to one element without an order. `kind` names first and second: "write-write", "write-read" or
    "read-write"."""

    kind: str
    first: Site | None
    storage: str
    element: int


class Order:
    """The sites and units of one run, shared by all ranks."""

    def __init__(self) -> None:
        self.sites: list[Site | None] = [None, None]  # NOBODY, SEVERAL
        self._units = 0
        self._lut = np.zeros(1024, dtype=bool)
        self._atomic = np.zeros(1024, dtype=bool)
        self._joint: dict[tuple[int, int], int] = {}  # rank and task -> site of its readers of the same element
        self._owner: tuple[int, int] = (-1, 0)  # unit and knowledge that _lut describes

    def unit(self, name: str, known: int, *, rank: int = 0, task: int | None = None) -> Unit:
        """A new unit that starts with the knowledge of `known`."""
        self._units += 1
        return Unit(self._units, name, known | 1 << NOBODY, rank=rank, task=task)

    def read(self, unit: Unit, view: View, file: str, line: int) -> Race | None:
        """Record a read of every element of `view`."""
        storage = view.storage
        if storage.readonly:
            return None
        site = self._site(unit, file, line, atomic=False)
        storage.readers |= 1 << site
        if storage.shadow is not None and not (storage.writers | storage.readers) & ~unit.known:
            _readers(storage.shadow, view).fill_(site)
            return None
        shadow = _shadow(view)
        if not shadow.numel():
            return None
        low, high = (int(end) for end in shadow.aminmax())
        if low == high:
            writer, reader = low & _WRITER, low >> _READER_SHIFT
            newest = site if unit.known >> reader & 1 else self._together(unit, reader, site)
            storage.readers |= 1 << newest
            shadow.fill_(writer | newest << _READER_SHIFT)
            return None if unit.known >> writer & 1 else Race("write-read", self.sites[writer], storage.name, 0)
        ordered = self._ordered(unit)
        writers = shadow & _WRITER
        race = self._conflict("write-read", ordered, writers, storage)
        newest_each = torch.full_like(shadow, site)
        readers = shadow >> _READER_SHIFT
        unknown = ~_look_up(ordered, readers)
        if bool(unknown.any()):
            for reader in set(readers[unknown].tolist()):
                newest = self._together(unit, reader, site)
                newest_each[unknown & (readers == reader)] = newest
                storage.readers |= 1 << newest
        shadow.copy_(writers | newest_each << _READER_SHIFT)
        return race

    def write(self, unit: Unit, view: View, file: str, line: int, *, atomic: bool = False) -> Race | None:
        """Record a write of every element of `view`. Atomic additions do not conflict with one another."""
        storage = view.storage
        site = self._site(unit, file, line, atomic=atomic)
        shadow = _shadow(view)
        if not shadow.numel():
            return None
        race = None
        if (storage.writers | storage.readers) & ~unit.known:
            race = self._unordered(unit, shadow, storage, atomic=atomic)
        shadow.fill_(site)
        if shadow.numel() == storage.data.numel():  # nothing older is left
            storage.writers, storage.readers = 1 << site, 1 << NOBODY
        else:
            storage.writers |= 1 << site
        return race

    def joint(self, rank: int, task: int) -> int:
        """The knowledge of a task's joint site, for those who wait for the task; 0 where it has none."""
        site = self._joint.get((rank, task))
        return 0 if site is None else 1 << site

    def _together(self, unit: Unit, reader: int, site: int) -> int:
        """The site that stands for an earlier reader and for one that does not know it."""
        other = self.sites[reader]
        if other is None or unit.task is None or (other.rank, other.task) != (unit.rank, unit.task):
            return SEVERAL
        key = (unit.rank, unit.task)
        if key not in self._joint:
            mine = self.sites[site]
            assert mine is not None
            self._joint[key] = self._number(mine)
        return self._joint[key]

    def _unordered(self, unit: Unit, shadow: Torch, storage: Storage, *, atomic: bool) -> Race | None:
        """The first element that a write to `shadow` must not touch yet, if there is one."""
        low, high = (int(end) for end in shadow.aminmax())
        if low == high:
            writer, reader = low & _WRITER, low >> _READER_SHIFT
            if not (unit.known >> writer & 1 or (atomic and self._atomic[writer])):
                return Race("write-write", self.sites[writer], storage.name, 0)
            return None if unit.known >> reader & 1 else Race("read-write", self.sites[reader], storage.name, 0)
        ordered = self._ordered(unit)
        fine = ordered | torch.from_numpy(self._atomic) if atomic else ordered
        return self._conflict("write-write", fine, shadow & _WRITER, storage) or self._conflict(
            "read-write", ordered, shadow >> _READER_SHIFT, storage
        )

    def _site(self, unit: Unit, file: str, line: int, *, atomic: bool) -> int:
        key = (file, line, atomic)
        number = unit.sites.get(key)
        if number is None:
            current = self._owner == (unit.number, unit.known)
            number = self._number(Site(unit.name, unit.rank, unit.task, file, line, atomic))
            unit.sites[key] = number
            unit.known |= 1 << number
            if current and self._owner[0] == unit.number:
                self._lut[number] = True
                self._owner = (unit.number, unit.known)
        return number

    def _number(self, site: Site) -> int:
        """The number of a new site."""
        number = len(self.sites)
        self.sites.append(site)
        if number >= len(self._lut):
            self._lut = np.concatenate((self._lut, np.zeros_like(self._lut)))
            self._atomic = np.concatenate((self._atomic, np.zeros_like(self._atomic)))
            self._owner = (-1, 0)
        self._atomic[number] = site.atomic
        return number

    def _ordered(self, unit: Unit) -> Torch:
        """Per site, whether it happened before the unit's next access."""
        if self._owner != (unit.number, unit.known):
            width = (unit.known.bit_length() + 7) // 8
            packed = np.frombuffer(unit.known.to_bytes(width, "little"), dtype=np.uint8)
            bits = np.unpackbits(packed, bitorder="little")
            self._lut[:] = False
            self._lut[: len(bits)] = bits
            self._owner = (unit.number, unit.known)
        return torch.from_numpy(self._lut)

    def _conflict(self, kind: str, ordered: Torch, shadow: Torch, storage: Storage) -> Race | None:
        fine = _look_up(ordered, shadow)
        if bool(fine.all()):
            return None
        place = int((~fine).reshape(-1).to(torch.uint8).argmax())
        return Race(kind, self.sites[int(shadow.reshape(-1)[place])], storage.name, place)


def _look_up(table: Torch, sites: Torch) -> Torch:
    # index_select is an order of magnitude faster than table[sites] on small windows
    return table.index_select(0, sites.reshape(-1)).view(sites.shape)


def _shadow(view: View) -> Torch:
    """Last writer and last reader per element, as an aliasing view."""
    storage = view.storage
    if storage.shadow is None:
        storage.shadow = torch.zeros(storage.data.numel(), dtype=torch.int64)
    return torch.as_strided(storage.shadow, view.shape, view.strides, view.offset)


def _readers(shadow: Torch, view: View) -> Torch:
    """The last reader per element alone: the upper half of every shadow element, on a little-endian host."""
    halves = shadow.view(torch.int32)
    return torch.as_strided(halves, view.shape, tuple([2 * s for s in view.strides]), 2 * view.offset + 1)
