"""How many mutants were killed: counts, tables and the words for one survivor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tabulate import tabulate

from harness.mutate.judge import EQUIVALENT, ERROR, KILLED, OURS, REFUSED, SURVIVED, Outcome
from harness.mutate.mutants import OPERATORS, Mutant
from harness.mutate.rivals import GATES

HEADERS = ("mutants", "refused", "equivalent", "errors", "killed", "survived", "kill rate")


@dataclass(frozen=True)
class Result:
    """A mutant and what became of it."""

    mutant: Mutant
    outcome: Outcome

    @property
    def command(self) -> str:
        """The command that judges this mutant again and shows what it changes."""
        return f"goldengate mutate {self.mutant.op} --mutant {self.mutant.id}"


@dataclass(frozen=True)
class Tally:
    """Counts of a group of mutants.

    `errors`: those at which the harness broke. `default`: per gate, how many of the wrong ones its rule rejects on the
    default case alone, and of how many it could say so.
    """

    mutants: int
    refused: int
    equivalent: int
    errors: int
    killed: int
    survived: int
    default: dict[str, tuple[int, int]]

    @property
    def rate(self) -> float | None:
        """Killed of all that are wrong: refused and equivalent mutants are not, and one at which the harness broke was
        not rejected. None without any."""
        counted = self.killed + self.survived + self.errors
        return self.killed / counted if counted else None


def tally(results: Sequence[Result]) -> Tally:
    """The counts of some results."""
    by = {status: [r for r in results if r.outcome.status == status] for status in _STATUSES}
    wrong = [result.outcome.default for result in (*by[KILLED], *by[SURVIVED])]
    said = {gate: [found.get(gate) for found in wrong if found.get(gate) is not None] for gate in (OURS, *GATES)}
    return Tally(
        len(results),
        len(by[REFUSED]),
        len(by[EQUIVALENT]),
        len(by[ERROR]),
        len(by[KILLED]),
        len(by[SURVIVED]),
        {gate: (sum(map(bool, answers)), len(answers)) for gate, answers in said.items()},
    )


_STATUSES = (KILLED, REFUSED, EQUIVALENT, SURVIVED, ERROR)


def table(results: Sequence[Result], *, each: bool = False) -> str:
    """A row per op and one per operator; with `each`, one per op and operator, too. The last columns are what four
    gates reject of the same mutants by the outputs of the default case alone."""
    parts = [
        _table(results, "op", lambda r: (r.mutant.op,)),
        _table(results, "class of operators", lambda r: (OPERATORS[r.mutant.operator].kind,)),
        _table(results, "operator", lambda r: (OPERATORS[r.mutant.operator].kind, r.mutant.operator)),
    ]
    if each:
        parts.append(_table(results, "op and operator", lambda r: (r.mutant.op, r.mutant.operator)))
    return "\n\n".join(parts)


def _table(results: Sequence[Result], title: str, key: Callable[[Result], tuple[str, ...]]) -> str:
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        groups.setdefault(key(result), []).append(result)
    rows = [_row(" ".join(name), tally(group)) for name, group in groups.items()]
    rows.append(_row("all", tally(results)))
    headers = (title, *HEADERS, *(f"{gate} *" for gate in (OURS, *GATES)))
    return tabulate(rows, headers=headers, colalign=("left",) + ("right",) * (len(headers) - 1), disable_numparse=True)


def _row(name: str, counts: Tally) -> tuple[str, ...]:
    numbers = (counts.mutants, counts.refused, counts.equivalent, counts.errors, counts.killed, counts.survived)
    return (
        name,
        *map(str, numbers),
        _share(counts.killed, counts.killed + counts.survived + counts.errors),
        *(_share(*counts.default[gate]) for gate in (OURS, *GATES)),
    )


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def survivor_text(result: Result, original: str) -> str:
    """A mutant that was not rejected, with what it changes and the command that repeats it."""
    head = "SURVIVED" if result.outcome.status == SURVIVED else f"ERROR ({result.outcome.reason})"
    return f"{head} {result.mutant.id}\n{result.mutant.diff(original)}\n  repeat: {result.command}"


def record(result: Result) -> dict[str, Any]:
    """One result as plain data."""
    mutant = result.mutant
    return {
        "id": mutant.id,
        "op": mutant.op,
        "operator": mutant.operator,
        "file": mutant.path,
        "line": mutant.line,
        **asdict(result.outcome),
        "reproduce": result.command,
    }


def figures(counts: Tally) -> dict[str, Any]:
    """The counts of a group as plain data."""
    return {**asdict(counts), "rate": counts.rate}
