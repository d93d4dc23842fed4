"""The sub-command `goldengate equiv OP`."""

from __future__ import annotations

import argparse
import time

from harness.compare import FAIL, PASS
from harness.devices import get_device
from harness.exit_codes import FAILED, PASSED, UNVERIFIED
from harness.options import add_configuration, number_list, selection_of
from harness.selection import expand, kernel_file

_FAILURES_SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `equiv`."""
    parser.set_defaults(command=run)
    parser.add_argument("ops", nargs=1, metavar="OP")
    parser.add_argument("--kernel", action="append", default=[], metavar="FILE[:FUNCTION]", help="one: with shipped")
    parser.add_argument("--tiles", action="append", default=[], help="tile set, once for both sides or once for each")
    parser.add_argument("--ulp", action="append", default=[], metavar="OUTPUT=N", help="instead of bit equality")
    add_configuration(parser, many=True)
    parser.add_argument("--schedule", type=number_list, default=[0], metavar="N", help="of both sides (default: 0)")
    parser.add_argument("--device", default="emulator", help="where to run (default: emulator)")


def run(arguments: argparse.Namespace) -> int:
    """Compare two kernels on the runs asked for. Raises UsageError."""
    from harness import equiv

    sides = equiv.sides_of(arguments.kernel, arguments.tiles, kernel_file)
    start = time.perf_counter()
    runs = expand(selection_of(arguments, arguments.schedule), device=arguments.device)
    comparisons = list(equiv.compare_all(get_device(arguments.device), runs, sides, arguments.ulp))
    print(equiv.table(comparisons))
    failures = [text for text in map(equiv.failure_text, comparisons) if text]
    for text in failures[:_FAILURES_SHOWN]:
        print(f"\n{text}")
    if len(failures) > _FAILURES_SHOWN:
        print(f"\n{len(failures) - _FAILURES_SHOWN} more comparisons failed")
    statuses = list(equiv.output_statuses(comparisons).values())
    seconds = time.perf_counter() - start
    print(f"\nA: {sides[0].label}; B: {sides[1].label}")
    print(f"{len(comparisons)} comparisons in {seconds:.1f} s: {len(failures)} failed")
    if FAIL in statuses:
        return FAILED
    return PASSED if statuses and set(statuses) == {PASS} else UNVERIFIED
