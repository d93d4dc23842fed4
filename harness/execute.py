"""Many runs: in this process or in several, always in the order they were asked for."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import groupby
from pathlib import Path

from harness.devices import get_device
from harness.run import Run
from harness.tolerances import DEFAULT_PATH, load_tolerances
from harness.verify import Session, Verdict

_BATCH = 16


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
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_one_thread) as pool:
        futures = [pool.submit(_verify_batch, batch) for batch in batches(runs)]
        try:
            for future in futures:
                yield from future.result()
        finally:
            for future in futures:
                future.cancel()


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


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _verify_batch(batch: list[Run]) -> list[Verdict]:
    session = _session(batch[0])
    return [session.verify(run) for run in batch]
