"""From a failing example to the plainest one that fails in the same place."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from harness.fuzz.stream import run_of, situation_of
from harness.run import Run
from specs import variations


def shrink(run: Run, check: Callable[[Run], str | None], until: float) -> Run:
    """The plainest neighbour found that still fails in the same place.

    `check` gives the place in which a run fails, None where it passes or cannot be. Greedy: the first simpler neighbour
    that fails is gone on from, until there is none or it is `until` by the clock.
    """
    wanted = check(run)
    going = wanted is not None
    while going:
        going = False
        for simpler in _simpler(run):
            if time.time() >= until:
                return run
            if check(simpler) == wanted:
                run, going = simpler, True
                break
    return run


def _simpler(run: Run) -> Iterator[Run]:
    if run.schedule:
        yield replace(run, schedule=0)
    for neighbour in variations.simpler(situation_of(run)):
        yield run_of(neighbour, run, run.schedule)
