"""Seeded fuzzing of kernels against goldens: sizes, token counts, cases, seeds and schedules, until the time is up.

An example is a `Run`: everything that it takes to repeat it, and nothing else. Each op has its own stream of examples,
so that a seed gives the same examples whatever the number of processes. A failing example is shrunk to a neighbour that
still fails in the same place with schedule 0, the default case, fewer tokens, plainer sizes, and is kept in a database
of one file per op; the next session starts with what is kept there and forgets what no longer fails.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count, cycle
from pathlib import Path

from tabulate import tabulate

from harness.compare import FAIL
from harness.devices import get_device
from harness.devices.base import KernelRefused
from harness.errors import UsageError
from harness.report import failure_text
from harness.run import Run
from harness.tolerances import DEFAULT_PATH, load_tolerances
from harness.verify import Session, Verdict, load_kernel
from specs import variations
from specs.errors import SpecError
from specs.registry import load_op

DATABASE = Path(".goldengate") / "fuzz"
_LARGEST_SEED = 2**31 - 1
_BATCH = 4
_SHRINK_SECONDS = 20.0
_FAILURES_PER_OP = 3


@dataclass(frozen=True)
class Failure:
    """One way in which a kernel fails. `run`: the shrunk example; `place`: the output, or the first line of a problem,
    by which ways are told apart; `text`: the failure in words; `replayed`: it came from the database."""

    run: Run
    place: str
    text: str
    replayed: bool = False


@dataclass
class Tally:
    """What was done for one op. `refused`: sizes that the op or the kernel cannot do; `schedules`: examples under a
    schedule other than 0; `fixed`: examples of the database that no longer fail."""

    examples: int = 0
    refused: int = 0
    cases: set[str] = field(default_factory=set)
    tokens: set[int] = field(default_factory=set)
    schedules: int = 0
    failures: list[Failure] = field(default_factory=list)
    fixed: int = 0

    def add(self, other: Tally) -> None:
        """Take over what another process counted."""
        self.examples += other.examples
        self.refused += other.refused
        self.cases |= other.cases
        self.tokens |= other.tokens
        self.schedules += other.schedules
        self.fixed += other.fixed
        known = {failure.place for failure in self.failures}
        self.failures += [failure for failure in other.failures if failure.place not in known]


@dataclass(frozen=True)
class Plan:
    """What to fuzz. `common`: device, kernel file, tiles and so on of every run, as an example of op "" ; `seed`: of
    the examples; `until`: on the clock of `time.time`; `database`: its directory."""

    ops: tuple[str, ...]
    common: Run
    seed: int
    until: float
    database: Path = DATABASE


def examples(plan: Plan, op: str, start: int = 0) -> Iterator[Run]:
    """The endless stream of examples of one op from number `start` on; each depends on seed and number alone."""
    for number in count(start):
        rng = random.Random(f"{plan.seed}/{op}/{number}")
        found = variations.situation(
            rng.choice,
            op,
            seeds=lambda rng=rng: rng.randrange(_LARGEST_SEED),  # type: ignore[misc]
            case=lambda sized: [case for case in sized.cases if not case.invalid],
        )
        schedule = rng.randrange(_LARGEST_SEED) if rng.random() < 0.75 else 0
        yield run_of(found, plan.common, schedule)


def run_of(found: variations.Situation, common: Run, schedule: int) -> Run:
    """The run of a situation under the device, kernel and tolerances of `common`."""
    return replace(
        common,
        op=found.op,
        preset=found.preset,
        deployment=found.deployment,
        overrides=found.overrides,
        case=found.case,
        seed=found.seed,
        schedule=schedule,
    )


def situation_of(run: Run) -> variations.Situation:
    """The situation of a run."""
    return variations.Situation(run.op, run.preset, run.deployment, run.overrides, run.case, run.seed)


def place(verdict: Verdict) -> str:
    """Where a run failed first: the kind of a problem without its numbers, or an output."""
    if verdict.problems:
        return "".join(c for c in verdict.problems[0] if not c.isdigit())
    return verdict.diverged or "-"


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


class Worker:
    """Runs examples in one process, one op after another, and keeps what fails."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        common = plan.common
        path = DEFAULT_PATH if common.tolerances is None else Path(common.tolerances)
        self.session = Session(get_device(common.device), load_tolerances(path))
        self.database = Database(plan.database)

    def replay(self, op: str, tally: Tally) -> None:
        """Verify the failing examples of the database; those that pass or have become impossible are forgotten."""
        for run in self.database.load(op, self.plan.common):
            failure = self.attempt(run, tally)
            if failure is None:
                self.database.forget(run)
                tally.fixed += 1
            elif failure.place not in _places(tally):
                tally.failures.append(replace(failure, replayed=True))

    def batch(self, op: str, start: int, tally: Tally, places: frozenset[str] = frozenset()) -> Tally:
        """_BATCH examples from number `start` on, ended early by the clock, counted in `tally`.

        Failures in `places` are known already, as are those of the tally. A new one is kept before it is shrunk, so
        that an interrupt loses nothing.
        """
        for run, _ in zip(examples(self.plan, op, start), range(_BATCH), strict=False):
            if time.time() >= self.plan.until:
                break
            failure = self.attempt(run, tally)
            if failure is not None and failure.place not in places | _places(tally):
                self.database.add(failure.run)
                tally.failures.append(failure)
                tally.failures[-1] = self.shrunk(failure)
        return tally

    def attempt(self, run: Run, tally: Tally) -> Failure | None:
        """Verify one run and count it. Sizes that the op or the kernel refuses are counted as such."""
        try:
            verdict = self.session.verify(run)
        except (SpecError, KernelRefused):
            tally.refused += 1
            return None
        tally.examples += 1
        tally.cases.add(run.case)
        tally.tokens.add(int(verdict.config["sizes"]["T"]))
        tally.schedules += run.schedule != 0
        return Failure(run, place(verdict), failure_text(verdict)) if verdict.status == FAIL else None

    def shrunk(self, failure: Failure) -> Failure:
        """The failure at a plainer example, which replaces the one in the database."""
        found: dict[Run, Failure | None] = {failure.run: failure}

        def check(run: Run) -> str | None:
            if run not in found:
                found[run] = self.attempt(run, Tally())
            failed = found[run]
            return None if failed is None else failed.place

        plainest = shrink(failure.run, check, time.time() + _SHRINK_SECONDS)
        self.database.add(plainest)
        if plainest != failure.run:
            self.database.forget(failure.run)
        result = found[plainest]
        assert result is not None
        return result


