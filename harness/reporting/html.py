"""The report as one page: the verdict and what regressed first, everything else folded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.reporting import svg, words
from harness.reporting.facts import Alarms, Duration, Failing, Kills, Moved, MutantTable, Output, Report
from harness.reporting.markup import Markup, join, tag
from harness.reporting.style import CSS

_SHOWN = 25  # cards of one kind; all others are in a folded table
_PARTS = ("inputs", "golden", "device", "judge")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_CHIPS = {"fail": ("fail", "✕ fail"), "pass": ("pass", "✓ pass"), "unverified": ("warn", "? unverified")}


def page(report: Report) -> str:
    """A whole HTML document that needs no network and no script."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"Goldengate: {words.headline(report)}"),
        tag("style", Markup(CSS)),
    )
    body = tag("body", tag("main", *_sections(report)))
    return "<!DOCTYPE html>\n" + tag("html", head, body, lang="en") + "\n"


def _sections(report: Report) -> list[Markup]:
    kind, sign = ("fail", "✕ ") if report.failing else ("warn", "! ") if _open(report) else ("pass", "✓ ")
    return [
        tag("header", tag("h1", "Goldengate report"), tag("p", sign, words.headline(report), class_=f"verdict {kind}"),
            tag("p", words.scope(report.scope), class_="soft"), _facts(report)),
        _regressions(report),
        tag("h2", "Everything recorded"),
        _outputs(report.outputs),
        *([] if report.mutants is None else [_mutants(report.mutants)]),
        *([] if report.alarms is None else [_alarms(report.alarms)]),
        _durations(report.durations),
        _sessions(report),
        tag("footer", tag("p", f"Built {report.scope.built} UTC from {report.scope.store}", class_="soft")),
    ]  # fmt: skip


def _open(report: Report) -> bool:
    return bool(report.moved or report.unverified)


def _facts(report: Report) -> Markup:
    used = [output.used for output in report.outputs if output.used is not None and output.status != "fail"]
    shown = [
        (str(len({output.op for output in report.outputs})), "ops"),
        (str(len(report.outputs)), "outputs and stages"),
        (f"{report.scope.runs:,}", "runs recorded"),
        (words.headroom(max(used, default=None)), "least headroom of a pass"),
    ]
    if report.mutants is not None:
        shown.append((words.rate(report.mutants.total.rate), "mutants killed"))
    if report.alarms is not None:
        runs, failed = sum(a.runs for a in report.alarms), sum(a.failed for a in report.alarms)
        shown.append((f"{failed:,} / {runs:,}", "false alarms"))
    return tag("ul", *(tag("li", tag("b", value), tag("span", name)) for value, name in shown), class_="facts")


def _regressions(report: Report) -> Markup:
    parts: list[Markup] = [tag("h2", "What regressed")]
    if not report.failing and not report.moved:
        parts.append(tag("p", "Nothing fails, and no error statistic left the spread that was recorded before.",
                         class_="soft"))  # fmt: skip
    parts += [_failing(one) for one in report.failing[:_SHOWN]]
    parts += [_moved(one) for one in report.moved[:_SHOWN]]
    hidden = [f"{f.op} {f.configuration}: {words.named(f.output)} fails" for f in report.failing[_SHOWN:]]
    hidden += [f"{m.op} {m.configuration}: {words.named(m.output)} moved" for m in report.moved[_SHOWN:]]
    fixed = [f"{c.key}: passes since {c.since} UTC, {words.revision(c.revision)}" for c in report.fixed]
    lists = (
        (f"{len(hidden)} more", hidden),
        (f"{words.count(len(report.unverified), 'output')} unverified", report.unverified),
        (f"{words.count(len(fixed), 'output')} fixed", fixed),
    )
    parts += [_folded(title, tag("ul", *(tag("li", text) for text in texts))) for title, texts in lists if texts]
    return tag("section", *parts, id="regressions")


def _failing(failing: Failing) -> Markup:
    notes = [tag("p", words.since(failing)), tag("p", words.cases(failing), class_="soft")]
    if failing.diverged not in ("", failing.output):
        notes.append(tag("p", f"first diverging: {failing.diverged}", class_="soft"))
    rule = f" [{failing.rule}]" if failing.rule else ""
    return tag(
        "article",
        tag("h3", _chip("fail"), Markup(" "), f"{failing.op} · {words.named(failing.output)}", Markup(" "),
            tag("span", failing.configuration, class_="soft")),
        tag("p", f"{failing.reason}{rule}"),
        *notes,
        *([svg.heat(failing.axes)] if failing.axes else []),
        tag("pre", failing.command),
        class_="card",
    )  # fmt: skip


