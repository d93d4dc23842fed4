"""The command `goldengate`: verify, replay, explain, list, equiv, fuzz, golden, calibrate, capacity, mutate, gate,
report, run-file.

Exit codes: 0 all verified and passed, 1 something failed, 2 bad input or usage (one line on stderr), 3 nothing
failed but something is unverified, 4 an error of goldengate itself (with a traceback).
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from goldens.errors import GoldenInputError
from harness import capacity, report
from harness.calibrate import command as calibrate
from harness.compare import FAIL, PASS
from harness.devices import get_device
from harness.devices.base import KernelRefused
from harness.errors import UsageError
from harness.execute import execute, sensible_jobs
from harness.files import writable
from harness.foreign import command as run_file
from harness.gate import command as gate
from harness.mutate import command as mutate
from harness.recording import recording
from harness.reporting import command as reporting
from harness.run import Run
from harness.selection import Selection, expand, kernel_file, numbers, override
from harness.snapshots import command as snapshots
from harness.snapshots.layouts import LAYOUTS
from harness.tolerances import DEFAULT_PATH, load_tolerances
from harness.verify import Verdict
from specs.errors import SpecError

if TYPE_CHECKING:
    from harness import fuzz as fuzz_module

PASSED, FAILED, USAGE, UNVERIFIED_EXIT, INTERNAL = range(5)
_FAILURES_SHOWN = 5
_NOTES_SHOWN = 10
_LONGEST_MINUTES = 10_000
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
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    verify = commands.add_parser("verify", help="run kernels on a device and judge every output")
    verify.set_defaults(command=_verify)
    verify.add_argument("ops", nargs="*", metavar="OP", help="ops to verify (default: all)")
    _add_configuration(verify, many=True)
    verify.add_argument("--schedule", type=_numbers, default=[0], metavar="N", help="legal devices, like 0..49")
    verify.add_argument("--device", default="emulator", help="where to run (default: emulator)")
    verify.add_argument("--tiles", help="tile set of the shipped kernels, like pr672")
    verify.add_argument("--kernel", metavar="FILE[:FUNCTION]", help="your own kernel for the one op given")
    verify.add_argument("--lint", choices=("error", "warn"), default="error", help="what findings do")
    verify.add_argument("--checks", choices=("on", "off"), default="on", help="off: no race detector, no warnings")
    verify.add_argument("--tolerances", metavar="FILE", help="instead of the shipped tolerances.yaml")
    verify.add_argument("--snapshot", metavar="DIR", help="inputs and goldens that `golden --save DIR` wrote")
    verify.add_argument("--allow-stale", action="store_true", help="snapshots although golden or spec changed since")
    verify.add_argument("--json", metavar="FILE", help="write every figure of every run")
    verify.add_argument("--record", metavar="DIR-or-URL", help="append the results to this store")
    verify.add_argument("-j", "--jobs", type=_positive, metavar="N", help="processes (default: by runs and cores)")
    verify.add_argument("-x", "--exitfirst", action="store_true", help="stop at the first failure")
    verify.add_argument("-v", "--verbose", action="store_true", help="a row per run, all failures and notes")

    walked = commands.add_parser("explain", help="walk one run stage by stage to where it leaves its golden")
    walked.set_defaults(command=_explain)
    walked.add_argument("ops", nargs=1, metavar="OP")
    _add_configuration(walked, many=False)
    walked.add_argument("--schedule", type=_numbers, default=[0], metavar="N", help="legal device (default: 0)")
    walked.add_argument("--device", default="emulator", help="where to run (default: emulator)")
    walked.add_argument("--tiles", help="tile set of the shipped kernels, like pr672")
    walked.add_argument("--kernel", metavar="FILE[:FUNCTION]", help="your own kernel")

    listing = commands.add_parser("list", help="ops, cases, outputs and tolerances; presets and deployments")
    listing.set_defaults(command=_list)
    listing.add_argument("ops", nargs="*", metavar="OP")
    listing.add_argument("--tolerances", metavar="FILE", help="instead of the shipped tolerances.yaml")

    equiv = commands.add_parser("equiv", help="compare the outputs of two kernels, or of two tilings of one")
    equiv.set_defaults(command=_equiv)
    equiv.add_argument("ops", nargs=1, metavar="OP")
    equiv.add_argument("--kernel", action="append", default=[], metavar="FILE[:FUNCTION]", help="one: with shipped")
    equiv.add_argument("--tiles", action="append", default=[], help="tile set, once for both sides or once for each")
    equiv.add_argument("--ulp", action="append", default=[], metavar="OUTPUT=N", help="instead of bit equality")
    _add_configuration(equiv, many=True)
    equiv.add_argument("--schedule", type=_numbers, default=[0], metavar="N", help="of both sides (default: 0)")
    equiv.add_argument("--device", default="emulator", help="where to run (default: emulator)")

    fuzz = commands.add_parser("fuzz", help="random sizes, cases, seeds and schedules until the time is up")
    fuzz.set_defaults(command=_fuzz)
    fuzz.add_argument("ops", nargs="*", metavar="OP", help="ops to fuzz (default: all)")
    fuzz.add_argument("--minutes", type=_minutes, default=1.0, metavar="N", help="how long (default: 1)")
    fuzz.add_argument("--seed", type=_seed, default=0, metavar="N", help="of the examples (default: 0)")
    fuzz.add_argument("--device", default="emulator", help="where to run (default: emulator)")
    fuzz.add_argument("--tiles", help="tile set of the shipped kernels, like pr672")
    fuzz.add_argument("--kernel", metavar="FILE[:FUNCTION]", help="your own kernel for the one op given")
    fuzz.add_argument("--tolerances", metavar="FILE", help="instead of the shipped tolerances.yaml")
    fuzz.add_argument("--database", metavar="DIR", help="failing examples (default: .goldengate/fuzz)")
    fuzz.add_argument("-j", "--jobs", type=_positive, default=1, metavar="N", help="processes (default: 1)")

    golden = commands.add_parser("golden", help="evaluate goldens only; needs no device")
    golden.set_defaults(command=_golden)
    golden.add_argument("ops", nargs="+", metavar="OP")
    _add_configuration(golden, many=False)
    golden.add_argument("--save", metavar="DIR", help="write inputs and outputs as a snapshot below DIR")
    golden.add_argument("--layout", choices=LAYOUTS, default=LAYOUTS[0], help="reference: in/NAME.pt, out/NAME.pt")

    replay = commands.add_parser("replay", help="judge a device against the inputs and golden of snapshots")
    replay.set_defaults(command=_replay)
    snapshots.add_arguments(replay, _override)

    calibrate.add_arguments(commands.add_parser("calibrate", help="fit tolerances to legal devices"))
    capacity.add_arguments(commands.add_parser("capacity", help="receive depth that each routing of the MoE needs"))
    mutate.add_arguments(commands.add_parser("mutate", help="make kernels wrong and count what the gate rejects"))
    gate.add_arguments(commands.add_parser("gate", help="judge what a change affects: what CI calls"))
    reporting.add_arguments(commands.add_parser("report", help="what recorded results say: one page, or Markdown"))
    run_file.add_arguments(commands.add_parser("run-file", help="run a kernel script unmodified on the emulator"))
    return parser


def _add_configuration(parser: argparse.ArgumentParser, *, many: bool) -> None:
    cases = "cases, or all" if many else "cases"
    parser.add_argument("--preset", action="append", type=_names, help="model sizes (default: tiny)")
    parser.add_argument("--deployment", action="append", type=_names, help="token counts (default: decode)")
    parser.add_argument("--case", action="append", type=_names, help=f"{cases} (default: all at tiny)")
    parser.add_argument("--seed", type=_numbers, default=[0], metavar="N", help="seeds of the inputs, like 0..4")
    parser.add_argument(
        "--set", action="append", type=_override, default=[], metavar="NAME=VALUE", help="another size, like tokens=16"
    )
    parser.add_argument("--ep", type=_positive, metavar="N", help="ranks: short for --set ep_world_size=N")


def _numbers(text: str) -> list[int]:
    try:
        return numbers(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _override(text: str) -> tuple[str, int | float]:
    try:
        return override(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes <= _LONGEST_MINUTES:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of minutes above 0 and up to {_LONGEST_MINUTES}")
    return minutes


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number >= 0")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number >= 1")
    return int(text)


def _selection(arguments: argparse.Namespace, schedules: Sequence[int] = (0,)) -> Selection:
    def flat(lists: list[list[str]] | None, default: list[str]) -> list[str]:
        return [name for names in lists for name in names] if lists else default

    return Selection(
        ops=arguments.ops,
        presets=flat(arguments.preset, ["tiny"]),
        deployments=flat(arguments.deployment, ["decode"]),
        cases=flat(arguments.case, []),
        seeds=arguments.seed,
        schedules=schedules,
        overrides=[*arguments.set, *([("ep_world_size", arguments.ep)] if arguments.ep else [])],
    )


def _verify(arguments: argparse.Namespace) -> int:
    path = function = None
    if arguments.kernel is not None:
        if len(set(arguments.ops)) != 1:
            raise UsageError("--kernel judges one op: name it, as in `goldengate verify gate --kernel FILE`")
        path, function = kernel_file(arguments.kernel)
    get_device(arguments.device, checks=arguments.checks == "on")
    load_tolerances(DEFAULT_PATH if arguments.tolerances is None else Path(arguments.tolerances))
    left_out: list[str] = []
    runs = expand(
        _selection(arguments, arguments.schedule),
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


def _replay(arguments: argparse.Namespace) -> int:
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


def _with_progress(
    runs: Sequence[Run], jobs: int, exitfirst: bool, record: Callable[[Verdict], None]
) -> list[Verdict]:
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
    return UNVERIFIED_EXIT if not verdicts or report.unverified_outputs(verdicts) else PASSED


def _explain(arguments: argparse.Namespace) -> int:
    from harness import explain

    arguments.case = arguments.case or [["default"]]
    return explain.run(arguments, _selection(arguments, arguments.schedule))


def _list(arguments: argparse.Namespace) -> int:
    from harness.listing import listing

    tolerances = load_tolerances(DEFAULT_PATH if arguments.tolerances is None else Path(arguments.tolerances))
    print(listing(arguments.ops, tolerances))
    return PASSED


def _equiv(arguments: argparse.Namespace) -> int:
    from harness import equiv

    sides = equiv.sides_of(arguments.kernel, arguments.tiles, kernel_file)
    start = time.perf_counter()
    runs = expand(_selection(arguments, arguments.schedule), device=arguments.device)
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
    return PASSED if statuses and set(statuses) == {PASS} else UNVERIFIED_EXIT


def _fuzz(arguments: argparse.Namespace) -> int:
    from harness import fuzz
    from specs.registry import all_ops

    path = function = None
    if arguments.kernel is not None:
        if len(set(arguments.ops)) != 1:
            raise UsageError("--kernel is fuzzed as one op: name it, as in `goldengate fuzz gate --kernel FILE`")
        path, function = kernel_file(arguments.kernel)
    expand(Selection(ops=arguments.ops))  # names are checked before the work begins
    start = time.time()
    plan = fuzz.Plan(
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
        until=start + 60 * arguments.minutes,
        database=fuzz.DATABASE if arguments.database is None else Path(arguments.database),
    )
    tallies: dict[str, fuzz.Tally] = {}
    interrupted = False
    try:
        fuzz.fuzz(plan, arguments.jobs, tallies, _fuzz_progress(plan.until, sys.stderr.isatty()))
    except KeyboardInterrupt:
        interrupted = True
    finally:
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)
    failures = [failure for tally in tallies.values() for failure in tally.failures]
    print(fuzz.table(tallies))
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
    return PASSED if total else UNVERIFIED_EXIT


def _fuzz_progress(until: float, show: bool) -> Callable[[Mapping[str, fuzz_module.Tally], str], None]:
    """A line on the terminal after every batch; a line of text where there is none, once per failure."""
    said = 0

    def progress(tallies: Mapping[str, fuzz_module.Tally], op: str) -> None:
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


def _golden(arguments: argparse.Namespace) -> int:
    from harness.listing import golden_table
    from harness.snapshots.save import save_snapshot
    from harness.verify import prepare

    for run in expand(_selection(arguments)):
        prepared, timing = prepare(run)
        print(f"{run.id}: inputs {timing.inputs:.3f} s, golden {timing.golden:.3f} s")
        print(golden_table(prepared) + "\n")
        if arguments.save is not None:
            print(f"saved {save_snapshot(Path(arguments.save), run, prepared, arguments.layout)}\n")
    return PASSED


if __name__ == "__main__":
    sys.exit(main())
