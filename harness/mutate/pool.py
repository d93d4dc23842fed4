"""Mutants judged in processes: an endless loop or a full memory costs its own time limit, and nothing else.

A worker judges one mutant at a time and says so over a pipe. When one is late, its process is killed and another takes
its place; when one dies, that is the outcome of the mutant it had.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from harness.errors import UsageError
from harness.mutate.judge import Judge, Outcome, lost, not_judged
from harness.mutate.mutants import Mutant
from harness.mutate.situations import situations

_MEMORY = 6 << 30  # bytes of data that a worker may have
_ALIVE = "alive"  # what a worker says after every run
_PATIENCE = 0.2  # seconds between looks at the clock
_PAUSED = 5.0  # seconds without a look: this process was stopped, and its workers with it
_WALL = 20  # wall seconds for each processor second of the limit: one that sleeps is late, too


@dataclass(frozen=True)
class Settings:
    """How mutants are judged. `seeds`, `cases`: see `situations`; `limit`: processor seconds for one run of a mutant (a
    busy machine makes none late); `tolerances`: path of the file, None for the shipped one."""

    seeds: tuple[int, ...] = (0, 1)
    cases: tuple[str, ...] = ()
    limit: float = 60.0
    tolerances: str | None = None


def judge_all(mutants: Sequence[Mutant], settings: Settings, jobs: int = 1) -> Iterator[tuple[Mutant, Outcome]]:
    """The outcomes, as they come in. Raises UsageError where a mutant cannot be judged at all."""
    waiting = deque(mutants)
    with tempfile.TemporaryDirectory(prefix="goldengate-mutate-") as folder:
        workers = [_Worker(settings, Path(folder)) for _ in range(min(jobs, len(mutants)))]
        try:
            while True:
                for worker in workers:
                    if worker.mutant is None and waiting:
                        worker.give(waiting.popleft())
                busy = [worker for worker in workers if worker.mutant is not None]
                if not busy:
                    return
                looked = time.monotonic()
                wait([worker.pipe for worker in busy], timeout=_PATIENCE)
                paused = time.monotonic() - looked > _PAUSED
                for worker in busy:
                    if paused:
                        worker.rewind()
                    done = worker.take()
                    if done is not None:
                        yield done
        finally:
            for worker in workers:
                worker.end()


class _Worker:
    """A process, the mutant that it has, and since when."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        self.mutant: Mutant | None = None
        self.since = self.spent = 0.0
        self._begin()

    def _begin(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["harness.mutate.pool", "specs.registry", "harness.devices.emulator"])
        self.pipe, theirs = context.Pipe()
        arguments = theirs, self.settings, self.folder
        self.process: BaseProcess = context.Process(target=_work, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        if not self.pipe.poll(600) or self.pipe.recv() != "ready":
            raise UsageError("a worker process did not start")

    def give(self, mutant: Mutant) -> None:
        self.mutant = mutant
        self.rewind()
        self.pipe.send(mutant)

    def rewind(self) -> None:
        """The clock starts anew."""
        self.since, self.spent = time.monotonic(), _processor_seconds(self.process.pid)

    def take(self) -> tuple[Mutant, Outcome] | None:
        """The outcome of its mutant, None while there is none."""
        assert self.mutant is not None
        answer: object = _ALIVE
        while answer == _ALIVE and self.pipe.poll():
            try:
                answer = self.pipe.recv()
            except EOFError:
                answer = None
            self.rewind()
        spent = _processor_seconds(self.process.pid) - self.spent
        outcome: Outcome | None = None
        if answer is None:
            self.process.join()
            outcome = lost("crash", f"its process ended with exit code {self.process.exitcode}", spent)
        elif isinstance(answer, Outcome):
            outcome = answer
        elif answer != _ALIVE:
            raise UsageError(str(answer))
        elif max(spent, (time.monotonic() - self.since) / _WALL) > self.settings.limit:
            outcome = lost("limit", f"still running after {self.settings.limit:g} s", spent)
        if outcome is None:
            return None
        done = self.mutant, outcome
        self.mutant = None
        if outcome.how in ("crash", "limit"):
            self.end()
            self._begin()
        return done

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _processor_seconds(pid: int | None) -> float:
    """User and system time of a process, of Linux's /proc; 0 for one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _work(pipe: Connection, settings: Settings, folder: Path) -> None:
    """A worker's life: mutants in, outcomes out; a text is what the user must be told."""
    import torch

    from harness.devices import get_device
    from harness.tolerances import DEFAULT_PATH, load_tolerances

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's: it ends the workers
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    torch.set_num_threads(1)
    path = DEFAULT_PATH if settings.tolerances is None else Path(settings.tolerances)
    tolerances, device = load_tolerances(path), get_device("emulator")
    judges: dict[str, Judge] = {}
    pipe.send("ready")
    while True:
        try:
            mutant: Mutant = pipe.recv()
        except EOFError:
            return
        start = time.perf_counter()
        try:
            if mutant.op not in judges:
                judges = {mutant.op: Judge(situations(mutant.op, settings.seeds, settings.cases), device, tolerances)}
            with tempfile.TemporaryDirectory(dir=folder) as own:  # a new path for each: parsed files are cached by path
                file = Path(own) / Path(mutant.path).name
                file.write_text(mutant.text, encoding="utf-8")
                outcome: Outcome | str = judges[mutant.op].judge(file, lambda: pipe.send(_ALIVE))
        except UsageError as error:
            outcome = str(error)
        except MemoryError as error:  # it asked for more than _MEMORY: no device could run it
            outcome = lost("crash", f"MemoryError: {error}", time.perf_counter() - start)
        except Exception as error:
            outcome = not_judged(error, time.perf_counter() - start)
        pipe.send(outcome)
