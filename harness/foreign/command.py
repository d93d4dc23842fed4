"""The sub-command `goldengate run-file PATH [-- ARGS]`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `run-file`; they stand before PATH, everything after it belongs to the script."""
    parser.set_defaults(command=run)
    parser.add_argument("--schedule", type=int, default=0, metavar="N", help="a legal device (default: 0)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of torch's generator (default: 0)")
    parser.add_argument("--lint", choices=("error", "warn"), default="error", help="what findings do")
    parser.add_argument("path", metavar="PATH", help="a kernel script, run as __main__")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGS", help="its command line")


def run(arguments: argparse.Namespace) -> int:
    """Run the script; the exit code."""
    from harness.foreign.script import run_script

    given = arguments.arguments
    return run_script(
        Path(arguments.path),
        given[1:] if given[:1] == ["--"] else given,
        schedule=arguments.schedule,
        seed=arguments.seed,
        strict=arguments.lint == "error",
    )
