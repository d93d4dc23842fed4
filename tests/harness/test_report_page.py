"""The report says what the store holds: regressions with their beginning, headroom, histograms; all data escaped."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from reporting_stores import add_session, failing, real_verdict, report_of, using, with_output

from harness.cli import main
from harness.errors import UsageError
from harness.locate import Axis
from harness.metrics import SWEEP
from harness.reporting import journals
from harness.reporting.html import page
from harness.reporting.markdown import markdown
from harness.verify import Verdict


@pytest.fixture(scope="module")
def verdict() -> Verdict:
    return real_verdict()


class Document(HTMLParser):
    """Elements, attributes and text of a page; an end tag that ends something else is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.texts)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_a_failure_is_told_with_its_beginning_and_its_command(tmp_path: Path, verdict: Verdict) -> None:
    for number, made in enumerate((using(verdict, 0.2), failing(verdict, seed=4), failing(verdict, seed=5))):
        add_session(tmp_path, number, [made], revision=f"{number + 10:040x}")
    (found,) = report_of(tmp_path).failing
    assert (found.op, found.output, found.session, found.since) == ("rms_norm", "x_normed", "s1", "2026-11-02 08:00")
    assert found.revision == f"{11:040x}"
    assert found.ever_passed
    assert (found.runs, found.failed) == (1, 1)
    assert "--seed 5" in found.command
    text = page(report_of(tmp_path))
    assert text.index("7 of 512 elements over") < text.index("<details")
    assert "since 2026-11-02 08:00 UTC, revision 0000000000, session s1" in Document(text).text
    assert "1 output fails" in Document(text).text


def test_what_passes_again_does_not_fail_and_is_said_to_be_fixed(tmp_path: Path, verdict: Verdict) -> None:
    for number, made in enumerate((using(verdict, 0.2), failing(verdict), using(verdict, 0.2))):
        add_session(tmp_path, number, [made])
    report = report_of(tmp_path)
    assert not report.failing
    assert [change.before for change in report.fixed] == ["fail"]
    assert "1 output fixed" in Document(page(report)).text


def test_a_failure_stands_while_the_code_is_the_same(tmp_path: Path, verdict: Verdict) -> None:
    """Seeds rotate: that another seed passes later says nothing about the one that failed."""
    same = {"revision": "a" * 40, "kernel": "k"}
    add_session(tmp_path / "same", 0, [failing(verdict, seed=3)], **same)
    add_session(tmp_path / "same", 1, [using(verdict, 0.2, seed=4)], **same)
    assert [f.failed for f in report_of(tmp_path / "same").failing] == [1]
    add_session(tmp_path / "other", 0, [failing(verdict, seed=3)], **same)
    add_session(tmp_path / "other", 1, [using(verdict, 0.2, seed=4)], **(same | {"kernel": "changed"}))
    assert not report_of(tmp_path / "other").failing


def test_a_run_that_broke_down_is_told_and_forgotten_once_it_runs_again(tmp_path: Path, verdict: Verdict) -> None:
    broken = dataclasses.replace(verdict, status="fail", outputs={}, problems=("kernel fault: k.py:3: out of bounds",))
    add_session(tmp_path, 0, [using(verdict, 0.2)])
    add_session(tmp_path, 1, [broken])
    (found,) = report_of(tmp_path).failing
    assert (found.output, found.reason) == ("", "kernel fault: k.py:3: out of bounds")
    assert found.session == "s1"
    add_session(tmp_path, 2, [using(verdict, 0.2)])
    assert not report_of(tmp_path).failing


def test_a_store_of_nothing_but_a_breakdown_is_a_page(tmp_path: Path, verdict: Verdict) -> None:
    add_session(tmp_path, 0, [dataclasses.replace(verdict, status="fail", outputs={}, problems=("kernel fault: x",))])
    report = report_of(tmp_path)
    assert report.outputs == ()
    assert "kernel fault: x" in Document(page(report)).text
    assert markdown(report).startswith("# ❌ 1 output fails")


def test_one_problem_of_a_run_is_one_failure_not_one_per_output(tmp_path: Path, verdict: Verdict) -> None:
    add_session(tmp_path, 0, [dataclasses.replace(verdict, status="fail", problems=("input x was changed", "GG101"))])
    (found,) = report_of(tmp_path).failing
    assert (found.output, found.reason) == ("", "input x was changed (and 1 more)")
    assert not found.ever_passed


def test_a_moved_statistic_is_told_from_where_it_began(tmp_path: Path, verdict: Verdict) -> None:
    for number, used in enumerate((0.3, 0.3, 0.6, 0.6)):
        add_session(tmp_path, number, [using(verdict, used, seed=i) for i in range(4)])
    report = report_of(tmp_path)
    (moved,) = report.moved
    assert [(s.statistic, s.session, s.before) for s in moved.shifts] == [("used", "s2", 0.3)]
    text = Document(page(report)).text
    assert "share of its limit 0.3 → 0.6 (spread 0 over 8 rows)" in text
    assert "session s2" in text
    assert "share of its limit 0.3 → 0.6" in markdown(report)


