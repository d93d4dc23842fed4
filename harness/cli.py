"""The command `goldengate`: verify, replay, explain, list, equiv, fuzz, golden, calibrate, capacity, mutate, gate,
report, run-file.

Exit codes: 0 all verified and passed, 1 something failed, 2 bad input or usage (one line on stderr), 3 nothing
failed but something is unverified, 4 an error of goldengate itself (with a traceback).
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from goldens.errors import GoldenInputError
from harness import capacity
from harness.calibrate import command as calibrate
from harness.commands import equiv, explain, golden, listing, verify
from harness.devices.base import KernelRefused
from harness.errors import UsageError
from harness.exit_codes import INTERNAL, USAGE
from harness.foreign import command as run_file
from harness.fuzz import command as fuzz
from harness.gate import command as gate
from harness.mutate import command as mutate
from harness.reporting import command as reporting
from harness.versions import versions
from specs.errors import SpecError

_USERS_MISTAKES = (UsageError, SpecError, GoldenInputError, KernelRefused)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: that of the process) and return the exit code."""
    try:
        arguments = build_parser().parse_args(argv)
        command: Callable[[argparse.Namespace], int] = arguments.command
        return command(arguments)
    except _USERS_MISTAKES as error:
        print(f"goldengate: error: {' '.join(str(error).split())}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("goldengate: interrupted", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        print("goldengate: internal error: this is a bug of goldengate, not of your input", file=sys.stderr)
        return INTERNAL


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, like every other mistake."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see `{self.prog} --help`)")


def build_parser() -> _Parser:
    parser = _Parser(prog="goldengate", description="Golden references and numerical verification for kernels")
    parser.add_argument("--version", action="version", version=", ".join(f"{n} {v}" for n, v in versions().items()))
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    verify.add_arguments(commands.add_parser("verify", help="run kernels on a device and judge every output"))
    explain.add_arguments(
        commands.add_parser("explain", help="walk one run stage by stage to where it leaves its golden")
    )
    listing.add_arguments(
        commands.add_parser("list", help="ops, cases, outputs and tolerances; presets and deployments")
    )
    equiv.add_arguments(
        commands.add_parser("equiv", help="compare the outputs of two kernels, or of two tilings of one")
    )
    fuzz.add_arguments(
        commands.add_parser("fuzz", help="random sizes, cases, seeds and schedules until the time is up")
    )
    golden.add_arguments(commands.add_parser("golden", help="evaluate goldens only; needs no device"))
    verify.add_replay_arguments(
        commands.add_parser("replay", help="judge a device against the inputs and golden of snapshots")
    )
    calibrate.add_arguments(commands.add_parser("calibrate", help="fit tolerances to legal devices"))
    capacity.add_arguments(commands.add_parser("capacity", help="receive depth that each routing of the MoE needs"))
    mutate.add_arguments(commands.add_parser("mutate", help="make kernels wrong and count what the gate rejects"))
    gate.add_arguments(commands.add_parser("gate", help="judge what a change affects: what CI calls"))
    reporting.add_arguments(commands.add_parser("report", help="what recorded results say: one page, or Markdown"))
    run_file.add_arguments(commands.add_parser("run-file", help="run a kernel script unmodified on the emulator"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
