"""`goldengate gate`: judge what a change affects, say it to people and to CI, and compare it with the baseline."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness import report
from harness.errors import UsageError
from harness.execute import sensible_jobs
from harness.exit_codes import FAILED, PASSED, UNVERIFIED
from harness.files import writable
from harness.gate.annotations import STYLES, messages
from harness.gate.config import load_config
from harness.gate.judging import Outcome, work_through
from harness.gate.junit import junit_xml
from harness.gate.markdown import headline, summary
from harness.gate.plan import PARTS, plan, seconds
from harness.recording import recording

if TYPE_CHECKING:
    from harness.history.regression import Findings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.set_defaults(command=run)
    parser.add_argument("ops", nargs="*", metavar="OP", help="judge only these (default: all, or those of the toml)")
    parser.add_argument("--base", metavar="REV", help="judge only what differs from this git revision")
    parser.add_argument("--budget", type=_seconds, metavar="TIME", help="stop after this long, like 90s, 10m or 1h")
    parser.add_argument("--directory", default=".", metavar="DIR", help="with goldengate.toml (default: here)")
    parser.add_argument("--date", type=_date, metavar="DATE", help="of the rotating seeds (default: today)")
    parser.add_argument("--device", default="emulator", help="where to run (default: emulator)")
    parser.add_argument("--record", metavar="DIR-or-URL", help="append results, compare with those there")
    parser.add_argument("--drift", choices=("warn", "fail"), default="warn", help="what a shift of an error does")
    parser.add_argument("--junit", metavar="FILE", help="write JUnit XML")
    parser.add_argument("--markdown", metavar="FILE", help="write a summary for a pull request")
    parser.add_argument("--jsonl", metavar="FILE", help="write one JSON record per run")
    parser.add_argument("--annotate", choices=STYLES, default="none", help="messages at file and line (default: none)")
    parser.add_argument("-j", "--jobs", type=int, choices=range(1, 257), metavar="N", help="processes")


def run(arguments: argparse.Namespace) -> int:
    """The exit code: 0 passed, 1 failed or refused (or a shift, with --drift fail), 3 unverified."""
    directory = Path(arguments.directory).resolve()
    if not directory.is_dir():
        raise UsageError(f"{arguments.directory} is no directory")
    config = load_config(directory)
    started = datetime.datetime.now(datetime.timezone.utc)
    today = arguments.date or started.date()
    work = plan(config, arguments.ops, arguments.base, today, arguments.device)
    names = (arguments.junit, arguments.markdown, arguments.jsonl)
    with writable(names[0]) as junit, writable(names[1]) as markdown, writable(names[2]) as jsonl:
        with recording(arguments.record) as record:
            jobs = arguments.jobs or sensible_jobs(work.runs)
            outcome = work_through(work, jobs, arguments.budget, record, _progress)
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        if arguments.record is not None and outcome.verdicts:
            outcome.findings = _against_baseline(arguments.record, started)
        for file, text in ((junit, junit_xml), (markdown, summary), (jsonl, _json_lines)):
            if file is not None:
                file.write(text(outcome))
    _say(outcome, arguments.annotate, directory)
    return exit_code(outcome, fail_on_drift=arguments.drift == "fail")


def exit_code(outcome: Outcome, *, fail_on_drift: bool) -> int:
    """0 when everything affected was judged and passed; see `run`."""
    drifted = fail_on_drift and outcome.findings is not None and bool(outcome.findings.shifts)
    if outcome.failed or outcome.refused or drifted:
        return FAILED
    return UNVERIFIED if outcome.unverified or outcome.unjudged else PASSED


def _say(outcome: Outcome, style: str, root: Path) -> None:
    if outcome.verdicts:
        print(report.table(outcome.verdicts) + "\n")
    for verdict in outcome.failed[:5]:
        print(report.failure_text(verdict) + "\n")
    for refused in outcome.refused[:5]:
        print(f"REFUSED {refused.run.id}: {refused.text}\n")
    for line in messages(outcome, style, root):
        print(line)
    for shift in outcome.findings.shifts if outcome.findings is not None else ():
        print(f"shift: {shift.text}")
    for reason in outcome.plan.left_out:
        print(f"left out: {reason}")
    spliced = [affected.op for affected in outcome.plan.affected if affected.spliced]
    if spliced:
        print(f"today 1 of {PARTS} parts of the cases, as only a kernel spliced in differs: {', '.join(spliced)}")
    if outcome.plan.unaffected:
        print(f"not affected: {', '.join(outcome.plan.unaffected)}")
    for affected in outcome.unjudged:
        print(f"unverified: nothing was judged of {affected}")
    print(headline(outcome))


def _json_lines(outcome: Outcome) -> str:
    return "".join(json.dumps(report.plain(report.verdict_record(v)), allow_nan=False) + "\n" for v in outcome.verdicts)


def _against_baseline(store: str, started: datetime.datetime) -> Findings:
    from harness.history.query import History
    from harness.history.regression import findings
    from harness.history.store import Store

    return findings(History(Store(store)), started.isoformat())


def _progress(done: int, total: int, name: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{done}/{total} {name}", end="", file=sys.stderr, flush=True)


def _seconds(text: str) -> float:
    try:
        return seconds(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _date(text: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no date like 2026-11-21") from error
