"""The sub-command `goldengate calibrate [OPS]`.

Exit codes: 0 all of the ensemble passes, 1 a legal device fails, 3 nothing was compared.
"""

from __future__ import annotations

import argparse
import datetime
import math
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tabulate import tabulate

from harness.calibrate import fit as fitting
from harness.calibrate.check import check, tallied
from harness.calibrate.ensemble import HELD_OUT, Plan, observed
from harness.calibrate.fit import Fit, Need
from harness.calibrate.rewrite import rewritten, write
from harness.errors import UsageError
from harness.exit_codes import FAILED, PASSED, UNVERIFIED
from harness.journal import Journal
from harness.options import positive
from harness.selection import Selection, expand, numbers
from harness.tolerances import DEFAULT_PATH, Tolerances, load_tolerances

_FAILURES_SHOWN = 5
_EVERY = 100  # runs between two lines of progress where there is no terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `calibrate`."""
    parser.set_defaults(command=run)
    parser.add_argument("ops", nargs="*", metavar="OP", help="ops to calibrate (default: all)")
    parser.add_argument("--devices", type=positive, default=8, metavar="N", help="legal devices (default: 8)")
    parser.add_argument("--seed", default="0..3", metavar="N", help=f"seeds of the inputs below {HELD_OUT}, like 0..3")
    parser.add_argument("--preset", default="tiny", metavar="NAMES", help="model sizes, like tiny,flash")
    parser.add_argument("--margin", default=str(fitting.MARGIN), metavar="X", help="times the ensemble's maximum")
    parser.add_argument("--write", action="store_true", help="write what was fitted to the tolerances file")
    parser.add_argument("--tighten", action="store_true", help="write outputs of which nothing is looser only")
    parser.add_argument("--allow-looser", metavar="REASON", help="also what lets more pass; the reason is recorded")
    parser.add_argument("--check", type=positive, metavar="RUNS", help="instead: count failures on held-out seeds")
    parser.add_argument("--tolerances", metavar="FILE", help="instead of the shipped tolerances.yaml")
    parser.add_argument("--journal", metavar="FILE", help="keep results here, and go on from those that are there")
    parser.add_argument("-j", "--jobs", type=positive, default=1, metavar="N", help="processes of --check (default: 1)")


def run(arguments: argparse.Namespace) -> int:
    """Fit, or count false alarms. Raises UsageError."""
    presets = [word.strip() for word in arguments.preset.split(",")]
    ops = tuple(dict.fromkeys(r.op for r in expand(Selection(ops=arguments.ops, presets=presets))))
    path = DEFAULT_PATH if arguments.tolerances is None else Path(arguments.tolerances)
    if arguments.check is not None and (arguments.write or arguments.allow_looser is not None):
        raise UsageError("--check only counts: --write and --allow-looser do not go with it")
    if arguments.check is not None and arguments.tolerances is not None:
        raise UsageError("--check counts the false alarms of the shipped tolerances: --tolerances does not go with it")
    if arguments.tighten and (not arguments.write or arguments.allow_looser is not None):
        raise UsageError("--tighten goes with --write, and not with --allow-looser")
    if arguments.allow_looser is not None and not (arguments.write and arguments.allow_looser.strip()):
        raise UsageError("--allow-looser takes the reason and goes with --write")
    tolerances = load_tolerances(path)
    with ExitStack() as stack:
        journal = None
        if arguments.journal is not None:
            kind = "calibrate" if arguments.check is None else "calibrate --check"
            journal = stack.enter_context(Journal(Path(arguments.journal), kind))
        if arguments.check is not None:
            return _check(ops, arguments.check, tolerances, journal, arguments.jobs)
        plan = Plan(ops, tuple(presets), tuple(numbers(arguments.seed)), arguments.devices)
        return _calibrate(plan, path, tolerances, journal, arguments)


def _check(ops: Sequence[str], count: int, tolerances: Tolerances, journal: Journal | None, jobs: int) -> int:
    judged = [op for op in ops if op in tolerances]
    start = time.perf_counter()

    def progress(number: int, failures: int) -> None:
        _progress(f"{number}/{count} runs, {failures} failures", number % _EVERY == 0)

    table, failures, compared = tallied(check(judged, count, tolerances, journal, jobs), progress)
    _progress("")
    print(table)
    for failure in failures[:_FAILURES_SHOWN]:
        print(f"\n{failure.text}")
    if len(failures) > _FAILURES_SHOWN:
        print(f"\n{len(failures) - _FAILURES_SHOWN} more")
    seconds = time.perf_counter() - start
    print(f"\n{count} runs on held-out seeds from {HELD_OUT} on, in {seconds:.1f} s: {len(failures)} false alarms")
    if failures:
        return FAILED
    return PASSED if compared else UNVERIFIED


