"""Failing examples on disk."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness.errors import UsageError
from harness.fuzz.stream import run_of, situation_of
from harness.run import Run
from specs import variations


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
