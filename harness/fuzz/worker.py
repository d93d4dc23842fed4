"""Examples run in one process."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from harness.compare import FAIL
from harness.devices import get_device
from harness.devices.base import KernelRefused
from harness.fuzz.database import Database
from harness.fuzz.shrinking import shrink
from harness.fuzz.stream import Plan, examples
from harness.fuzz.tally import Failure, Tally, places_of
from harness.report import failure_text
from harness.run import Run
from harness.tolerances import DEFAULT_PATH, load_tolerances
from harness.verify import Session, Verdict
from specs.errors import SpecError

BATCH = 4
_SHRINK_SECONDS = 20.0


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
            elif failure.place not in places_of(tally):
                tally.failures.append(replace(failure, replayed=True))

    def batch(self, op: str, start: int, tally: Tally, places: frozenset[str] = frozenset()) -> Tally:
        """BATCH examples from number `start` on, ended early by the clock, counted in `tally`.

        Failures in `places` are known already, as are those of the tally. A new one is kept before it is shrunk, so
        that an interrupt loses nothing.
        """
        for run, _ in zip(examples(self.plan, op, start), range(BATCH), strict=False):
            if time.time() >= self.plan.until:
                break
            failure = self.attempt(run, tally)
            if failure is not None and failure.place not in places | places_of(tally):
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


def place(verdict: Verdict) -> str:
    """Where a run failed first: the kind of a problem without its numbers, or an output."""
    if verdict.problems:
        return "".join(c for c in verdict.problems[0] if not c.isdigit())
    return verdict.diverged or "-"