def _moved(moved: Moved) -> Markup:
    first = moved.shifts[0]
    seen = {shift.statistic: shift for shift in reversed(moved.shifts)}  # the largest step of each statistic
    cases = sorted({shift.key.case for shift in moved.shifts})
    return tag(
        "article",
        tag("h3", tag("span", "! moved", class_="chip warn"), Markup(" "), f"{moved.op} · {words.named(moved.output)}",
            Markup(" "), tag("span", moved.configuration, class_="soft")),
        tag("ul", *(tag("li", words.shift(shift)) for shift in reversed(seen.values()))),
        tag("p", f"since {first.since} UTC, revision {words.revision(first.revision)}, session {first.session}"),
        tag("p", f"in {words.count(len(cases), 'case')}: {', '.join(cases[:4])}{' …' if len(cases) > 4 else ''}",
            class_="soft"),
        tag("pre", first.command),
        class_="card warn",
    )  # fmt: skip


def _chip(status: str) -> Markup:
    kind, text = _CHIPS.get(status, ("warn", status))
    return tag("span", text, class_=f"chip {kind}")


def _folded(title: str, *body: Markup, more: Iterable[Markup] = (), note: str = "", **attributes: str) -> Markup:
    words_after = [tag("span", note, class_="soft")] if note else []
    return tag("details", tag("summary", title, *more, *words_after), tag("div", *body, class_="body"), **attributes)


def _table(caption: str, columns: Sequence[tuple[str, str]], rows: Iterable[tuple[str, Sequence[str]]]) -> Markup:
    """`columns`: (title, class) with the class "n" for numbers; of each row the head and then the cells."""
    head = tag("tr", *(tag("th", title, scope="col", class_=kind) for title, kind in columns))
    body = [
        tag("tr", tag("th", first, scope="row"),
            *(tag("td", cell, class_=kind) for cell, (_, kind) in zip(cells, columns[1:], strict=True)))
        for first, cells in rows
    ]  # fmt: skip
    return tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body))


_OUTPUT_COLUMNS = (
    ("output", ""), ("verdict", ""), ("limit used", ""), ("now", "n"), ("ever", "n"), ("headroom", "n"),
    ("trend", ""), ("relative errors", ""), ("worst ULP", "n"), ("differing", "n"), ("rel. L2", "n"),
)  # fmt: skip


def _outputs(outputs: Sequence[Output]) -> Markup:
    groups: dict[tuple[str, str], list[Output]] = {}
    for output in outputs:
        groups.setdefault((output.op, output.configuration), []).append(output)
    ordered = sorted(groups.items(), key=lambda item: (-max(_used(o) for o in item[1]), item[0]))
    return _folded(
        "Headroom, trends and error histograms",
        tag("p", "Largest share of its limit that each output takes now, the op nearest to a limit first. Trend: that "
            "share per session; dashed: the limit. Relative errors: share of elements per decade, heights logarithmic.",
            class_="soft"),
        *(_op(name, configuration, group) for (name, configuration), group in ordered),
        note=f"{words.count(len(outputs), 'output')} of {words.count(len({o.op for o in outputs}), 'op')}",
        id="headroom",
    )  # fmt: skip


def _used(output: Output) -> float:
    return output.used or 0.0


def _op(name: str, configuration: str, outputs: Sequence[Output]) -> Markup:
    statuses = {output.status for output in outputs}
    status = next((s for s in ("fail", "unverified", "pass") if s in statuses), "pass")
    most = max(outputs, key=_used)
    table = _table(f"{name} {configuration}", _OUTPUT_COLUMNS, (_output(output) for output in outputs))
    tightest = f"{most.name} uses {words.share(most.used)}" if most.used is not None else ""
    return _folded(f"{name} {configuration} ", table, more=(_chip(status), svg.used_bar(most.used)), note=tightest)