def _calibrate(
    plan: Plan, path: Path, tolerances: Tolerances, journal: Journal | None, arguments: argparse.Namespace
) -> int:
    margin = _margin(arguments.margin)
    needs, problems = _needs(plan, tolerances, journal)
    found = [
        fit
        for (op, output), need in needs.items()
        for fit in fitting.fits(op, output, tolerances[op][output].comparator, need, margin)
    ]
    print(_table(needs, found, tolerances))
    for problem in problems[:_FAILURES_SHOWN]:
        print(f"\n{problem}")
    if arguments.write:
        if arguments.tighten:
            looser = {(fit.op, fit.output) for fit in found if fit.looser}  # its numbers go together
            found = [fit for fit in found if (fit.op, fit.output) not in looser]
        _write(path, found, needs, plan, margin, arguments.allow_looser)
    if problems or any(need.failed for need in needs.values()):
        return FAILED
    return PASSED if any(need.runs for need in needs.values()) else UNVERIFIED


def _needs(
    plan: Plan, tolerances: Tolerances, journal: Journal | None
) -> tuple[dict[tuple[str, str], Need], list[str]]:
    """What the ensemble needed per op and output, and the runs that failed for another reason than an output."""
    seen: dict[tuple[str, str], list[dict[str, Any]]] = {}
    problems: list[str] = []
    judged = Plan(tuple(op for op in plan.ops if op in tolerances), plan.presets, plan.seeds, plan.devices)
    total = sum(1 for op in judged.ops for _ in judged.runs(op))
    for number, (run, record) in enumerate(observed(judged, tolerances, journal), 1):
        problems += [f"{run.command}: {problem}" for problem in record["problems"]]
        for output, observation in record["outputs"].items():
            seen.setdefault((run.op, output), []).append({**observation, "case": f"{run.preset}/{run.case}"})
        _progress(f"{number}/{total} {run.id}", number % _EVERY == 0)
    _progress("")
    return {key: fitting.gathered(observations) for key, observations in seen.items()}, problems


def _table(needs: dict[tuple[str, str], Need], found: Sequence[Fit], tolerances: Tolerances) -> str:
    rows: list[tuple[object, ...]] = []
    for (op, output), need in needs.items():
        entry = tolerances[op][output]
        head: tuple[object, ...] = (op, output, need.runs, need.failed or "")
        tail = (entry.provenance["reference"],)
        mine = [fit for fit in found if (fit.op, fit.output) == (op, output)]
        if not mine:
            bits = f"{max(need.most.values(), default=0)} differ" if need.runs else "nothing compared"
            rows.append((*head, entry.comparator.kind, bits, "", "", "kept", *tail))
        for fit in mine:
            what = "looser" if fit.looser else "tighter" if fit.fitted < fit.now else "same"
            rows.append((*head, fit.parameter, f"{fit.observed:.3g}", f"{fit.fitted:g}", f"{fit.now:g}", what, *tail))
            head, tail = ("", "", "", ""), ("",)
    headers = ("op", "output", "runs", "failed", "parameter", "observed", "fitted", "file", "", "reference")
    return tabulate(rows, headers=headers, disable_numparse=True)


def _write(
    path: Path,
    found: Sequence[Fit],
    needs: dict[tuple[str, str], Need],
    plan: Plan,
    margin: float,
    reason: str | None,
) -> None:
    """Write what was fitted. Raises UsageError where something would be looser, unless there is a reason."""
    changed = [fit for fit in found if fit.fitted != fit.now]
    failed = [f"{op}.{output}" for (op, output), need in needs.items() if need.failed]
    if failed and reason is None:
        raise UsageError(f"legal devices fail {', '.join(failed)}: find out why; nothing was written")
    looser = [fit for fit in changed if fit.looser]
    if looser and reason is None:
        first = f"{looser[0].op}.{looser[0].output}.{looser[0].parameter} {looser[0].fitted:g} for {looser[0].now:g}"
        raise UsageError(
            f"{len(looser)} tolerances would be looser than in {path}, first {first}: "
            f'nothing was written; --allow-looser "reason" does so'
        )
    text = path.read_text(encoding="utf-8")
    today = datetime.date.today()
    outputs = list(dict.fromkeys((fit.op, fit.output) for fit in changed))
    for op, output in outputs:
        mine = [fit for fit in changed if (fit.op, fit.output) == (op, output)]
        words = {"calibrated": _ensemble_text(needs[op, output], plan, margin, mine)}
        if reason is not None and any(fit.looser for fit in mine):
            words["looser"] = reason.strip()
        text = rewritten(text, mine, words, today)
    write(path, text, outputs, looser_allowed=reason is not None)
    print(f"wrote {len(changed)} numbers to {path}")


def _ensemble_text(need: Need, plan: Plan, margin: float, mine: Sequence[Fit]) -> str:
    maxima = ", ".join(f"{fit.parameter} {fit.observed:.3g}" for fit in mine)
    return (
        f"{need.runs} runs of {plan.devices} devices, seeds {plan.seeds[0]} to {plan.seeds[-1]}, "
        f"{' and '.join(plan.presets)}, times {margin:g}; observed {maxima}"
    )


def _margin(text: str) -> float:
    try:
        margin = float(text)
    except ValueError:
        margin = math.nan
    if not 1 <= margin < math.inf:
        raise UsageError(f"--margin {text} is no number >= 1")
    return margin


def _progress(text: str, say: bool = False) -> None:
    """On a terminal the line in place; elsewhere a line now and then."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    elif say and text:
        print(text, file=sys.stderr, flush=True)
