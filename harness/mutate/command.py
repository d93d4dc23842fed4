"""The sub-command `goldengate mutate [OPS]`.

Exit codes: 0 no mutant survived, 1 one did (or broke the harness), 3 no mutant was judged.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

from tabulate import tabulate

from harness.errors import UsageError
from harness.exit_codes import FAILED, PASSED, UNVERIFIED
from harness.files import writable
from harness.journal import Journal
from harness.mutate import summary
from harness.mutate.judge import ERROR, SURVIVED, Outcome
from harness.mutate.mutants import OPERATORS, ROOT, Mutant, mutants_of_op
from harness.mutate.pool import Settings, judge_all
from harness.mutate.situations import situations
from harness.mutate.summary import Result
from harness.options import positive
from harness.selection import Selection, expand, numbers
from harness.tolerances import DEFAULT_PATH, Tolerances, load_tolerances

_SURVIVORS_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `mutate`."""
    parser.set_defaults(command=run)
    parser.add_argument("ops", nargs="*", metavar="OP", help="ops whose kernels are made wrong (default: all)")
    parser.add_argument("--operator", action="append", default=[], metavar="NAME", help="only these (--list shows all)")
    parser.add_argument("--mutant", action="append", default=[], metavar="ID", help="only these, with what they change")
    parser.add_argument("--case", action="append", default=[], metavar="NAME", help="cases to judge on (default: all)")
    parser.add_argument("--seed", default="0,1", metavar="N", help="seeds of inputs and schedules (default: 0,1)")
    parser.add_argument("--limit", default="60", metavar="SECONDS", help="processor time of one run (default: 60)")
    parser.add_argument("--tolerances", metavar="FILE", help="instead of the shipped tolerances.yaml")
    parser.add_argument("--journal", metavar="FILE", help="keep results here, and go on from those that are there")
    parser.add_argument("--json", metavar="FILE", help="write every result")
    parser.add_argument("--list", action="store_true", help="operators and mutants, without judging them")
    parser.add_argument("-j", "--jobs", type=positive, default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument("-v", "--verbose", action="store_true", help="all survivors, a row per op and operator")


def run(arguments: argparse.Namespace) -> int:
    """Judge the mutants asked for and print what became of them. Raises UsageError."""
    settings = _settings(arguments)
    ops = list(dict.fromkeys(run.op for run in expand(Selection(ops=arguments.ops))))
    mutants = _chosen([m for op in ops for m in mutants_of_op(op, _words(arguments.operator))], arguments.mutant)
    if arguments.list:
        print(_listing(mutants))
        return PASSED
    path = DEFAULT_PATH if settings.tolerances is None else Path(settings.tolerances)
    tolerances = load_tolerances(path)
    for op in dict.fromkeys(mutant.op for mutant in mutants):
        situations(op, settings.seeds, settings.cases)  # names are checked before the work begins
    start = time.perf_counter()
    with ExitStack() as stack:
        journal = None
        if arguments.journal is not None:
            journal = stack.enter_context(Journal(Path(arguments.journal), "mutate"))
        target = stack.enter_context(writable(arguments.json))
        results = _judged(mutants, settings, arguments.jobs, tolerances, journal)
        _print(results, time.perf_counter() - start, verbose=arguments.verbose, explain=bool(arguments.mutant))
        if target is not None:
            target.write(_document(results, settings))
    if not results:
        return UNVERIFIED
    return FAILED if any(result.outcome.status in (SURVIVED, ERROR) for result in results) else PASSED


def _settings(arguments: argparse.Namespace) -> Settings:
    try:
        limit = float(arguments.limit)
    except ValueError:
        limit = math.nan
    if not 0 < limit < math.inf:
        raise UsageError(f"--limit {arguments.limit} is no number of seconds above 0")
    return Settings(
        seeds=tuple(numbers(arguments.seed)),
        cases=tuple(_words(arguments.case)),
        limit=limit,
        tolerances=arguments.tolerances,
    )


def _words(given: Iterable[str]) -> list[str]:
    return [word.strip() for text in given for word in text.split(",")]


def _chosen(mutants: list[Mutant], ids: Sequence[str]) -> list[Mutant]:
    known = {mutant.id: mutant for mutant in mutants}
    for name in ids:
        if name not in known:
            raise UsageError(f"there is no mutant {name}; ids change with the kernel file, `mutate --list` shows them")
    return [known[name] for name in dict.fromkeys(ids)] if ids else mutants


def _listing(mutants: Sequence[Mutant]) -> str:
    counts = {name: sum(m.operator == name for m in mutants) for name in OPERATORS}
    rows = [(o.kind, o.name, counts[o.name], o.meaning) for o in OPERATORS.values() if counts[o.name]]
    head = tabulate(rows, headers=("class", "operator", "mutants", "meaning"))
    return "\n".join((head, "", *(mutant.id for mutant in mutants)))


def _judged(
    mutants: Sequence[Mutant], settings: Settings, jobs: int, tolerances: Tolerances, journal: Journal | None
) -> list[Result]:
    """The results in the order of the mutants; those of the journal are not made again."""
    marks = {op: _mark(op, settings, tolerances) for op in dict.fromkeys(mutant.op for mutant in mutants)}
    records = () if journal is None else journal.records
    known = {(r["id"], r["mark"]): _outcome(r) for r in records if r["status"] != ERROR}  # our bug may be mended by now
    done: dict[str, Outcome] = {}
    for mutant in mutants:
        found = known.get((mutant.id, _text_mark(mutant, marks[mutant.op])))
        if found is not None:
            done[mutant.id] = found
    missing = [mutant for mutant in mutants if mutant.id not in done]
    kept = len(done)
    for number, (mutant, outcome) in enumerate(judge_all(missing, settings, jobs) if missing else (), 1):
        done[mutant.id] = outcome
        if journal is not None:
            mark = _text_mark(mutant, marks[mutant.op])
            journal.append({**summary.record(Result(mutant, outcome)), "mark": mark})
        _progress(f"{kept + number}/{len(mutants)} {mutant.id} {outcome.status}")
    _progress("")
    return [Result(mutant, done[mutant.id]) for mutant in mutants]


def _outcome(entry: Mapping[str, Any]) -> Outcome:
    return Outcome(**{f.name: entry[f.name] for f in fields(Outcome)})


def _mark(op: str, settings: Settings, tolerances: Tolerances) -> str:
    """A hash of what else decides about the mutants of an op: its golden, its spec, its tolerances, the settings."""
    rules = {name: (e.comparator, e.given, e.provenance["reference"]) for name, e in tolerances.get(op, {}).items()}
    texts = [(ROOT / folder / f"{op}.py").read_text(encoding="utf-8") for folder in ("goldens", "specs/ops")]
    runs = situations(op, settings.seeds, settings.cases)
    return _hash(*texts, repr(sorted(rules.items())), repr(runs))


def _text_mark(mutant: Mutant, mark: str) -> str:
    return _hash(mark, mutant.text)


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8")).hexdigest()[:16]


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _print(results: Sequence[Result], seconds: float, *, verbose: bool, explain: bool) -> None:
    originals = {path: (ROOT / path).read_text(encoding="utf-8") for path in {r.mutant.path for r in results}}
    if explain:
        for result in results:
            outcome = result.outcome
            print(result.mutant.diff(originals[result.mutant.path]))
            print(f"{outcome.status} {outcome.how} {outcome.where}: {outcome.reason or 'no run rejects it'}\n")
    survivors = [result for result in results if result.outcome.status in (SURVIVED, ERROR)]
    for result in survivors if verbose else survivors[:_SURVIVORS_SHOWN]:
        print(summary.survivor_text(result, originals[result.mutant.path]) + "\n")
    if len(survivors) > _SURVIVORS_SHOWN and not verbose:
        print(f"{len(survivors) - _SURVIVORS_SHOWN} more survivors (--verbose shows all)\n")
    print(summary.table(results, each=verbose))
    print("\n* by the outputs of the default case alone, as a stand-alone program compares them")
    counts = summary.tally(results)
    rate = "-" if counts.rate is None else f"{counts.rate:.2%}"
    print(
        f"{counts.mutants} mutants in {seconds:.1f} s: {counts.killed} killed, {counts.survived} survived ({rate}), "
        f"{counts.equivalent} equivalent, {counts.refused} refused, {counts.errors} errors"
    )


def _document(results: Sequence[Result], settings: Settings) -> str:
    kinds = {operator.kind for operator in OPERATORS.values()}
    groups = {
        kind: summary.figures(summary.tally([r for r in results if OPERATORS[r.mutant.operator].kind == kind]))
        for kind in sorted(kinds)
    }
    document = {
        "format": 1,
        "seeds": list(settings.seeds),
        "cases": list(settings.cases),
        "all": summary.figures(summary.tally(results)),
        "classes": groups,
        "mutants": [summary.record(result) for result in results],
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"
