"""The sub-command `goldengate list [OPS]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.exit_codes import PASSED
from harness.tolerances import DEFAULT_PATH, load_tolerances


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `list`."""
    parser.set_defaults(command=run)
    parser.add_argument("ops", nargs="*", metavar="OP")
    parser.add_argument("--tolerances", metavar="FILE", help="instead of the shipped tolerances.yaml")


def run(arguments: argparse.Namespace) -> int:
    """Print what there is. Raises UsageError."""
    from harness.listing import listing

    tolerances = load_tolerances(DEFAULT_PATH if arguments.tolerances is None else Path(arguments.tolerances))
    print(listing(arguments.ops, tolerances))
    return PASSED
