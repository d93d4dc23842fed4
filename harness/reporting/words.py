"""How numbers and names are said, the same on the page and in Markdown."""

from __future__ import annotations

import math

from harness.history.regression import Shift
from harness.reporting.facts import Failing, Report, Scope

STATISTIC = {
    "used": "share of its limit",
    "ulp_max": "worst ULP",
    "differing_fraction": "differing elements",
    "rel_l2": "relative L2",
    "abs_bias": "sign bias |z|",
}
"""What the statistics of `harness.history.regression` are called."""


def share(value: float | None) -> str:
    """`31 %`, `0.04 %`, `–` for no value, `∞` where the limit is 0 and was broken."""
    if value is None:
        return "–"
    if math.isinf(value) or math.isnan(value):
        return "∞"
    percent = 100 * value
    if percent == 0 or percent >= 9.95:
        return f"{percent:,.0f} %"
    return f"{percent:.1f} %" if percent >= 0.095 else f"{percent:.2g} %"


def rate(value: float | None) -> str:
    """A share that is near 1 where all is well: `99.3 %`, rounded down so that only all of them is 100 %."""
    return "–" if value is None else f"{math.floor(1000 * value) / 10:.1f} %"


def headroom(used: float | None) -> str:
    """What is left of a tolerance: `69 %`; `none` where all of it and more is used."""
    if used is None:
        return "–"
    return share(1 - used) if used <= 1 else "none"


def number(value: float | None) -> str:
    """Three digits: `0`, `1.2e-05`, `48`."""
    return "–" if value is None else f"{value:.3g}"


def seconds(value: float) -> str:
    """`812 µs`, `5.3 ms`, `2.41 s`, `3 min 20 s`."""
    if value >= 60:
        return f"{int(value // 60)} min {int(value % 60)} s"
    if value >= 1:
        return f"{value:.2f} s"
    return f"{1e3 * value:.1f} ms" if value >= 1e-3 else f"{1e6 * value:.0f} µs"


def revision(text: str, *, dirty: bool = False) -> str:
    """Ten digits of a git revision, `with edits` where files differed from it."""
    return (text[:10] or "no revision") + (" with edits" if dirty and text else "")


def count(number: int, noun: str) -> str:
    """`1 run`, `1,200 runs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def named(output: str) -> str:
    """An output or stage, or the run as a whole."""
    return output or "the run"


def headline(report: Report) -> str:
    """The verdict in one line."""
    parts = []
    if report.failing:
        parts.append(f"{count(len(report.failing), 'output')} fail{'s' if len(report.failing) == 1 else ''}")
    if report.moved:
        parts.append(f"{count(len(report.moved), 'output')} left the error spread recorded before")
    if report.unverified:
        parts.append(f"{len(report.unverified)} unverified")
    if parts:
        return "; ".join(parts)
    ops = len({output.op for output in report.outputs})
    return f"All {count(len(report.outputs), 'output')} of {count(ops, 'op')} pass, and no error statistic moved"


def scope(scope: Scope) -> str:
    """What the report is over, in one line."""
    new = "" if scope.since is None else f"; new since {scope.since}"
    return (
        f"{count(scope.runs, 'run')} in {count(scope.sessions, 'session')}, {scope.first} to {scope.last} UTC{new}; "
        f"newest at {revision(scope.revision, dirty=scope.dirty)}"
    )


def since(failing: Failing) -> str:
    """When a failure began, and where."""
    began = f"since {failing.since} UTC, revision {revision(failing.revision)}, session {failing.session}"
    return began if failing.ever_passed else f"{began} (it has no passing session before)"


def cases(failing: Failing) -> str:
    """`5 of 12 runs, in score and hash`."""
    shown = ", ".join(failing.cases[:4])
    more = f" and {len(failing.cases) - 4} more" if len(failing.cases) > 4 else ""
    return f"{failing.failed:,} of {count(failing.runs, 'run')}, in {shown}{more}"


def shift(moved: Shift) -> str:
    """`share of its limit 0.31 → 0.62 (spread 0.02 over 120 rows)`."""
    return (
        f"{STATISTIC[moved.statistic]} {number(moved.before)} → {number(moved.now)} "
        f"(spread {number(moved.spread)} over {count(moved.baseline_rows, 'row')})"
    )
