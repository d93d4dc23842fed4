"""What a store says, aggregated in SQL. "Now" is the newest session of each situation and what else ran the same code.

A situation is an op in one configuration, case and device. Seeds rotate from session to session, so a failure of an
earlier session stands while its revision (clean) and kernel are still those of the newest one.
"""

from __future__ import annotations

import datetime
import itertools
import json
import math
from collections.abc import Iterable
from typing import Any

from harness.history.query import History
from harness.history.regression import Change, Shift, findings
from harness.history.standing import standing
from harness.locate import Axis
from harness.metrics import SWEEP
from harness.reporting.facts import Duration, Failing, Moved, Output, Report, Scope, SessionLine

Row = dict[str, Any]
SESSIONS_SHOWN = 60
"""Points of a trend line, and rows of the table of sessions."""

_TABLES = """
CREATE OR REPLACE TEMP TABLE numbered AS
SELECT session, min(time) AS began, row_number() OVER (ORDER BY min(time), session) AS number
FROM results GROUP BY session;

CREATE OR REPLACE TEMP TABLE judged AS
SELECT r.*, n.number, n.began,
       r.preset || '/' || r.deployment
           || CASE WHEN r.overrides = '[]' THEN '' ELSE ' ' || r.overrides END
           || CASE WHEN r.device = 'emulator' THEN '' ELSE ' on ' || r.device END AS configuration,
       left(r.id, length(r.id) - length(r.output) - 1) AS run,
       CASE WHEN r.stage THEN 'stage ' || r.output ELSE r.output END AS label
FROM results r JOIN numbered n USING (session);

CREATE OR REPLACE TEMP TABLE newest AS
SELECT op, configuration, "case", max(number) AS number, arg_max(revision, number) AS revision,
       arg_max(kernel, number) AS kernel, arg_max(dirty, number) AS dirty
FROM judged GROUP BY op, configuration, "case";

CREATE OR REPLACE TEMP TABLE marked AS
SELECT j.*, j.number = n.number
            OR (j.revision <> '' AND j.revision = n.revision AND j.kernel = n.kernel AND NOT j.dirty
                AND NOT n.dirty) AS is_now
FROM judged j JOIN newest n USING (op, configuration, "case");

CREATE OR REPLACE TEMP TABLE runs AS
SELECT run, any_value(op) AS op, any_value(configuration) AS configuration, any_value("case") AS "case",
       any_value(session) AS session, any_value(number) AS number, any_value(began) AS began, min(time) AS time,
       any_value(revision) AS revision, any_value(run_status) AS run_status, any_value(problems) AS problems,
       any_value(command) AS command, any_value(diverged) AS diverged, bool_or(is_now) AS is_now,
       any_value(seconds_inputs) AS inputs, any_value(seconds_golden) AS golden,
       any_value(seconds_device) AS device, any_value(seconds_judge) AS judge
FROM marked GROUP BY run;

CREATE OR REPLACE TEMP TABLE verdicts AS
SELECT op, configuration, label, "case", number, began, session, revision, time, is_now, status = 'fail' AS failed,
       status, used, rule, reason, diverged, command, bad
FROM marked WHERE output <> ''
UNION ALL
SELECT op, configuration, '', "case", number, began, session, revision, time, is_now, problems <> '[]', run_status,
       NULL, '', problems, diverged, command, '[]'
FROM runs;
"""

_FAILING = """
WITH per_case AS (
    SELECT op, configuration, label, "case",
           max(number) FILTER (NOT failed_then) AS passed
    FROM (SELECT op, configuration, label, "case", number, bool_or(failed) AS failed_then
          FROM verdicts GROUP BY ALL)
    GROUP BY ALL
)
SELECT v.op, v.configuration, v.label,
       list(DISTINCT v."case" ORDER BY v."case") FILTER (v.failed AND v.is_now) AS cases,
       count(*) FILTER (v.is_now) AS runs,
       count(*) FILTER (v.failed AND v.is_now) AS failed,
       min_by({'time': v.time, 'session': v.session, 'revision': v.revision}, v.time)
           FILTER (v.failed AND (v.is_now OR v.number > coalesce(p.passed, 0))) AS began,
       bool_or(p.passed IS NOT NULL) FILTER (v.failed AND v.is_now) AS ever_passed,
       arg_max({'rule': v.rule, 'reason': v.reason, 'diverged': v.diverged, 'command': v.command, 'bad': v.bad},
               (coalesce(v.used, 0), -epoch(v.time))) FILTER (v.failed AND v.is_now) AS worst
FROM verdicts v JOIN per_case p USING (op, configuration, label, "case")
GROUP BY v.op, v.configuration, v.label
HAVING count(*) FILTER (v.failed AND v.is_now) > 0
ORDER BY v.op, v.configuration, v.label
"""

