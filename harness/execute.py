"""Many runs: in this process or in several, always in the order they were asked for."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from goldens.errors import GoldenInputError
from harness.devices import get_device
from harness.devices.base import KernelRefused
from harness.errors import UsageError
from harness.room import available, fitting
from harness.run import Run
from harness.tolerances import DEFAULT_PATH, load_tolerances
from harness.verify import Session, Verdict
from specs.errors import SpecError

_BATCH = 16
_MANY = 24
_Result = TypeVar("_Result")


def execute(runs: Sequence[Run], jobs: int = 1) -> Iterator[Verdict]:
    """The verdicts of `runs`, in their order. All runs share one device and one tolerances file.

    With `jobs` > 1, batches of runs with the same inputs go to that many processes of one thread each; verdicts do
    not depend on the number. Raises what Session.verify raises.
    """
    if not runs:
        return
    if jobs == 1:
        session = _session(runs[0])
        yield from map(session.verify, runs)
        return
    yield from _spread(_verify_batch, runs, jobs)


@dataclass(frozen=True)
class Refused:
    """A run that could not begin: its kernel, sizes or inputs were refused. `file` and `line` where they are known."""

    run: Run
    text: str
    file: str | None = None
    line: int | None = None


def execute_each(runs: Sequence[Run], jobs: int = 1) -> Iterator[Verdict | Refused]:
    """Like `execute`, but a run that is refused becomes a result of its own and the others go on."""
    if jobs == 1:
        _worker_session.cache_clear()  # a kernel file may have changed since
        for batch in batches(runs):
            yield from _each(batch)
        return
    yield from _spread(_each, runs, jobs)


def _spread(work: Callable[[list[Run]], list[_Result]], runs: Sequence[Run], jobs: int) -> Iterator[_Result]:
    """What `work` makes of the batches of `runs` in `jobs` processes, in order. Those not begun end with the caller."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_one_thread) as pool:
        futures = [pool.submit(work, batch) for batch in batches(runs)]
        try:
            for future in futures:
                yield from future.result()
        finally:
            for future in futures:
                future.cancel()


def _each(batch: list[Run]) -> list[Verdict | Refused]:
    session = _worker_session(batch[0].device, batch[0].checks, batch[0].tolerances)
    results: list[Verdict | Refused] = []
    for run in batch:
        try:
            results.append(session.verify(run))
        except KernelRefused as error:
            results.append(Refused(run, str(error), error.file, error.line))
        except (UsageError, SpecError, GoldenInputError) as error:
            results.append(Refused(run, str(error)))
    return results


def sensible_jobs(runs: Sequence[Run]) -> int:
    """Processes for some runs: one where starting others would take longer than it saves, else one per core, as far as
    the memory holds so many of the largest."""
    from specs.registry import load_op

    if len(runs) < _MANY:
        return 1
    distinct = {(run.op, run.preset, run.deployment, run.overrides) for run in runs}
    ops = []
    for op, preset, deployment, overrides in distinct:
        with suppress(SpecError):  # told when the run is made
            ops.append(load_op(op, preset, deployment, **dict(overrides)))
    return fitting(ops, available(), os.cpu_count() or 1)


def batches(runs: Sequence[Run]) -> list[list[Run]]:
    """Consecutive runs with the same inputs, at most _BATCH of them together."""
    result = []
    for _, same in groupby(runs, key=lambda run: run.inputs_key):
        group = list(same)
        result += [group[at : at + _BATCH] for at in range(0, len(group), _BATCH)]
    return result


def _session(run: Run) -> Session:
    path = DEFAULT_PATH if run.tolerances is None else Path(run.tolerances)
    return Session(get_device(run.device, checks=run.checks == "on"), load_tolerances(path))


@lru_cache(maxsize=1)
def _worker_session(device: str, checks: str, tolerances: str | None) -> Session:
    """One session for all batches of a worker: reading the tolerances takes longer than a small run."""
    return _session(Run("", device=device, checks=checks, tolerances=tolerances))


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _verify_batch(batch: list[Run]) -> list[Verdict]:
    session = _worker_session(batch[0].device, batch[0].checks, batch[0].tolerances)
    return [session.verify(run) for run in batch]
