"""The sub-command `goldengate golden OPS`."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.exit_codes import PASSED
from harness.options import add_configuration, selection_of
from harness.selection import expand
from harness.snapshots.layouts import LAYOUTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `golden`."""
    parser.set_defaults(command=run)
    parser.add_argument("ops", nargs="+", metavar="OP")
    add_configuration(parser, many=False)
    parser.add_argument("--save", metavar="DIR", help="write inputs and outputs as a snapshot below DIR")
    parser.add_argument("--layout", choices=LAYOUTS, default=LAYOUTS[0], help="reference: in/NAME.pt, out/NAME.pt")


def run(arguments: argparse.Namespace) -> int:
    """Print, and save where asked to, the goldens of the runs. Raises UsageError."""
    from harness.listing import golden_table
    from harness.snapshots.save import save_snapshot
    from harness.verify import prepare

    for one in expand(selection_of(arguments)):
        prepared, timing = prepare(one)
        print(f"{one.id}: inputs {timing.inputs:.3f} s, golden {timing.golden:.3f} s")
        print(golden_table(prepared) + "\n")
        if arguments.save is not None:
            print(f"saved {save_snapshot(Path(arguments.save), one, prepared, arguments.layout)}\n")
    return PASSED