def test_since_says_what_is_new(tmp_path: Path, verdict: Verdict) -> None:
    for number, used in enumerate((0.3, 0.6, 0.6)):
        add_session(tmp_path, number, [using(verdict, used, seed=i) for i in range(6)])
    assert [m.shifts[0].session for m in report_of(tmp_path).moved] == ["s1"]
    assert not report_of(tmp_path, "2026-11-03").moved  # by then it was no news
    assert [m.shifts[0].session for m in report_of(tmp_path, "2026-11-02").moved] == ["s1"]


def test_headroom_is_what_the_newest_session_leaves_of_a_limit(tmp_path: Path, verdict: Verdict) -> None:
    add_session(tmp_path, 0, [using(verdict, 0.875)])
    add_session(tmp_path, 1, [using(verdict, 0.25), using(verdict, 0.375, seed=1)])
    report = report_of(tmp_path)
    (output,) = report.outputs
    assert (output.used, output.used_ever, output.rows) == (0.375, 0.875, 2)
    assert output.trend == (("2026-11-01 08:00", 0.875), ("2026-11-02 08:00", 0.375))
    text = Document(page(report)).text
    assert {"38 %", "88 %", "62 %"} <= set(re.findall(r"\d+ %", text))
    assert re.search(r"\| +38 % \| +62 % \|", markdown(report))


def test_the_histogram_weighs_runs_by_their_elements(tmp_path: Path, verdict: Verdict) -> None:
    judgement = verdict.outputs["x_normed"]
    assert judgement.metrics is not None
    none = {f"{threshold:g}": 0.0 for threshold in SWEEP}
    some = {**none, "1e-07": 0.5, "1e-06": 0.5, "1e-05": 0.25}
    made = []
    for seed, (compared, sweep) in enumerate(((100, some), (300, none))):
        metrics = dataclasses.replace(judgement.metrics, compared=compared, differing=compared // 2, sweep=sweep)
        made.append(with_output(verdict, dataclasses.replace(judgement, metrics=metrics), seed=seed))
    add_session(tmp_path, 0, made)
    (output,) = report_of(tmp_path).outputs
    assert output.histogram == pytest.approx((0.875, 0, 0.0625, 0.0625, 0, 0, 0, 0, 0))
    assert output.differing == 0.5


def test_the_heat_map_shows_where_the_bad_elements_sit(tmp_path: Path, verdict: Verdict) -> None:
    failed = failing(verdict)
    where = (Axis(8, ((3, 6), (5, 2))), Axis(1024, ((1023, 8),)))
    judgement = dataclasses.replace(failed.outputs["x_normed"], where=where)
    add_session(tmp_path, 0, [with_output(verdict, judgement)])
    text = page(report_of(tmp_path))
    assert "axis 0: bad elements at 2 of 8: 3 (6), 5 (2)" in text
    assert "index 3: 6 bad" in text
    assert "indices 1008 to 1023: 8 bad" in text
    assert text.count('class="cell bad"') == 3
    assert text.count('class="cell') == 8 + 64


HOSTILE = """<script>alert("x")</script>'"><img src=x onerror=alert(1)>&amp; `"""


def test_nothing_recorded_becomes_markup(tmp_path: Path, verdict: Verdict) -> None:
    failed = failing(verdict, HOSTILE)
    run = dataclasses.replace(failed.run, kernel=HOSTILE, case=HOSTILE, tiles=HOSTILE)
    judgement = dataclasses.replace(failed.outputs["x_normed"], label=HOSTILE)
    add_session(tmp_path, 0, [dataclasses.replace(failed, run=run, outputs={HOSTILE: judgement}, diverged=HOSTILE)])
    report = report_of(tmp_path)
    document = Document(page(report))
    assert not document.all("script")
    assert not document.all("img")
    assert not [name for _, attributes in document.elements for name in attributes if name.startswith("on")]
    assert document.text.count(HOSTILE) >= 4
    assert not re.search(r"<(script|img)", re.sub(r"`[^`]*`", "", markdown(report)))


def test_the_page_fetches_nothing_and_says_its_pictures_in_words(tmp_path: Path, verdict: Verdict) -> None:
    add_session(tmp_path, 0, [using(verdict, 0.3)])
    add_session(tmp_path, 1, [failing(verdict)])
    text = page(report_of(tmp_path))
    document = Document(text)
    names = {name for _, attributes in document.elements for name in attributes}
    assert not names & {"src", "href", "srcset", "style"}
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in str(document.all("meta"))
    pictures = document.all("svg")
    assert pictures
    assert all(p["role"] == "img" and p["aria-label"] for p in pictures)
    assert len(document.all("caption")) == len(document.all("table")) >= 3
    assert all(head.get("scope") in ("col", "row") for head in document.all("th"))
    assert document.all("html") == [{"lang": "en"}]
    assert "prefers-color-scheme: dark" in text


def test_unverified_is_no_pass(tmp_path: Path, verdict: Verdict) -> None:
    judgement = dataclasses.replace(verdict.outputs["x_normed"], status="unverified")
    add_session(tmp_path, 0, [with_output(verdict, judgement)])
    report = report_of(tmp_path)
    assert report.unverified == ("rms_norm tiny/decode: x_normed",)
    assert "! 1 unverified" in "".join(Document(page(report)).texts)
    assert markdown(report).startswith("# ⚠️ 1 unverified")


def test_all_well_is_said_in_one_line(tmp_path: Path, verdict: Verdict) -> None:
    add_session(tmp_path, 0, [using(verdict, 0.3)])
    add_session(tmp_path, 1, [using(verdict, 0.3)])
    said = "All 1 output of 1 op pass, and no error statistic moved"
    assert said in page(report_of(tmp_path))
    assert markdown(report_of(tmp_path)).startswith(f"# ✅ {said}\n")


def journal(path: Path, kind: str, *records: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in ({"journal": kind}, *records)))
    return path


