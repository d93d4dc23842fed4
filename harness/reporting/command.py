"""The sub-command `goldengate report`. Exit code 0 when the report was written: `gate` is what fails a build."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
from pathlib import Path

from harness.errors import UsageError
from harness.files import writable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `report`."""
    parser.set_defaults(command=run)
    parser.add_argument("--store", required=True, metavar="DIR-or-URL", help="where --record wrote its results")
    parser.add_argument("--since", metavar="DATE", help="what counts as new (default: from where each shift began)")
    parser.add_argument("--mutants", metavar="JOURNAL", help="of `goldengate mutate --journal`")
    parser.add_argument("--false-alarms", metavar="JOURNAL", help="of `goldengate calibrate --check --journal`")
    parser.add_argument("-o", "--output", metavar="FILE", help="write the page, one HTML file; - for stdout")
    parser.add_argument(
        "--markdown", nargs="?", const="-", metavar="FILE", help="write Markdown, to stdout without a name"
    )


def run(arguments: argparse.Namespace) -> int:
    """Build the report and write it; Markdown to stdout where no file is named. Raises UsageError."""
    from harness.history.query import History  # DuckDB takes a while to import
    from harness.history.store import Store
    from harness.reporting import journals
    from harness.reporting.html import page
    from harness.reporting.markdown import markdown
    from harness.reporting.queries import build

    if arguments.output is None and arguments.markdown is None:
        arguments.markdown = "-"
    if arguments.output == arguments.markdown == "-":
        raise UsageError("-o - and --markdown both write to stdout: name a file for one of them")
    mutants = None if arguments.mutants is None else journals.mutants(Path(arguments.mutants))
    alarms = None if arguments.false_alarms is None else journals.alarms(Path(arguments.false_alarms))
    now = datetime.datetime.now(datetime.timezone.utc)
    report = build(History(Store(arguments.store)), arguments.store, arguments.since, now)
    report = dataclasses.replace(report, mutants=mutants, alarms=alarms)
    for target, written in ((arguments.output, page), (arguments.markdown, markdown)):
        if target is not None:
            _write(target, written(report))
    return 0


def _write(target: str, text: str) -> None:
    if target == "-":
        print(text, end="")
        return
    with writable(target) as file:
        assert file is not None
        file.write(text)
    print(f"wrote {target}")
