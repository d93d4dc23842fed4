"""A session: what the database has, then batches of every op in turn, in one process or many."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from itertools import cycle

from harness.fuzz.stream import Plan
from harness.fuzz.tally import Tally, places_of, spent
from harness.fuzz.worker import BATCH, Worker
from harness.verify import load_kernel
from specs.registry import load_op

Progress = Callable[[Mapping[str, Tally], str], None]


def fuzz(plan: Plan, jobs: int, tallies: dict[str, Tally], progress: Progress) -> None:
    """Fuzz until `plan.until`, filling `tallies` as results come in: an interrupt leaves what was found so far.

    First the examples of the database, then batches of every op in turn; an op with FAILURES_PER_OP different failures
    is left alone. `progress(tallies, op)` is called after every batch. Raises UsageError, and KernelRefused for a
    kernel that the front end refuses at the plain sizes.
    """
    begun = time.time()
    worker = Worker(plan)
    for op in plan.ops:
        load_kernel(worker.session.device, replace(plan.common, op=op), load_op(op))
    plan = worker.plan = replace(plan, until=plan.until + time.time() - begun)  # loading is not fuzzing
    for op in plan.ops:
        worker.replay(op, tallies.setdefault(op, Tally()))
        progress(tallies, op)
    if jobs == 1:
        for op, start in _turns(plan.ops):
            if _over(plan, tallies):
                return
            if not spent(tallies[op]):
                worker.batch(op, start, tallies[op])
                progress(tallies, op)
    else:
        _fuzz_in_processes(plan, jobs, tallies, progress)


def _fuzz_in_processes(plan: Plan, jobs: int, tallies: dict[str, Tally], progress: Progress) -> None:
    """As many batches at a time as there are processes, in the order of the turns."""
    context = multiprocessing.get_context("spawn")
    turns = _turns(plan.ops)
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(plan,)) as pool:
        pending: dict[Future[Tally], str] = {}
        try:
            while not _over(plan, tallies):
                while len(pending) < jobs:
                    op, start = next(turns)
                    if not spent(tallies[op]):
                        pending[pool.submit(_work, op, start, places_of(tallies[op]))] = op
                done, _ = wait(pending, timeout=1.0, return_when=FIRST_COMPLETED)
                for future in done:
                    op = pending.pop(future)
                    tallies[op].add(future.result())
                    progress(tallies, op)
        finally:  # also after an interrupt: what is running ends its batch and counts
            for future, op in pending.items():
                if not future.cancel():
                    tallies[op].add(future.result())


def _turns(ops: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Ops in turn, each with the number of its next example."""
    for number, op in enumerate(cycle(ops)):
        yield op, number // len(ops) * BATCH


def _over(plan: Plan, tallies: Mapping[str, Tally]) -> bool:
    return time.time() >= plan.until or all(map(spent, tallies.values()))


_worker: list[Worker] = []  # of this process, made by its initializer


def _begin(plan: Plan) -> None:
    import signal

    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's: it ends the pool
    torch.set_num_threads(1)
    _worker[:] = [Worker(plan)]


def _work(op: str, start: int, places: frozenset[str]) -> Tally:
    return _worker[0].batch(op, start, Tally(), places)
