"""Appends the verdicts of one session to a store, one file per verdict, and packs them into one at the end."""

from __future__ import annotations

import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from harness.history.records import About, rows, source_hash
from harness.history.store import Store
from harness.verify import Verdict


class Recorder:
    """`with Recorder(Store(url)) as recorder: recorder.add(verdict)`. What was added stays, whatever comes after.

    Rows carry an id, so that it does no harm when a kill leaves them in two files. Raises UsageError when the store
    cannot be written.
    """

    def __init__(self, store: Store, about: About | None = None) -> None:
        self.store = store
        self.about = About.here() if about is None else about
        self.recorded = 0
        self._paths: list[str] = []
        self._rows: list[dict[str, Any]] = []
        self._hashes: dict[str, str] = {}
        self._day = datetime.datetime.now(datetime.timezone.utc).date().isoformat()

    def add(self, verdict: Verdict) -> None:
        """Record one verdict, durably."""
        now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
        new = rows(verdict, self.about, now, self._kernel(verdict))
        name = f"{self._day}/{self.about.session}-{self.recorded:06}"
        self._paths.append(self.store.write(name, new))
        self._rows += new
        self.recorded += 1

    def pack(self) -> None:
        """Put all rows into one file and remove the others: many small files are slow to read."""
        if len(self._paths) > 1:
            packed = self.store.write(f"{self._day}/{self.about.session}-packed", self._rows)
            self.store.remove(self._paths)
            self._paths = [packed]

    def _kernel(self, verdict: Verdict) -> str:
        from specs.registry import ROOT

        path = verdict.run.kernel or str(ROOT / "kernels" / f"{verdict.run.op}.py")
        if path not in self._hashes:
            self._hashes[path] = source_hash(Path(path))
        return self._hashes[path]

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pack()