_OUTPUTS = """
SELECT op, configuration, output, stage, count(*) FILTER (is_now) AS rows, any_value(rule) AS rule,
       bool_or(status = 'fail') FILTER (is_now) AS fails, bool_or(status = 'unverified') FILTER (is_now) AS unverified,
       bool_and(status = 'empty') FILTER (is_now) AS empty,
       max(used) FILTER (is_now AND elements IS NOT NULL) AS used, max(used) FILTER (elements IS NOT NULL) AS used_ever,
       max(ulp_max) FILTER (is_now) AS ulp_max, max(rel_l2) FILTER (is_now) AS rel_l2,
       max(abs(bias_z)) FILTER (is_now) AS bias_z,
       sum(differing) FILTER (is_now) / nullif(sum(compared) FILTER (is_now), 0) AS differing,
       [{beyond}] AS sweep
FROM marked WHERE output <> '' GROUP BY op, configuration, output, stage
HAVING count(*) FILTER (is_now) > 0
"""

# The share beyond each threshold of the sweep, over all elements compared now.
_BEYOND = ", ".join(
    f"sum(sweep[{i}] * compared) FILTER (is_now AND compared > 0) / nullif(sum(compared) FILTER (is_now), 0)"
    for i in range(1, len(SWEEP) + 1)
)

_TRENDS = """
SELECT op, configuration, output, stage, list({'began': began, 'value': used} ORDER BY number) AS points
FROM (SELECT op, configuration, output, stage, number, began, max(used) AS used FROM marked
      WHERE output <> '' AND used IS NOT NULL GROUP BY ALL) GROUP BY ALL
"""

_DURATIONS = """
WITH mean AS (
    SELECT op, configuration, number, began, count(*) AS n, bool_or(is_now) AS is_now,
           coalesce(avg(nullif(inputs, 0)), 0) AS inputs, coalesce(avg(nullif(golden, 0)), 0) AS golden,
           coalesce(avg(nullif(device, 0)), 0) AS device, coalesce(avg(nullif(judge, 0)), 0) AS judge
    FROM runs GROUP BY op, configuration, number, began
)
SELECT op, configuration, arg_max(n, number) AS n, arg_max(inputs, number) AS inputs,
       arg_max(golden, number) AS golden, arg_max(device, number) AS device, arg_max(judge, number) AS judge,
       list({'began': began, 'value': inputs + golden + device + judge} ORDER BY number) AS points
FROM mean GROUP BY op, configuration
"""

_SESSIONS = """
SELECT r.session, n.began, any_value(r.revision) AS revision, any_value(r.dirty) AS dirty, any_value(r.host) AS host,
       count(DISTINCT r.run) AS runs, count(DISTINCT r.run) FILTER (r.run_status = 'fail') AS failed,
       (SELECT sum(inputs + golden + device + judge) FROM runs WHERE runs.session = r.session) AS seconds
FROM marked r JOIN numbered n USING (session)
GROUP BY r.session, n.began ORDER BY n.began DESC
"""


def build(history: History, store: str, since: str | None, now: datetime.datetime) -> Report:
    """The report of a store, without the tables of journals. `since`: ISO date or time from which on rows are new for
    shifts and fixes, None: each shift from the session where it began. Raises UsageError for a `since` that is no time.
    """
    found = findings(history, since)
    shifts = found.shifts if since is not None else standing(history)
    history.connection.execute(_TABLES)
    outputs = _outputs(history)
    failing = tuple(_failing(row) for row in history.select(_FAILING))
    told = {(one.op, one.configuration, one.output) for one in failing}
    moved = (one for one in _moved(shifts) if (one.op, one.configuration, one.output) not in told)
    sessions = [_session(row) for row in history.select(_SESSIONS)]
    return Report(
        scope=_scope(history, store, since, now, sessions),
        failing=failing,
        moved=tuple(moved),
        fixed=_settled(found.fixed),
        unverified=tuple(f"{o.op} {o.configuration}: {o.name}" for o in outputs if o.status == "unverified"),
        outputs=outputs,
        durations=tuple(_duration(row) for row in history.select(_DURATIONS)),
        sessions=tuple(sessions[:SESSIONS_SHOWN]),
    )