class Database:
    """Failing examples, one JSON object per line in `DIR/<op>.jsonl`, human-readable.

    A file is replaced as a whole, by one process at a time. Entries of different kernels and tile sets live side by
    side: a session replays those of its own kernel.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def load(self, op: str, common: Run) -> list[Run]:
        """Examples of an op for the kernel of `common`, under its device and tolerances. Raises UsageError for a file
        that cannot be read or is not ours."""
        return [
            run_of(situation_of(run), common, run.schedule) for run in self._read(op) if _kernel(run) == _kernel(common)
        ]

    def add(self, run: Run) -> None:
        """Keep an example. Raises UsageError when it cannot."""
        with self._locked():
            known = self._read(run.op)
            if run not in known:
                self._write(run.op, [*known, run])

    def forget(self, run: Run) -> None:
        """Drop an example. Raises UsageError when it cannot."""
        with self._locked():
            known = self._read(run.op)
            others = [other for other in known if _identity(other) != _identity(run)]
            if len(others) < len(known):
                self._write(run.op, others)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            lock = open(self.directory / ".lock", "w", encoding="utf-8")  # noqa: SIM115 - errors of opening only
        except OSError as error:
            raise UsageError(f"cannot write below {self.directory}: {error.strerror}") from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the file is closed
            yield

    def _path(self, op: str) -> Path:
        return self.directory / f"{op}.jsonl"

    def _read(self, op: str) -> list[Run]:
        path = self._path(op)
        try:
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read {path}: {error}") from error
        runs = []
        for number, line in enumerate(lines, 1):
            try:
                values = json.loads(line)
                values["overrides"] = tuple((str(name), value) for name, value in values["overrides"])
                runs.append(Run(**values))
            except (ValueError, TypeError, KeyError) as error:
                raise UsageError(f"{path}:{number}: no example of this version; delete the line to go on") from error
        return runs

    def _write(self, op: str, runs: Sequence[Run]) -> None:
        path = self._path(op)
        try:
            fresh = path.with_suffix(".new")
            fresh.write_text("".join(json.dumps(run.as_dict()) + "\n" for run in runs), encoding="utf-8")
            fresh.replace(path)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error


def _kernel(run: Run) -> tuple[str | None, str | None, str | None]:
    return (run.kernel, run.function, run.tiles)


def _identity(run: Run) -> tuple[variations.Situation, int, tuple[str | None, str | None, str | None]]:
    return (situation_of(run), run.schedule, _kernel(run))


Progress = Callable[[Mapping[str, Tally], str], None]


def fuzz(plan: Plan, jobs: int, tallies: dict[str, Tally], progress: Progress) -> None:
    """Fuzz until `plan.until`, filling `tallies` as results come in: an interrupt leaves what was found so far.

    First the examples of the database, then batches of every op in turn; an op with _FAILURES_PER_OP different failures
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
            if not _spent(tallies[op]):
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
                    if not _spent(tallies[op]):
                        pending[pool.submit(_work, op, start, _places(tallies[op]))] = op
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
        yield op, number // len(ops) * _BATCH


def _places(tally: Tally) -> frozenset[str]:
    return frozenset(failure.place for failure in tally.failures)


def _spent(tally: Tally) -> bool:
    return len(tally.failures) >= _FAILURES_PER_OP


def _over(plan: Plan, tallies: Mapping[str, Tally]) -> bool:
    return time.time() >= plan.until or all(map(_spent, tallies.values()))


_worker: list[Worker] = []  # of this process, made by its initializer


def _begin(plan: Plan) -> None:
    import signal

    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's: it ends the pool
    torch.set_num_threads(1)
    _worker[:] = [Worker(plan)]


def _work(op: str, start: int, places: frozenset[str]) -> Tally:
    return _worker[0].batch(op, start, Tally(), places)


def table(tallies: Mapping[str, Tally]) -> str:
    """One row per op: examples, cases reached of those there are, token counts, failures."""
    rows = []
    for op, tally in tallies.items():
        cases = sum(not case.invalid for case in load_op(op).cases)
        replayed = sum(failure.replayed for failure in tally.failures)
        rows.append(
            (
                op,
                tally.examples,
                f"{len(tally.cases)} of {cases}" if len(tally.cases) <= cases else str(len(tally.cases)),
                ", ".join(map(str, sorted(tally.tokens))),
                f"{tally.schedules / max(tally.examples, 1):.0%}",
                f"{len(tally.failures)} ({replayed} replayed)" if replayed else str(len(tally.failures)),
                tally.fixed,
                tally.refused,
            )
        )
    headers = ("op", "examples", "cases", "token counts", "schedule > 0", "failures", "fixed", "refused")
    align = ("left", "right", "right", "left", "right", "left", "right", "right")
    return tabulate(rows, headers=headers, colalign=align)
