"""Recorded sessions for tests: the rows of one real verdict with other figures, sessions a day apart."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from pathlib import Path

from harness.compare import Judgement
from harness.devices.emulator.device import EmulatorDevice
from harness.history.query import History
from harness.history.records import About, rows
from harness.history.store import Store
from harness.reporting.facts import Report
from harness.reporting.queries import build
from harness.run import Run
from harness.tolerances import load_tolerances
from harness.verify import Session, Verdict

START = datetime.datetime(2026, 11, 1, 8)
NOW = datetime.datetime(2026, 11, 21, 12)


def real_verdict() -> Verdict:
    """A passing run of `rms_norm`."""
    return Session(EmulatorDevice(), load_tolerances()).verify(Run("rms_norm", schedule=3))


def with_output(verdict: Verdict, judgement: Judgement, *, seed: int = 0) -> Verdict:
    """The verdict with another judgement of its output, in another run."""
    run = dataclasses.replace(verdict.run, seed=seed)
    return dataclasses.replace(verdict, run=run, status=judgement.status, outputs={"x_normed": judgement})


def using(verdict: Verdict, used: float, *, seed: int = 0) -> Verdict:
    """A pass that takes this share of its limit."""
    return with_output(verdict, dataclasses.replace(verdict.outputs["x_normed"], used=used), seed=seed)


def failing(verdict: Verdict, reason: str = "7 of 512 elements over", *, seed: int = 0) -> Verdict:
    """A failure of the output for this reason."""
    judgement = dataclasses.replace(verdict.outputs["x_normed"], status="fail", reason=reason, used=3.5)
    return with_output(verdict, judgement, seed=seed)


def add_session(
    root: Path, number: int, verdicts: Sequence[Verdict], *, revision: str | None = None, kernel: str = "k"
) -> None:
    """Session `s<number>` of day `number`, by default with a revision of its own."""
    about = About(f"s{number}", f"{number:040}" if revision is None else revision, False, "host")
    began = START + datetime.timedelta(days=number)
    found = [
        row
        for i, verdict in enumerate(verdicts)
        for row in rows(verdict, about, began + datetime.timedelta(minutes=i), kernel)
    ]
    Store(str(root)).write(f"day/s{number}", found)


def report_of(root: Path, since: str | None = None) -> Report:
    return build(History(Store(str(root))), str(root), since, NOW)
