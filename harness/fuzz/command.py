"""The sub-command `goldengate fuzz [OPS]`.

Exit codes: 0 nothing failed, 1 something did, 3 no example was run.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from harness.errors import UsageError
from harness.exit_codes import FAILED, PASSED, UNVERIFIED
from harness.fuzz.session import Progress, fuzz
from harness.fuzz.stream import DATABASE, Plan
from harness.fuzz.tally import Tally, table
from harness.options import natural, positive
from harness.run import Run
from harness.selection import Selection, expand, kernel_file
from specs.registry import all_ops

_LONGEST_MINUTES = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `fuzz`."""
    parser.set_defaults(command=run)
    parser.add_argument("ops", nargs="*", metavar="OP", help="ops to fuzz (default: all)")
    parser.add_argument("--minutes", type=_minutes, default=1.0, metavar="N", help="how long (default: 1)")
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="of the examples (default: 0)")
    parser.add_argument("--device", default="emulator", help="where to run (default: emulator)")
    parser.add_argument("--tiles", help="tile set of the shipped kernels, like pr672")
    parser.add_argument("--kernel", metavar="FILE[:FUNCTION]", help="your own kernel for the one op given")
    parser.add_argument("--tolerances", metavar="FILE", help="instead of the shipped tolerances.yaml")
    parser.add_argument("--database", metavar="DIR", help="failing examples (default: .goldengate/fuzz)")
    parser.add_argument("-j", "--jobs", type=positive, default=1, metavar="N", help="processes (default: 1)")


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes <= _LONGEST_MINUTES:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of minutes above 0 and up to {_LONGEST_MINUTES}")
    return minutes


def run(arguments: argparse.Namespace) -> int:
    """Fuzz until the time is up and print what was found. Raises UsageError."""
    plan = _plan(arguments)
    start = time.time()
    tallies: dict[str, Tally] = {}
    interrupted = False
    try:
        fuzz(plan, arguments.jobs, tallies, _progress(plan.until, sys.stderr.isatty()))
    except KeyboardInterrupt:
        interrupted = True
    finally:
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)
    failures = [failure for tally in tallies.values() for failure in tally.failures]
    print(table(tallies))
    for failure in failures:
        print(f"\n{failure.text}")
    total = sum(tally.examples for tally in tallies.values())
    end = ", interrupted" if interrupted else ""
    print(f"\n{total} examples in {time.time() - start:.1f} s, seed {plan.seed}: {len(failures)} failures{end}")
    if failures:
        print(f"kept in {plan.database}, replayed first next time")
        return FAILED
    if interrupted:
        raise KeyboardInterrupt
    return PASSED if total else UNVERIFIED


def _plan(arguments: argparse.Namespace) -> Plan:
    path = function = None
    if arguments.kernel is not None:
        if len(set(arguments.ops)) != 1:
            raise UsageError("--kernel is fuzzed as one op: name it, as in `goldengate fuzz gate --kernel FILE`")
        path, function = kernel_file(arguments.kernel)
    expand(Selection(ops=arguments.ops))  # names are checked before the work begins
    return Plan(
        ops=tuple(dict.fromkeys(arguments.ops)) or tuple(all_ops()),
        common=Run(
            op="",
            device=arguments.device,
            kernel=path,
            function=function,
            tiles=arguments.tiles,
            tolerances=arguments.tolerances,
        ),
        seed=arguments.seed,
        until=time.time() + 60 * arguments.minutes,
        database=DATABASE if arguments.database is None else Path(arguments.database),
    )


def _progress(until: float, show: bool) -> Progress:
    """A line on the terminal after every batch; a line of text where there is none, once per failure."""
    said = 0

    def progress(tallies: Mapping[str, Tally], op: str) -> None:
        nonlocal said
        examples = sum(tally.examples for tally in tallies.values())
        failures = sum(len(tally.failures) for tally in tallies.values())
        line = f"{examples} examples, {failures} failures, {max(until - time.time(), 0):.0f} s left, {op}"
        if show:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        elif failures > said:
            print(line, file=sys.stderr, flush=True)
        said = failures

    return progress