def mutant(number: int, status: str, operator: str = "cast_mode", **default: bool | None) -> dict[str, object]:
    return {"id": f"gate:{number}", "op": "gate", "operator": operator, "status": status, "default": default}


def test_kills_are_counted_once_per_mutant_and_rated_without_equivalent_ones(tmp_path: Path) -> None:
    table = journals.mutants(
        journal(
            tmp_path / "m", "mutate",
            mutant(1, "survived", cosine=True),  # made again below
            mutant(1, "killed", cosine=False), mutant(2, "killed", cosine=True), mutant(3, "survived", cosine=False),
            mutant(4, "equivalent", cosine=False), mutant(5, "refused", operator="gone", cosine=None),
        )
    )  # fmt: skip
    assert (table.total.killed, table.total.survived, table.total.rate) == (2, 1, 2 / 3)
    assert table.total.gates == {"cosine": (1, 3)}
    assert [kills.name for kills in table.classes] == ["of an older version", "rounding"]
    assert table.survivors == ("gate:3",)


def test_false_alarms_are_counted_for_the_newest_rules(tmp_path: Path) -> None:
    def run(number: int, status: str, mark: str) -> dict[str, object]:
        return {"run": f"gate-tiny-decode-default-seed{number}", "mark": mark, "status": status, "text": ""}

    counted = journals.alarms(
        journal(tmp_path / "a", "calibrate --check", run(1, "fail", "old"), run(1, "pass", "new"),
                run(2, "fail", "new"), run(3, "empty", "new"))
    )  # fmt: skip
    assert [dataclasses.astuple(row) for row in counted] == [("gate", 3, 1, 1)]


def test_a_journal_of_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"m:3: written by another version of goldengate mutate"):
        journals.mutants(journal(tmp_path / "m", "mutate", mutant(1, "killed"), {"id": "gate:2"}))


def test_the_command_writes_both_with_the_tables_of_the_journals(
    tmp_path: Path, verdict: Verdict, capsys: pytest.CaptureFixture[str]
) -> None:
    add_session(tmp_path / "store", 0, [using(verdict, 0.3)])
    kills = journal(tmp_path / "m", "mutate", *(mutant(n, "killed" if n else "survived") for n in range(300)))
    checked = {"run": "gate-tiny-decode-default-seed1", "mark": "m", "status": "pass", "text": ""}
    alarms = journal(tmp_path / "a", "calibrate --check", checked)
    words = ["report", "--store", str(tmp_path / "store"), "--mutants", str(kills), "--false-alarms", str(alarms)]
    assert main([*words, "-o", str(tmp_path / "r.html"), "--markdown", str(tmp_path / "r.md")]) == 0
    text = Document((tmp_path / "r.html").read_text(encoding="utf-8")).text
    assert "99.6 %" in text  # 299 of 300, rounded down
    assert "299 of 300 killed" in text
    assert "0 in 1 run" in text
    assert "False alarms: 0 in 1 run" in (tmp_path / "r.md").read_text(encoding="utf-8")
    capsys.readouterr()
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("# ✅ All 1 output")
    assert main([*words, "-o", "-"]) == 0
    assert capsys.readouterr().out.startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["-o", "-", "--markdown"], "both write to stdout"),
        (["--since", "yesterday"], "'yesterday' is no date"),
        (["--store", "/nowhere/at/all"], "does not exist"),
        (["--mutants", "/nowhere.jsonl"], "cannot read /nowhere.jsonl"),
        (["--false-alarms", __file__], "no journal of goldengate calibrate --check|no JSON"),
        (["-o", "/nowhere/r.html"], "cannot write /nowhere/r.html"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, verdict: Verdict, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    add_session(tmp_path, 0, [using(verdict, 0.3)])
    assert main(["report", "--store", str(tmp_path), *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(said, line)