def _scope(
    history: History, store: str, since: str | None, now: datetime.datetime, sessions: list[SessionLine]
) -> Scope:
    (row,) = history.select(
        "SELECT count(DISTINCT run) AS runs, count(*) AS n, min(time) AS first, max(time) AS last FROM marked"
    )
    newest = sessions[0]
    return Scope(
        store=store, since=since, sessions=len(sessions), runs=row["runs"], rows=row["n"],
        first=_time(row["first"]), last=_time(row["last"]), revision=newest.revision, dirty=newest.dirty,
        built=_time(now),
    )  # fmt: skip


def _failing(row: Row) -> Failing:
    worst, began = row["worst"], row["began"]
    reason = worst["reason"]
    if not row["label"]:  # a run as a whole: its problems
        problems = json.loads(reason)
        reason = problems[0] + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")
    return Failing(
        op=row["op"], configuration=row["configuration"], output=row["label"], cases=tuple(row["cases"]),
        runs=row["runs"], failed=row["failed"], since=_time(began["time"]), session=began["session"],
        revision=began["revision"], ever_passed=row["ever_passed"], rule=worst["rule"], reason=reason,
        diverged=worst["diverged"], command=worst["command"], axes=_axes(worst["bad"]),
    )  # fmt: skip


def _axes(text: str) -> tuple[Axis, ...]:
    return tuple(Axis(axis["extent"], tuple((i, n) for i, n in axis["counts"])) for axis in json.loads(text))


def _moved(shifts: Iterable[Shift]) -> tuple[Moved, ...]:
    """The shifts by output; of the same statistic in several cases the one that grew by most stands for all."""
    groups: dict[tuple[str, str, str], list[Shift]] = {}
    for one in shifts:
        key = one.key
        sizes = "" if key.overrides == "[]" else f" {key.overrides}"
        device = "" if key.device == "emulator" else f" on {key.device}"
        name = f"stage {key.output}" if key.stage else key.output
        groups.setdefault((key.op, f"{key.preset}/{key.deployment}{sizes}{device}", name), []).append(one)
    return tuple(Moved(*key, tuple(sorted(group, key=growth, reverse=True))) for key, group in sorted(groups.items()))


def growth(shift: Shift) -> float:
    """How many times its largest value before a statistic has now; infinite where it was 0."""
    return shift.now / shift.before if shift.before else math.inf


def _settled(changes: Iterable[Change]) -> tuple[Change, ...]:
    return tuple(sorted(changes, key=lambda change: str(change.key)))


def _outputs(history: History) -> tuple[Output, ...]:
    trends = {_key(row): row["points"] for row in history.select(_TRENDS)}
    rows = history.select(_OUTPUTS.format(beyond=_BEYOND))
    return tuple(sorted((_output(row, trends.get(_key(row), [])) for row in rows), key=_order))


def _key(row: Row) -> tuple[Any, ...]:
    return row["op"], row["configuration"], row["output"], row["stage"]


def _output(row: Row, points: list[Row]) -> Output:
    if row["fails"]:
        status = "fail"
    elif row["unverified"] or row["empty"]:
        status = "unverified"
    else:
        status = "pass"
    return Output(
        op=row["op"], configuration=row["configuration"], name=row["output"], stage=row["stage"], status=status,
        rule=row["rule"], rows=row["rows"], used=row["used"], used_ever=row["used_ever"], ulp_max=row["ulp_max"],
        differing=row["differing"] or 0.0, rel_l2=row["rel_l2"], bias_z=row["bias_z"],
        histogram=_histogram(row["sweep"]), trend=_points(points),
    )  # fmt: skip


def _histogram(sweep: list[float | None]) -> tuple[float, ...]:
    """Shares per bin from the shares beyond each threshold; () where nothing was compared as numbers."""
    if any(share is None for share in sweep):
        return ()
    beyond = [1.0, *(float(share) for share in sweep if share is not None), 0.0]
    return tuple(max(here - after, 0.0) for here, after in itertools.pairwise(beyond))


def _order(output: Output) -> tuple[Any, ...]:
    return output.op, output.configuration, output.stage, output.name


def _points(points: list[Row]) -> tuple[tuple[str, float], ...]:
    return tuple((_time(point["began"]), point["value"]) for point in points[-SESSIONS_SHOWN:])


def _duration(row: Row) -> Duration:
    return Duration(
        row["op"], row["configuration"], row["n"], row["inputs"], row["golden"], row["device"], row["judge"],
        _points(row["points"]),
    )  # fmt: skip


def _session(row: Row) -> SessionLine:
    return SessionLine(
        row["session"], _time(row["began"]), row["revision"], row["dirty"], row["host"], row["runs"], row["failed"],
        row["seconds"] or 0.0,
    )  # fmt: skip


def _time(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M")
