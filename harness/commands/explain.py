"""The sub-command `goldengate explain OP`: its options; `harness.explain` walks."""

from __future__ import annotations

import argparse

from harness.options import add_configuration, number_list, selection_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `explain`."""
    parser.set_defaults(command=run)
    parser.add_argument("ops", nargs=1, metavar="OP")
    add_configuration(parser, many=False)
    parser.add_argument("--schedule", type=number_list, default=[0], metavar="N", help="legal device (default: 0)")
    parser.add_argument("--device", default="emulator", help="where to run (default: emulator)")
    parser.add_argument("--tiles", help="tile set of the shipped kernels, like pr672")
    parser.add_argument("--kernel", metavar="FILE[:FUNCTION]", help="your own kernel")


def run(arguments: argparse.Namespace) -> int:
    """Walk one run stage by stage. Raises UsageError."""
    from harness import explain

    arguments.case = arguments.case or [["default"]]
    return explain.run(arguments, selection_of(arguments, arguments.schedule))
