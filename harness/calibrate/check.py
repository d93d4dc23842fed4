"""False alarms: runs of the shipped kernels on legal devices and inputs that no calibration has seen.

Every run that fails is one, since the kernel is right and the device is legal. Runs are numbered; the number fixes op,
case and both seeds, so a check can be killed and gone on with, and each failure has its own command.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tabulate import tabulate

from harness.calibrate.ensemble import held_out, mark
from harness.compare import EMPTY, FAIL
from harness.devices import get_device
from harness.devices.base import KernelRefused
from harness.journal import Journal
from harness.report import failure_text
from harness.run import Run
from harness.tolerances import Tolerances, load_tolerances
from harness.verify import Session

_AHEAD = 4  # runs that wait for each process


@dataclass(frozen=True)
class Checked:
    """What one run came to. `text`: the failure with its command, empty for a pass."""

    run: Run
    status: str
    text: str = ""


def check(
    ops: Sequence[str], count: int, tolerances: Tolerances, journal: Journal | None, jobs: int = 1
) -> Iterator[Checked]:
    """Each of `count` runs over the ops with its verdict, in their order. Runs of the journal are not made again."""
    marks = {op: mark(op, tolerances) for op in ops}
    known = {} if journal is None else {(r["run"], r["mark"]): r for r in journal.records}
    missing = (run for run in held_out(ops, count) if (run.id, marks[run.op]) not in known)
    made = _in_processes(missing, jobs) if jobs > 1 else map(_Worker(tolerances).verify, missing)
    for run in held_out(ops, count):
        record = known.get((run.id, marks[run.op]))
        if record is not None:
            yield Checked(run, record["status"], record["text"])
            continue
        done = next(made)
        if journal is not None:
            journal.append({"run": run.id, "mark": marks[run.op], "status": done.status, "text": done.text})
        yield done


class _Worker:
    """Verifies one run after another."""

    def __init__(self, tolerances: Tolerances) -> None:
        self.session = Session(get_device("emulator"), tolerances)

    def verify(self, run: Run) -> Checked:
        try:
            verdict = self.session.verify(run)
        except KernelRefused as refused:  # a shipped kernel that is refused fails whatever the tolerance
            return Checked(run, FAIL, f"{run.id}: {refused}")
        return Checked(run, verdict.status, failure_text(verdict) if verdict.status == FAIL else "")


_worker: list[_Worker] = []  # of this process, made by its initializer


def _begin() -> None:
    import signal

    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's
    torch.set_num_threads(1)
    _worker[:] = [_Worker(load_tolerances())]


def _verify(run: Run) -> Checked:
    return _worker[0].verify(run)


def _in_processes(runs: Iterator[Run], jobs: int) -> Iterator[Checked]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin) as pool:
        pending: deque[Future[Checked]] = deque()
        try:
            while True:
                pending += [pool.submit(_verify, run) for run in islice(runs, jobs * _AHEAD - len(pending))]
                if not pending:
                    return
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def tallied(results: Iterator[Checked], progress: Callable[[int, int], None]) -> tuple[str, list[Checked], int]:
    """The table of runs and failures per op, the failures, and the number of runs that compared something."""
    counts: dict[str, list[int]] = {}
    failures: list[Checked] = []
    total = 0
    for number, result in enumerate(results, 1):
        row: Any = counts.setdefault(result.run.op, [0, 0, 0])
        row[0] += 1
        row[1] += result.status == EMPTY
        row[2] += result.status == FAIL
        total += result.status != EMPTY
        if result.status == FAIL:
            failures.append(result)
        progress(number, len(failures))
    rows = [(op, *row) for op, row in counts.items()]
    rows.append(("all", *(sum(row[i] for row in counts.values()) for i in range(3))))
    return tabulate(rows, headers=("op", "runs", "nothing to compare", "failures")), failures, total