def _output(output: Output) -> tuple[str, Sequence[str]]:
    first = words.share(output.trend[0][1]) if output.trend else "–"
    title = f"{output.name}: share of the limit used, {first} to {words.share(output.used)}"
    bits = tag("span", "bit-equal", class_="soft")
    name = f"stage {output.name}" if output.stage else output.name
    return join(name, tag("div", output.rule, class_="rule")), (
        _chip(output.status),
        svg.used_bar(output.used),
        words.share(output.used),
        words.share(output.used_ever),
        words.headroom(output.used),
        svg.trend(output.trend, title, limit=1.0),
        svg.histogram(output.histogram, output.name) if output.differing else bits,
        words.number(output.ulp_max),
        words.share(output.differing),
        words.number(output.rel_l2),
    )


def _mutants(table: MutantTable) -> Markup:
    gates = list(table.total.gates)
    columns = tuple((name, "n") for name in ("killed", "survived", "equivalent", "refused", "errors", "kill rate"))
    more = tuple((f"{gate} *", "n") for gate in gates)

    def row(kills: Kills) -> tuple[str, Sequence[str]]:
        counts = (kills.killed, kills.survived, kills.equivalent, kills.refused, kills.errors)
        said = [kills.gates.get(gate, (0, 0)) for gate in gates]
        return kills.name, (
            *(f"{value:,}" for value in counts), words.rate(kills.rate),
            *(words.rate(a / b if b else None) for a, b in said),
        )  # fmt: skip

    tables = [
        _table(f"Mutants by {title}", ((title, ""), *columns, *more), [row(k) for k in (*rows, table.total)])
        for title, rows in (("class", table.classes), ("op", table.ops))
    ]
    note = tag("p", "* rejected by the outputs of the default case alone, as a stand-alone program compares them",
               class_="soft")  # fmt: skip
    survivors = [
        _folded(f"{words.count(len(table.survivors), 'survivor')}", tag("ul", *(tag("li", tag("code", s))
                                                                              for s in table.survivors)))
    ] if table.survivors else []  # fmt: skip
    said = f"{table.total.killed:,} of {table.total.killed + table.total.survived:,} killed"
    return _folded("Kill rate over mutants", *tables, note, *survivors, note=said, id="mutants")


def _alarms(alarms: Sequence[Alarms]) -> Markup:
    runs, failed = sum(a.runs for a in alarms), sum(a.failed for a in alarms)
    rows = [(a.op, (f"{a.runs:,}", f"{a.empty:,}", f"{a.failed:,}")) for a in alarms]
    columns = (("op", ""), ("runs", "n"), ("nothing to compare", "n"), ("false alarms", "n"))
    table = _table("Shipped kernels on legal devices, on seeds that no calibration saw", columns, rows)
    return _folded("False alarms", table, note=f"{failed:,} in {words.count(runs, 'run')}", id="alarms")


def _durations(durations: Sequence[Duration]) -> Markup:
    ordered = sorted(durations, key=lambda d: -d.total)
    longest = max((d.total for d in ordered), default=0.0)
    numbers = (*((name, "n") for name in _PARTS), ("sum", "n"))
    columns = (("op", ""), ("runs", "n"), *numbers, ("parts", ""), ("trend", ""))
    rows = []
    for d in ordered:
        parts = tuple(zip(_PARTS, (d.inputs, d.golden, d.device, d.judge), strict=True))
        times = (*(words.seconds(value) for _, value in parts), words.seconds(d.total))
        trend = svg.trend(d.trend, f"{d.op}: seconds per run over the sessions")
        rows.append((f"{d.op} {d.configuration}", (f"{d.runs:,}", *times, svg.parts_bar(parts, longest), trend)))
    legend = tag("p", *(join(tag("span", class_=f"key {name}"), name) for name in _PARTS), class_="soft")
    table = _table("Mean time of a run in the newest session; parts that a session kept are left out", columns, rows)
    slowest = f"{ordered[0].op} takes {words.seconds(longest)} a run" if ordered else ""
    return _folded("Durations", legend, table, note=slowest, id="durations")


def _sessions(report: Report) -> Markup:
    columns = (("began (UTC)", ""), ("session", ""), ("revision", ""), ("host", ""), ("runs", "n"), ("failed", "n"),
               ("work", "n"))  # fmt: skip
    rows = [
        (s.began, (s.session, words.revision(s.revision, dirty=s.dirty), s.host, f"{s.runs:,}", f"{s.failed:,}",
                   words.seconds(s.seconds)))
        for s in report.sessions
    ]  # fmt: skip
    left = report.scope.sessions - len(report.sessions)
    caption = "Newest first" + (f"; {left} older ones are not listed" if left else "")
    return _folded("Sessions", _table(caption, columns, rows), note=f"{report.scope.sessions:,}", id="sessions")
