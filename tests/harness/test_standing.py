"""Shifts are traced back to the session where they began, and end where they end."""

from __future__ import annotations

from pathlib import Path

import pytest
from reporting_stores import add_session, real_verdict, using

from harness.history.query import History
from harness.history.standing import standing
from harness.history.store import Store
from harness.verify import Verdict


@pytest.fixture(scope="module")
def verdict() -> Verdict:
    return real_verdict()


def shifts(root: Path, verdict: Verdict, *sessions: tuple[float, ...]) -> list[tuple[str, str, float, float]]:
    """(statistic, session, before, now) found after sessions whose runs used these shares of their limit."""
    for number, used in enumerate(sessions):
        add_session(root, number, [using(verdict, share, seed=i) for i, share in enumerate(used)])
    return [(s.statistic, s.session, s.before, s.now) for s in standing(History(Store(str(root))))]


def test_a_shift_is_told_from_the_session_where_it_began(tmp_path: Path, verdict: Verdict) -> None:
    found = shifts(tmp_path, verdict, (0.3, 0.31, 0.3), (0.31, 0.3, 0.32), (0.6, 0.6), (0.62,), (0.61, 0.6))
    ((statistic, session, before, now),) = found
    assert (statistic, session, before) == ("used", "s2", 0.32)
    assert now == pytest.approx((0.6 + 0.6 + 0.62 + 0.61 + 0.6) / 5)


def test_a_shift_that_ended_is_none(tmp_path: Path, verdict: Verdict) -> None:
    assert shifts(tmp_path, verdict, (0.3, 0.31, 0.3, 0.3, 0.3), (0.6, 0.6), (0.3,)) == []


def test_a_shift_that_was_interrupted_began_after_that(tmp_path: Path, verdict: Verdict) -> None:
    found = shifts(tmp_path, verdict, (0.3,) * 6, (0.4,), (0.3,), (0.6,), (0.6,))
    assert [session for _, session, _, _ in found] == ["s3"]


def test_one_run_of_a_low_figure_is_no_baseline_for_all_that_came_later(tmp_path: Path, verdict: Verdict) -> None:
    """Of any series, some value is the lowest, and it may be the first."""
    assert shifts(tmp_path, verdict, (0.1,), (0.3,), (0.31,), (0.3,)) == []


def test_values_within_the_spread_are_none(tmp_path: Path, verdict: Verdict) -> None:
    assert shifts(tmp_path, verdict, (0.3, 0.2, 0.3, 0.25, 0.28), (0.31, 0.32), (0.31,)) == []
