"""The sub-commands `goldengate verify [OPS]` and `goldengate replay SNAPSHOT`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from harness import report
from harness.compare import FAIL
from harness.devices import get_device
from harness.errors import UsageError
from harness.execute import execute, sensible_jobs
from harness.exit_codes import FAILED, PASSED, UNVERIFIED
from harness.files import writable
from harness.options import add_configuration, number_list, positive, selection_of
from harness.recording import recording
from harness.run import Run
from harness.selection import expand, kernel_file
from harness.snapshots import command as snapshots
from harness.tolerances import DEFAULT_PATH, load_tolerances
from harness.verify import Verdict

_FAILURES_SHOWN = 5
_NOTES_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `verify`."""
    parser.set_defaults(command=run)
    parser.add_argument("ops", nargs="*", metavar="OP", help="ops to verify (default: all)")
    add_configuration(parser, many=True)
    parser.add_argument("--schedule", type=number_list, default=[0], metavar="N", help="legal devices, like 0..49")
    parser.add_argument("--device", default="emulator", help="where to run (default: emulator)")
    parser.add_argument("--tiles", help="tile set of the shipped kernels, like pr672")
    parser.add_argument("--kernel", metavar="FILE[:FUNCTION]", help="your own kernel for the one op given")
    parser.add_argument("--lint", choices=("error", "warn"), default="error", help="what findings do")
    parser.add_argument("--checks", choices=("on", "off"), default="on", help="off: no race detector, no warnings")
    parser.add_argument("--tolerances", metavar="FILE", help="instead of the shipped tolerances.yaml")
    parser.add_argument("--snapshot", metavar="DIR", help="inputs and goldens that `golden --save DIR` wrote")
    parser.add_argument("--allow-stale", action="store_true", help="snapshots although golden or spec changed since")
    parser.add_argument("--json", metavar="FILE", help="write every figure of every run")
    parser.add_argument("--record", metavar="DIR-or-URL", help="append the results to this store")
    parser.add_argument("-j", "--jobs", type=positive, metavar="N", help="processes (default: by runs and cores)")
    parser.add_argument("-x", "--exitfirst", action="store_true", help="stop at the first failure")
    parser.add_argument("-v", "--verbose", action="store_true", help="a row per run, all failures and notes")


def add_replay_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `replay`."""
    parser.set_defaults(command=run_replay)
    snapshots.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the runs asked for and judge every output. Raises UsageError."""
    path = function = None
    if arguments.kernel is not None:
        if len(set(arguments.ops)) != 1:
            raise UsageError("--kernel judges one op: name it, as in `goldengate verify gate --kernel FILE`")
        path, function = kernel_file(arguments.kernel)
    get_device(arguments.device, checks=arguments.checks == "on")
    load_tolerances(DEFAULT_PATH if arguments.tolerances is None else Path(arguments.tolerances))
    left_out: list[str] = []
    runs = expand(
        selection_of(arguments, arguments.schedule),
        left_out,
        device=arguments.device,
        kernel=path,
        function=function,
        tiles=arguments.tiles,
        lint=arguments.lint,
        checks=arguments.checks,
        tolerances=arguments.tolerances,
    )
    if arguments.snapshot is not None:
        directory = Path(arguments.snapshot)
        runs = snapshots.from_snapshots(directory, runs, left_out, all_of_them=arguments.case is not None)
        runs = [replace(run, allow_stale=arguments.allow_stale) for run in runs]
    return _judge(runs, arguments, left_out)


def run_replay(arguments: argparse.Namespace) -> int:
    """Judge a device against what snapshots hold. Raises UsageError."""
    get_device(arguments.device, checks=arguments.checks == "on")
    load_tolerances(DEFAULT_PATH if arguments.tolerances is None else Path(arguments.tolerances))
    return _judge(snapshots.runs(arguments), arguments, [])


def _judge(runs: Sequence[Run], arguments: argparse.Namespace, left_out: Sequence[str]) -> int:
    """Run, print and record; the exit code."""
    with writable(arguments.json) as json_file, recording(arguments.record) as record:
        start = time.perf_counter()
        jobs = arguments.jobs or sensible_jobs(runs)
        verdicts = _with_progress(runs, jobs, arguments.exitfirst, record)
        _print_verdicts(verdicts, time.perf_counter() - start, arguments.verbose)
        for reason in left_out:
            print(f"left out: {reason}")
        if json_file is not None:
            json_file.write(report.to_json(verdicts) + "\n")
    return exit_code(verdicts)


def _with_progress(runs: Sequence[Run], jobs: int, exitfirst: bool, record: Callable[[Verdict], None]) -> list[Verdict]:
    show = sys.stderr.isatty()
    verdicts: list[Verdict] = []
    for verdict in execute(runs, jobs):
        record(verdict)
        verdicts.append(verdict)
        if show:
            ahead = runs[min(len(verdicts), len(runs) - 1)].id
            print(f"\r\033[K{len(verdicts)}/{len(runs)} {ahead}", end="", file=sys.stderr, flush=True)
        if exitfirst and verdict.status == FAIL:
            break
    if show:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    return verdicts


def _print_verdicts(verdicts: Sequence[Verdict], seconds: float, verbose: bool) -> None:
    print(report.table(verdicts, each=verbose))
    failures = [text for text in map(report.failure_text, verdicts) if text]
    shown = failures if verbose else failures[:_FAILURES_SHOWN]
    for text in shown:
        print(f"\n{text}")
    if len(failures) > len(shown):
        print(f"\n{len(failures) - len(shown)} more failed runs (--verbose shows all)")
    notes = report.notes(verdicts)
    for note in notes if verbose else notes[:_NOTES_SHOWN]:
        print(f"note: {note}")
    if len(notes) > _NOTES_SHOWN and not verbose:
        print(f"note: {len(notes) - _NOTES_SHOWN} more (--verbose shows all)")
    print(f"\n{report.summary(verdicts, seconds)}")


def exit_code(verdicts: Sequence[Verdict]) -> int:
    """1 if any run failed, else 3 if there is none or one of the outputs was verified in none, else 0."""
    if any(verdict.status == FAIL for verdict in verdicts):
        return FAILED
    return UNVERIFIED if not verdicts or report.unverified_outputs(verdicts) else PASSED
