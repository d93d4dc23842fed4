"""The sub-command `goldengate replay SNAPSHOT`, and `verify --snapshot`: judge a device against what was saved."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness.errors import UsageError
from harness.options import override_pair
from harness.run import Run
from harness.selection import Selection, expand, kernel_file, numbers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `replay`."""
    parser.add_argument("snapshots", nargs="+", metavar="SNAPSHOT", help="directory that `golden --save` wrote")
    parser.add_argument("--schedule", default="0", metavar="N", help="legal devices, like 0..49 (default: 0)")
    parser.add_argument("--kernel", metavar="FILE[:FUNCTION]", help="your own kernel")
    parser.add_argument("--device", default="emulator", help="where to run (default: emulator)")
    parser.add_argument("--tiles", help="tile set of the shipped kernels, like pr672")
    parser.add_argument("--lint", choices=("error", "warn"), default="error", help="what findings do")
    parser.add_argument("--checks", choices=("on", "off"), default="on", help="off: no race detector, no warnings")
    parser.add_argument("--tolerances", metavar="FILE", help="instead of the shipped tolerances.yaml")
    parser.add_argument("--allow-stale", action="store_true", help="although golden or spec changed since")
    told = parser.add_argument_group("what the manifest says, for directories of the reference, which have none")
    told.add_argument("--op", metavar="OP")
    told.add_argument("--preset", metavar="NAME", help="default: tiny")
    told.add_argument("--deployment", metavar="NAME", help="default: decode")
    told.add_argument("--case", metavar="NAME", help="default: default")
    told.add_argument("--set", action="append", type=override_pair, default=[], metavar="NAME=VALUE")
    parser.add_argument("--json", metavar="FILE", help="write every figure of every run")
    parser.add_argument("--record", metavar="DIR-or-URL", help="append the results to this store")
    parser.add_argument("-j", "--jobs", type=int, choices=range(1, 257), default=1, metavar="N", help="processes")
    parser.add_argument("-x", "--exitfirst", action="store_true", help="stop at the first failure")
    parser.add_argument("-v", "--verbose", action="store_true", help="a row per run, all failures and notes")


def runs(arguments: argparse.Namespace) -> list[Run]:
    """The runs asked for, each with its snapshot. Raises UsageError."""
    schedules = numbers(arguments.schedule)
    path = function = None
    if arguments.kernel is not None:
        path, function = kernel_file(arguments.kernel)
    chosen = {
        "kernel": path, "function": function, "device": arguments.device, "tiles": arguments.tiles,
        "lint": arguments.lint, "checks": arguments.checks, "tolerances": arguments.tolerances,
        "allow_stale": arguments.allow_stale,
    }  # fmt: skip
    held = [_held(Path(name), arguments) for name in arguments.snapshots]
    if path is not None and len({run.op for run in held}) != 1:
        raise UsageError("--kernel judges one op: replay the snapshots of one op with it")
    return [replace(run, schedule=schedule, **chosen) for run in held for schedule in schedules]


def _held(directory: Path, arguments: argparse.Namespace) -> Run:
    """The run of a snapshot: from its manifest, or from the options where it has none."""
    from harness.snapshots.load import run_of

    run = run_of(directory)
    given = [n for n in ("op", "preset", "deployment", "case", "set") if getattr(arguments, n) not in (None, [])]
    if run is not None:
        if given:
            raise UsageError(f"snapshot {directory} has a manifest, which says what --{given[0]} would")
        return run
    if arguments.op is None:
        raise UsageError(f"snapshot {directory} has no manifest: if it has the reference's layout, say its op by --op")
    selection = Selection(
        ops=[arguments.op], presets=[arguments.preset or "tiny"], deployments=[arguments.deployment or "decode"],
        cases=[arguments.case or "default"], overrides=arguments.set,
    )  # fmt: skip
    (run,) = expand(selection)
    return replace(run, snapshot=str(directory))


def from_snapshots(directory: Path, wanted: Sequence[Run], left_out: list[str], *, all_of_them: bool) -> list[Run]:
    """The runs of `verify` whose inputs `directory` holds; the others are named in `left_out`. Raises UsageError when
    it holds those of none, and with `all_of_them` when it lacks any."""
    from harness.snapshots.load import find

    found = find(directory, wanted)
    missing = list(dict.fromkeys(run.inputs_id for run in wanted if run not in found))
    if not found or (missing and all_of_them):
        raise UsageError(f"{directory} holds no snapshot of {missing[0] if missing else 'any run'}")
    left_out += [f"{name}: no snapshot in {directory}" for name in missing]
    return [replace(run, snapshot=path) for run, path in found.items()]
