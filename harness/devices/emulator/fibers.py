"""Coroutines for what runs concurrently on a device: blocks, lanes, ranks (pypto_dsl.md 2.4, 4.4).

A fiber runs until it ends, must wait, or offers a switch. `run_all` runs a set of fibers to their end, one at a time;
which one goes next is the schedule's choice. When none of them can go on, the caller waits in its turn, so that a wait
inside a block inside a rank reaches the scheduler of the ranks. When nobody can go on, that is a dead-lock: an error
that lists what each one waits for, never a hang.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import greenlet
import numpy as np

from harness.devices.emulator.current import fault, machine


@dataclass(frozen=True)
class Wait:
    """Why a fiber does not run: `ready()` tells when it may, `texts` what it waits for, one line each."""

    ready: Callable[[], bool]
    texts: Callable[[], list[str]]


_OFFER = Wait(lambda: True, list)


class Fiber:
    """One coroutine. It keeps its own region and unit of order while others run."""

    def __init__(self, body: Callable[[], Any], name: str) -> None:
        self.name = name
        self.wait: Wait | None = None
        self.done = False
        self._body = body
        self._greenlet = greenlet.greenlet(self._run)
        self._greenlet.gr_context = contextvars.copy_context()

    def _run(self) -> None:
        self._body()
        self.done = True

    def resume(self) -> None:
        """Run until the fiber ends or switches away; an exception in it is raised here."""
        run = machine()
        own = run.region, run.unit
        self._greenlet.parent = greenlet.getcurrent()
        try:
            self.wait = self._greenlet.switch()
        finally:
            run.region, run.unit = own

    @property
    def runnable(self) -> bool:
        return self.wait is None or self.wait.ready()


def run_all(fibers: Sequence[Fiber], rng: np.random.Generator | None) -> None:
    """Run the fibers to their end: without `rng` the first that can go on goes on, with it a random one.

    Raises KernelFault when no fiber can go on and the caller has nobody to wait with.
    """
    pending = list(fibers)
    while pending:
        ready = [fiber for fiber in pending if fiber.runnable]
        if not ready:
            wait(Wait(lambda: any(f.runnable for f in pending), lambda: waiting_texts(pending)))
            continue
        fiber = ready[0] if rng is None else ready[int(rng.integers(len(ready)))]
        fiber.resume()
        if fiber.done:
            pending.remove(fiber)
        else:
            pass_on(fiber)


def waiting_texts(fibers: Sequence[Fiber]) -> list[str]:
    """What the fibers wait for, one line each."""
    return [f"{fiber.name}: {text}" for fiber in fibers if fiber.wait is not None for text in fiber.wait.texts()]


def wait(condition: Wait) -> None:
    """Suspend the current fiber until `condition.ready()`. Raises KernelFault (GG405) outside any fiber."""
    if condition.ready():
        return
    parent = greenlet.getcurrent().parent
    if parent is None:
        raise fault("dead-lock: " + "; ".join(condition.texts()), "GG405")
    run = machine()
    region, unit = run.region, run.unit
    while not condition.ready():
        parent = greenlet.getcurrent().parent
        assert parent is not None
        parent.switch(condition)
        run.region, run.unit = region, unit


def pass_on(fiber: Fiber) -> None:
    """A fiber that offered a switch offers it to everybody: its scheduler offers in its turn."""
    if fiber.wait is _OFFER:
        offer()


def offer() -> None:
    """Let another fiber go first, where there is one and the schedule draws it."""
    run = machine()
    parent = greenlet.getcurrent().parent
    if parent is None or run.schedule.rng is None or run.schedule.rng.random() < 0.5:
        return
    region, unit = run.region, run.unit
    parent.switch(_OFFER)
    run.region, run.unit = region, unit
