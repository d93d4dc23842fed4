"""The summary of a gate in Markdown, short enough for a pull-request comment."""

from __future__ import annotations

from collections.abc import Sequence

from harness.compare import FAIL, PASS
from harness.gate.judging import Outcome, worst_first
from harness.report import Row, failure_text, rows

LIMIT = 60_000
"""Characters; a comment on GitHub may have 65 536."""

_SHOWN = 10
_MARKS = {PASS: "✅", FAIL: "❌"}


def summary(outcome: Outcome) -> str:
    """What was judged and what came of it: one line, a table of outputs, failures with the command that repeats them,
    shifts against the baseline, and what was not run."""
    parts = [f"## Goldengate: {headline(outcome)}", ""]
    parts += _table(rows(outcome.verdicts))
    parts += _failures(outcome)
    parts += _shifts(outcome)
    parts += _rest(outcome)
    text = "\n".join(parts).rstrip() + "\n"
    return text if len(text) <= LIMIT else text[: LIMIT - 40].rsplit("\n", 1)[0] + "\n\n… cut, see the log.\n"


def headline(outcome: Outcome) -> str:
    """`3 ops judged, 120 runs in 14.2 s: 119 passed, 1 failed`."""
    ops = len(outcome.plan.affected)
    if not ops:
        return "no op is affected"
    failed, refused = len(outcome.failed), len(outcome.refused)
    passed = sum(v.status == PASS for v in outcome.verdicts)
    words = [f"{passed} passed", f"{failed} failed"]
    words += [f"{refused} refused"] if refused else []
    other = len(outcome.verdicts) - passed - failed
    words += [f"{other} unverified or empty"] if other else []
    words += [f"{len(outcome.not_run)} not run"] if outcome.not_run else []
    runs = len(outcome.verdicts) + refused
    return f"{ops} op{'s' * (ops != 1)} judged, {runs} runs in {outcome.seconds:.1f} s: {', '.join(words)}"


def _table(lines: Sequence[Row]) -> list[str]:
    if not lines:
        return []
    head = ["| | op | configuration | output | runs | worst ULP | differing | over limit |", "|-|-|-|-|-:|-:|-:|-:|"]
    body = [
        f"| {_MARKS.get(row.status, '⚠️')} | {row.op} | {row.configuration} | {row.output} | {row.runs}"
        f"{f' ({row.failed} failed)' if row.failed else ''} | {row.ulp} | {row.differing:.3%} | {row.over:.3%} |"
        for row in sorted(lines, key=lambda row: row.status == PASS)
    ]
    failing = [line for line in body if line.startswith(f"| {_MARKS[FAIL]}")]
    rest = [line for line in body if line not in failing]
    if len(body) <= 2 * _SHOWN:
        return [*head, *body, ""]
    folded = ["<details><summary>all other outputs</summary>", "", *head, *rest, "", "</details>", ""]
    return [*head, *failing, "", *folded] if failing else folded


def _failures(outcome: Outcome) -> list[str]:
    blocks: list[str] = []
    for verdict in worst_first(outcome.verdicts)[:_SHOWN]:
        blocks += [f"### ❌ {verdict.run.op}", "", "```", failure_text(verdict), "```", ""]
    for refused in outcome.refused[:_SHOWN]:
        blocks += [f"### ❌ {refused.run.op}: refused", "", "```", refused.text, "```", ""]
    return blocks


def _shifts(outcome: Outcome) -> list[str]:
    found = outcome.findings
    if found is None:
        return []
    if not found.shifts:
        return [f"No statistic left the spread of the baseline ({found.compared} compared).", ""]
    lines = [f"- {shift.text}" for shift in found.shifts[:_SHOWN]]
    more = len(found.shifts) - len(lines)
    return [
        f"### ⚠️ {len(found.shifts)} error statistics left the spread of the baseline",
        "",
        *lines,
        *([f"- and {more} more"] if more else []),
        "",
    ]


def _rest(outcome: Outcome) -> list[str]:
    lines: list[str] = []
    if outcome.plan.unaffected:
        lines.append(f"Not affected, not judged: {', '.join(outcome.plan.unaffected)}.")
    if outcome.not_run:
        lines.append(f"The budget left {len(outcome.not_run)} runs out.")
    if outcome.unjudged:
        lines.append(f"⚠️ Nothing was judged of {', '.join(outcome.unjudged)}.")
    lines += [f"Left out: {reason}." for reason in outcome.plan.left_out]
    return lines
