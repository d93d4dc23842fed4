"""How results are said: the one grammar of failures, the table, and the JSON record.

A failure has three lines: what broke (op, output, rule, measured against limit), where (worst element with both
values and bits, distance, first diverging stage or output, where the bad elements sit), and the command that repeats
it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from harness.compare import EMPTY, FAIL, PASS, Judgement
from harness.judging import UNVERIFIED
from harness.locate import describe
from harness.metrics import Metrics, Point
from harness.verify import Verdict

_RANK = {FAIL: 3, UNVERIFIED: 2, EMPTY: 1, PASS: 0}  # the worst of a row is what it shows
_FINDINGS_SHOWN = 5


def failure_text(verdict: Verdict) -> str:
    """All failures of a run: problems first, then outputs in order of the signature; "" when there are none."""
    run = verdict.run
    head = f"{run.op} {run.preset}/{run.deployment} {run.case} seed {run.seed} schedule {run.schedule}"
    lines = [f"FAIL {head}: {problem}" for problem in verdict.problems[:_FINDINGS_SHOWN]]
    if len(verdict.problems) > _FINDINGS_SHOWN:
        lines.append(f"  and {len(verdict.problems) - _FINDINGS_SHOWN} more")
    for name, judgement in _judged(verdict):
        if judgement.status == FAIL:
            lines.append(f"FAIL {head}: {name}: {judgement.reason} [{judgement.label}]")
            lines.append(f"  {_where(judgement, verdict.diverged)}")
    if lines:
        lines.append(f"  repeat: {verdict.command}")
    return "\n".join(lines)


def _judged(verdict: Verdict) -> list[tuple[str, Judgement]]:
    """Stages, said to be stages, and then outputs, each with its judgement."""
    return [(f"stage {name}", judgement) for name, judgement in verdict.stages.items()] + list(verdict.outputs.items())


def _where(judgement: Judgement, diverged: str | None) -> str:
    parts = []
    if judgement.worst is not None:
        parts.append(f"worst {point_text(judgement.worst)}")
    if diverged is not None:
        parts.append(f"first diverging: {diverged}")
    if judgement.where:
        parts.append(f"bad elements: {describe(judgement.where)}")
    return "; ".join(parts)


def point_text(point: Point, names: tuple[str, str] = ("actual", "expected")) -> str:
    """`[3, 17]: actual 0.25 (0x3e80), expected 0.251 (0x3e81), 1 step apart`; `names` are those of the two values."""
    if point.distance is None:
        apart = "not finite"
    else:
        apart = f"{point.distance} step{'' if point.distance == 1 else 's'} apart"
    return (
        f"{list(point.index)}: {names[0]} {_value(point.actual)} ({point.actual_bits}), "
        f"{names[1]} {_value(point.expected)} ({point.expected_bits}), {apart}"
    )


def _value(value: float | int) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Row:
    """One line of the table: the worst figures of one output over a number of runs."""

    op: str
    configuration: str
    cases: str
    output: str
    over: float
    ulp: int
    differing: float
    rel_l2: float
    label: str
    seconds: float
    runs: int
    failed: int
    status: str


HEADERS = (
    "op", "configuration", "cases", "output", "verdict", "over limit", "worst ULP", "differing", "rel L2", "s/run",
    "tolerance",
)  # fmt: skip


def rows(verdicts: Sequence[Verdict], *, each: bool = False) -> list[Row]:
    """One row per op, configuration and output, worst over all runs, and per failed stage; with `each`, one per run and
    output or stage."""
    groups: dict[tuple[str, ...], list[tuple[Verdict, Judgement]]] = {}
    for verdict in verdicts:
        run = verdict.run
        judgements = [(name, j) for name, j in _judged(verdict) if each or name in verdict.outputs or j.status == FAIL]
        for output, judgement in judgements or [("-", Judgement(verdict.status, "-", None))]:
            key = (run.op, f"{run.preset}/{run.deployment}", output, run.id if each else "")
            groups.setdefault(key, []).append((verdict, judgement))
    return [_row(key, group) for key, group in groups.items()]


def _row(key: tuple[str, ...], group: list[tuple[Verdict, Judgement]]) -> Row:
    verdicts = [verdict for verdict, _ in group]
    judgements = [judgement for _, judgement in group]
    metrics = [j.metrics for j in judgements if j.metrics is not None]
    status = max((_output_status(v, j) for v, j in group), key=_RANK.__getitem__)
    if status == EMPTY:
        status = PASS if any(j.status == PASS for j in judgements) else UNVERIFIED
    return Row(
        op=key[0],
        configuration=key[1],
        cases=_cases(verdicts),
        output=key[2],
        over=max((m.over_fraction for m in metrics), default=0.0),
        ulp=max((m.ulp_max for m in metrics), default=0),
        differing=max((m.differing_fraction for m in metrics), default=0.0),
        rel_l2=max((m.rel_l2 for m in metrics), default=0.0),
        label=judgements[0].label,
        seconds=sum(_seconds(v) for v in verdicts) / len(verdicts),
        runs=len(group),
        failed=sum(_output_status(v, j) == FAIL for v, j in group),
        status=status,
    )


def _output_status(verdict: Verdict, judgement: Judgement) -> str:
    """A run that failed by a problem of no one output fails in each of its rows."""
    return FAIL if verdict.problems else judgement.status


def _seconds(verdict: Verdict) -> float:
    timing = verdict.timing
    return timing.inputs + timing.golden + timing.device + timing.judge


def _cases(verdicts: Sequence[Verdict]) -> str:
    runs = [verdict.run for verdict in verdicts]
    text = _names(list(dict.fromkeys(run.case for run in runs)))
    seeds, schedules = {run.seed for run in runs}, {run.schedule for run in runs}
    if len(seeds) > 1 or seeds != {0}:
        text += f" × seeds {_span(seeds)}"
    if len(schedules) > 1 or schedules != {0}:
        text += f" × schedules {_span(schedules)}"
    return text


def _names(cases: Sequence[str]) -> str:
    return cases[0] if len(cases) == 1 else f"{len(cases)} cases"


def _span(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    if len(numbers) == 1:
        return str(low)
    return f"{low}..{high}" if len(numbers) == high - low + 1 else f"{len(numbers)} in {low}..{high}"


def table(verdicts: Sequence[Verdict], *, each: bool = False) -> str:
    """The table of results, its columns as HEADERS. What a row shares with the one above it is said once."""
    body: list[tuple[str | int, ...]] = []
    above: tuple[str, ...] = ()
    for row in rows(verdicts, each=each):
        group = (row.op, row.configuration, row.cases)
        same = group == above
        above = group
        body.append(
            (
                *(("", "", "") if same else group),
                row.output,
                row.status if not row.failed or row.runs == 1 else f"{row.status} ({row.failed} of {row.runs})",
                f"{row.over:.4%}" if row.over else "0",
                row.ulp,
                f"{row.differing:.4%}" if row.differing else "0",
                f"{row.rel_l2:.2e}" if row.rel_l2 else "0",
                "" if same else f"{row.seconds:.3f}",
                row.label,
            )
        )
    right = ("over limit", "worst ULP", "differing", "rel L2", "s/run")
    align = tuple("right" if name in right else "left" for name in HEADERS)
    return tabulate(body, headers=HEADERS, colalign=align, disable_numparse=True)


def summary(verdicts: Sequence[Verdict], seconds: float) -> str:
    """`412 runs in 31.2 s: 411 pass, 1 fail, 0 unverified`."""
    counts = {status: sum(v.status == status for v in verdicts) for status in (PASS, FAIL, UNVERIFIED, EMPTY)}
    if not counts[EMPTY]:
        del counts[EMPTY]
    words = ", ".join(f"{count} {status}" for status, count in counts.items())
    return f"{len(verdicts)} run{'' if len(verdicts) == 1 else 's'} in {seconds:.1f} s: {words}"


def notes(verdicts: Iterable[Verdict]) -> list[str]:
    """What the user should know although it fails nothing: notes and findings, each said once."""
    cases: dict[tuple[str, str], dict[str, None]] = {}
    findings: dict[str, int] = {}
    for verdict in verdicts:
        said = list(verdict.notes)
        if verdict.status == EMPTY:
            said.append("nothing to compare: the contract defines no element of the outputs")
        for text in said:
            cases.setdefault((verdict.run.op, text), {})[verdict.run.case] = None
        said = [str(finding) for finding in verdict.findings if str(finding) not in verdict.problems]
        without = [name for name, judgement in verdict.outputs.items() if judgement.status == UNVERIFIED]
        if without:
            said.append(f"{verdict.run.op}: unverified: no tolerance for {', '.join(without)}")
        for text in dict.fromkeys(said):
            findings[text] = findings.get(text, 0) + 1
    return [
        *(f"{op} {_names(list(cases_of))}: {text}" for (op, text), cases_of in cases.items()),
        *(text if count == 1 else f"{text} (in {count} runs)" for text, count in findings.items()),
    ]


def unverified_outputs(verdicts: Sequence[Verdict]) -> list[str]:
    """Rows of the table that nothing verified: no tolerance, or not one element compared in any run."""
    return [f"{row.op}.{row.output}" for row in rows(verdicts) if row.status == UNVERIFIED]


def to_json(verdicts: Sequence[Verdict]) -> str:
    """Valid JSON: every metric, configuration, versions and the reproduce line of every run. NaN is "nan"."""
    document = {"format": 1, "runs": [verdict_record(verdict) for verdict in verdicts]}
    return json.dumps(plain(document), indent=1, allow_nan=False)


def verdict_record(verdict: Verdict) -> dict[str, Any]:
    """One run as plain data."""
    return {
        "id": verdict.run.id,
        "status": verdict.status,
        "run": verdict.run.as_dict(),
        "reproduce": verdict.command,
        "outputs": {name: _judgement_record(j) for name, j in verdict.outputs.items()},
        "stages": {name: _judgement_record(j) for name, j in verdict.stages.items()},
        "problems": list(verdict.problems),
        "notes": list(verdict.notes),
        "findings": [dataclasses.asdict(finding) for finding in verdict.findings],
        "counters": dict(verdict.counters),
        "seconds": dataclasses.asdict(verdict.timing),
        "first_diverging": verdict.diverged,
        "config": verdict.config,
        "versions": dict(verdict.versions),
    }


def _judgement_record(judgement: Judgement) -> dict[str, Any]:
    return {
        "status": judgement.status,
        "rule": judgement.label,
        "reason": judgement.reason,
        "used": judgement.used,
        "metrics": None if judgement.metrics is None else _metrics_record(judgement.metrics),
        "worst": None if judgement.worst is None else dataclasses.asdict(judgement.worst),
        "where": [dataclasses.asdict(axis) for axis in judgement.where],
    }


def _metrics_record(metrics: Metrics) -> dict[str, Any]:
    return {
        **dataclasses.asdict(metrics),
        "over_fraction": metrics.over_fraction,
        "differing_fraction": metrics.differing_fraction,
        "bias_z": metrics.bias_z,
    }


def plain(value: Any) -> Any:
    """Only what JSON has: non-finite numbers become "nan", "inf" and "-inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
