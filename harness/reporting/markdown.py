"""The report as Markdown: for terminals, and for the summary of a CI job."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.locate import describe
from harness.reporting import words
from harness.reporting.facts import Failing, Kills, Moved, Report

_SHOWN = 10


def markdown(report: Report) -> str:
    """Verdict and regressions first, then the outputs nearest to their limits, and the tables in short."""
    sign = "❌" if report.failing else "⚠️" if report.moved or report.unverified else "✅"
    parts = [f"# {sign} {words.headline(report)}", "", words.scope(report.scope), ""]
    for failing in report.failing[:_SHOWN]:
        parts += _failing(failing)
    for moved in report.moved[:_SHOWN]:
        parts += _moved(moved)
    hidden = max(len(report.failing) - _SHOWN, 0) + max(len(report.moved) - _SHOWN, 0)
    parts += [f"… and {hidden} more", ""] if hidden else []
    parts += [f"Unverified: {_plain(', '.join(report.unverified))}.", ""] if report.unverified else []
    if report.fixed:
        parts += [f"- ✅ {_plain(str(c.key))}: passes since {c.since} UTC" for c in report.fixed[:_SHOWN]] + [""]
    parts += _headroom(report) + _quality(report) + _durations(report)
    return "\n".join(parts).rstrip() + "\n"


def _failing(failing: Failing) -> list[str]:
    rule = f" [{failing.rule}]" if failing.rule else ""
    lines = [
        f"## ❌ {_plain(f'{failing.op} {failing.configuration}: {words.named(failing.output)}')}",
        "",
        f"- {_code(failing.reason + rule)}",
        f"- {words.since(failing)}",
        f"- {_plain(words.cases(failing))}",
    ]
    lines += [f"- first diverging: {_plain(failing.diverged)}"] if failing.diverged not in ("", failing.output) else []
    lines += [f"- bad elements: {describe(failing.axes)}"] if failing.axes else []
    return [*lines, "", _code(failing.command), ""]


def _moved(moved: Moved) -> list[str]:
    first = moved.shifts[0]
    seen = {shift.statistic: shift for shift in reversed(moved.shifts)}
    return [
        f"## ⚠️ {_plain(f'{moved.op} {moved.configuration}: {words.named(moved.output)}')}",
        "",
        *(f"- {words.shift(shift)}" for shift in reversed(seen.values())),
        f"- since {first.since} UTC, revision {words.revision(first.revision)}, session {first.session}",
        "",
        _code(first.command),
        "",
    ]


def _headroom(report: Report) -> list[str]:
    ordered = sorted(report.outputs, key=lambda o: -(o.used or 0.0))[:_SHOWN]
    rows = [
        (f"{o.op} {o.configuration}", f"stage {o.name}" if o.stage else o.name, o.status, words.share(o.used),
         words.headroom(o.used), words.number(o.ulp_max), words.share(o.differing))
        for o in ordered
    ]  # fmt: skip
    head = ("op", "output", "verdict", "limit used", "headroom", "worst ULP", "differing")
    return ["## Least headroom", "", *_table(head, rows, left=3), ""]


def _quality(report: Report) -> list[str]:
    lines: list[str] = []
    if report.mutants is not None:
        rows = [_kills(kills) for kills in (*report.mutants.classes, report.mutants.total)]
        head = ("class", "killed", "survived", "equivalent", "refused", "errors", "kill rate")
        lines += ["## Mutants", "", *_table(head, rows, left=1), ""]
    if report.alarms is not None:
        runs, failed = sum(a.runs for a in report.alarms), sum(a.failed for a in report.alarms)
        lines += [f"False alarms: {failed:,} in {words.count(runs, 'run')} on legal devices and held-out seeds.", ""]
    return lines


def _kills(kills: Kills) -> tuple[str, ...]:
    counts = (kills.killed, kills.survived, kills.equivalent, kills.refused, kills.errors)
    return (kills.name, *(f"{value:,}" for value in counts), words.rate(kills.rate))


def _durations(report: Report) -> list[str]:
    slowest = sorted(report.durations, key=lambda d: -d.total)[:_SHOWN]
    rows = [
        (f"{d.op} {d.configuration}", *map(words.seconds, (d.inputs, d.golden, d.device, d.judge, d.total)))
        for d in slowest
    ]
    return ["## Slowest ops", "", *_table(("op", "inputs", "golden", "device", "judge", "sum"), rows, left=1), ""]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, left: int) -> list[str]:
    """A Markdown table, its columns padded so that a terminal shows it well."""
    cells = [tuple(head), *(tuple(_cell(text) for text in row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        padded = (
            text.ljust(width) if i < left else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    rule = [("-" * width if i < left else "-" * (width - 1) + ":") for i, width in enumerate(widths)]
    return [line(cells[0]), f"| {' | '.join(rule)} |", *map(line, cells[1:])]


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _code(text: str) -> str:
    """One line that is shown as it is."""
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"


def _plain(text: str) -> str:
    """One line, with no character that would begin a tag or code."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("`", "&#96;")
