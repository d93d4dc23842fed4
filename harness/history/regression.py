"""Regressions: error statistics that left the spread they had, even where every tolerance still holds.

The baseline of an output in one situation (op, sizes, case) is every earlier row of it: the legal ensemble as far as
it was run. The newest rows regress in a statistic when their mean lies above the largest value of the baseline by
more than the baseline itself spreads. A deterministic device without freedoms spreads by nothing, so any growth shows.
"""

from __future__ import annotations

import datetime
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.errors import UsageError
from harness.history.query import History

STATISTICS = ("used", "ulp_max", "differing_fraction", "rel_l2", "abs_bias")
"""What is watched: the share of a limit that is used, worst ULP, share of differing elements, relative L2, and the
share of errors of one sign beyond a fair coin's."""

Row = dict[str, Any]
_SITUATION = 'op, preset, deployment, overrides, "case", output, stage, device'


@dataclass(frozen=True)
class Key:
    """One output in one situation."""

    op: str
    preset: str
    deployment: str
    overrides: str
    case: str
    output: str
    stage: bool
    device: str

    def __str__(self) -> str:
        sizes = "" if self.overrides == "[]" else f" {self.overrides}"
        what = f"stage {self.output}" if self.stage else self.output
        return f"{self.op} {self.preset}/{self.deployment}{sizes} {self.case}: {what or 'the run'}"


@dataclass(frozen=True)
class Shift:
    """A statistic that grew: its largest value before, its mean now, and since which session and revision."""

    key: Key
    statistic: str
    before: float
    spread: float
    now: float
    baseline_rows: int
    rows: int
    session: str
    revision: str
    since: str
    command: str

    @property
    def text(self) -> str:
        return (
            f"{self.key}: {self.statistic} {self.before:.3g} -> {self.now:.3g} "
            f"(spread {self.spread:.2g} over {self.baseline_rows} rows)"
        )


@dataclass(frozen=True)
class Change:
    """An output whose verdict changed: what it was, what it is, and since when."""

    key: Key
    before: str
    now: str
    reason: str
    session: str
    revision: str
    since: str
    command: str


@dataclass(frozen=True)
class Findings:
    """What the newest rows show against the earlier ones. `fixed` are verdicts that became a pass."""

    sessions: tuple[str, ...]
    shifts: tuple[Shift, ...]
    broken: tuple[Change, ...]
    fixed: tuple[Change, ...]
    compared: int


def newest_session(history: History) -> datetime.datetime:
    """When the newest session began, in UTC."""
    found = history.select("SELECT min(time) AS t FROM results GROUP BY session ORDER BY t DESC LIMIT 1")
    began: datetime.datetime = found[0]["t"]
    return began


def moment(text: str) -> datetime.datetime:
    """An ISO date or time (UTC where it names no zone) in UTC, without a zone. Raises UsageError."""
    try:
        parsed = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is no date or time, like 2026-11-21 or 2026-11-21T10:00") from error
    return parsed if parsed.tzinfo is None else parsed.astimezone(datetime.timezone.utc).replace(tzinfo=None)


def findings(history: History, since: str | None = None) -> Findings:
    """Compare the rows since `since` (ISO date or time, default: the newest session's start) with all before.

    Raises UsageError for a `since` that is no time.
    """
    start = newest_session(history) if since is None else moment(since)
    shifts: list[Shift] = []
    broken: list[Change] = []
    fixed: list[Change] = []
    sessions: dict[str, None] = {}
    compared = 0
    for key, rows in grouped(history).items():
        old, new = [row for row in rows if row["time"] < start], [row for row in rows if row["time"] >= start]
        sessions.update((str(row["session"]), None) for row in new)
        if not (old and new):
            continue
        compared += 1
        change = _change(key, old, new)
        if change is not None:
            (broken if change.now == "fail" else fixed).append(change)
        shifts += [found for name in STATISTICS if (found := shift(key, name, old, new)) is not None]
    return Findings(tuple(sessions), tuple(shifts), tuple(broken), tuple(fixed), compared)


_KEY_COLUMNS = ("op", "preset", "deployment", "overrides", "case", "output", "stage", "device")
_ROWS = """
SELECT {situation}, session, revision, time, command, status, run_status, reason, problems,
       used, CAST(ulp_max AS DOUBLE) AS ulp_max,
       differing / nullif(compared, 0) AS differing_fraction, rel_l2, abs(bias_z) AS abs_bias
FROM results ORDER BY time, id
"""


def grouped(history: History) -> dict[Key, list[Row]]:
    """Every recorded row by its situation, the oldest first."""
    groups: dict[Key, list[Row]] = {}
    for row in history.select(_ROWS.format(situation=_SITUATION)):
        groups.setdefault(Key(*(row[name] for name in _KEY_COLUMNS)), []).append(row)
    return groups


def values(rows: Sequence[Row], statistic: str) -> list[float]:
    """The values of a statistic, of those rows that have it."""
    return [float(value) for row in rows if (value := row[statistic]) is not None]


def ceiling(before: Sequence[float], statistic: str) -> float:
    """What the mean of later values may not exceed: the largest of `before` and its distance from their median."""
    floor = _COIN if statistic == "abs_bias" else 0.0
    return max(max(before) + _spread(before), floor)


def _spread(before: Sequence[float]) -> float:
    largest = max(before)
    return largest - statistics.median(before) if math.isfinite(largest) else 0.0


def shift(key: Key, statistic: str, old: Sequence[Row], new: Sequence[Row]) -> Shift | None:
    """The shift of a statistic between earlier rows and later ones, None where there is none."""
    before, now = values(old, statistic), values(new, statistic)
    if not before or not now:
        return None
    largest, mean = max(before), statistics.fmean(now)
    if not mean > ceiling(before, statistic):
        return None
    first = next(row for row in new if (value := row[statistic]) is not None and float(value) > largest)
    return Shift(
        key, statistic, largest, _spread(before), mean, len(before), len(now),
        str(first["session"]), str(first["revision"]), _moment(first), str(first["command"]),
    )  # fmt: skip


_COIN = 3.0
"""Standard deviations of a fair coin that the signs of errors may always show."""


def _change(key: Key, old: Sequence[Row], new: Sequence[Row]) -> Change | None:
    """Whether an output that passed before fails now, or the other way round. One row decides: the worst."""
    before = "fail" if old[-1]["status"] == "fail" or old[-1]["run_status"] == "fail" else "pass"
    failing = [row for row in new if row["status"] == "fail"]
    if before == "pass" and failing:
        row = failing[0]
        return Change(key, "pass", "fail", str(row["reason"]), str(row["session"]), str(row["revision"]), _moment(row),
                      str(row["command"]))  # fmt: skip
    if before == "fail" and all(row["run_status"] != "fail" for row in new):
        row = new[0]
        return Change(key, "fail", "pass", "", str(row["session"]), str(row["revision"]), _moment(row),
                      str(row["command"]))  # fmt: skip
    return None


def _moment(row: Row) -> str:
    return str(row["time"].strftime("%Y-%m-%d %H:%M"))
