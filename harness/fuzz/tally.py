"""What was found and counted for each op."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tabulate import tabulate

from harness.run import Run
from specs.registry import load_op

FAILURES_PER_OP = 3


@dataclass(frozen=True)
class Failure:
    """One way in which a kernel fails. `run`: the shrunk example; `place`: the output, or the first line of a problem,
    by which ways are told apart; `text`: the failure in words; `replayed`: it came from the database."""

    run: Run
    place: str
    text: str
    replayed: bool = False


@dataclass
class Tally:
    """What was done for one op. `refused`: sizes that the op or the kernel cannot do; `schedules`: examples under a
    schedule other than 0; `fixed`: examples of the database that no longer fail."""

    examples: int = 0
    refused: int = 0
    cases: set[str] = field(default_factory=set)
    tokens: set[int] = field(default_factory=set)
    schedules: int = 0
    failures: list[Failure] = field(default_factory=list)
    fixed: int = 0

    def add(self, other: Tally) -> None:
        """Take over what another process counted."""
        self.examples += other.examples
        self.refused += other.refused
        self.cases |= other.cases
        self.tokens |= other.tokens
        self.schedules += other.schedules
        self.fixed += other.fixed
        known = {failure.place for failure in self.failures}
        self.failures += [failure for failure in other.failures if failure.place not in known]


def places_of(tally: Tally) -> frozenset[str]:
    """The places in which an op is known to fail."""
    return frozenset(failure.place for failure in tally.failures)


def spent(tally: Tally) -> bool:
    """Whether an op has failed in as many ways as are looked for."""
    return len(tally.failures) >= FAILURES_PER_OP


def table(tallies: Mapping[str, Tally]) -> str:
    """One row per op: examples, cases reached of those there are, token counts, failures."""
    rows = []
    for op, tally in tallies.items():
        cases = sum(not case.invalid for case in load_op(op).cases)
        replayed = sum(failure.replayed for failure in tally.failures)
        rows.append(
            (
                op,
                tally.examples,
                f"{len(tally.cases)} of {cases}" if len(tally.cases) <= cases else str(len(tally.cases)),
                ", ".join(map(str, sorted(tally.tokens))),
                f"{tally.schedules / max(tally.examples, 1):.0%}",
                f"{len(tally.failures)} ({replayed} replayed)" if replayed else str(len(tally.failures)),
                tally.fixed,
                tally.refused,
            )
        )
    headers = ("op", "examples", "cases", "token counts", "schedule > 0", "failures", "fixed", "refused")
    align = ("left", "right", "right", "left", "right", "left", "right", "right")
    return tabulate(rows, headers=headers, colalign=align)
