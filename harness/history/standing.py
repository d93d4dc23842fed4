"""Since when: the earliest session from which on a statistic stands above all that was recorded before it.

`regression.findings` compares one window with all before it, so what moved two sessions ago is its baseline by now.
Here every session is tried as the beginning of the window, and a shift counts only while it lasts: in each session
from there to the newest.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from harness.history.query import History
from harness.history.regression import STATISTICS, Key, Row, Shift, ceiling, grouped, shift, values

LOOK_BACK = 50
"""Sessions of a situation that are tried as the beginning."""

_BASELINE = 5  # rows before a beginning that is not the newest session: fewer are often the lowest by chance


def standing(history: History) -> tuple[Shift, ...]:
    """The shifts that the newest session of each situation still shows, each from the session where it began."""
    found: list[Shift] = []
    for key, rows in grouped(history).items():
        sessions = _by_session(rows)
        if len(sessions) > 1:
            found += [s for name in STATISTICS if (s := _earliest(key, name, sessions)) is not None]
    return tuple(found)


def _by_session(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each session, in the order in which the sessions began."""
    sessions: dict[object, list[Row]] = {}
    for row in rows:
        sessions.setdefault(row["session"], []).append(row)
    return list(sessions.values())


def _earliest(key: Key, statistic: str, sessions: Sequence[Sequence[Row]]) -> Shift | None:
    seen = [values(rows, statistic) for rows in sessions]
    if not seen[-1]:
        return None
    lowest = math.inf  # of the means from the session on that is tried
    begin = None
    for start in range(len(sessions) - 1, max(0, len(sessions) - 1 - LOOK_BACK), -1):
        if seen[start]:
            lowest = min(lowest, statistics.fmean(seen[start]))
        before = [value for session in seen[:start] for value in session]
        if not before or (start < len(sessions) - 1 and len(before) < _BASELINE):
            break
        if seen[start] and lowest > ceiling(before, statistic):
            begin = start
    if begin is None:
        return None
    old = [row for session in sessions[:begin] for row in session]
    return shift(key, statistic, old, [row for session in sessions[begin:] for row in session])
