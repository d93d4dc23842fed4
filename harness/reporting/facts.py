"""What a report says, as plain frozen values, before anybody decides how it looks."""

from __future__ import annotations

from dataclasses import dataclass

from harness.history.regression import Change, Shift
from harness.locate import Axis


@dataclass(frozen=True)
class Scope:
    """What was looked at. `first`, `last`: times of the oldest and newest row, UTC."""

    store: str
    since: str | None
    sessions: int
    runs: int
    rows: int
    first: str
    last: str
    revision: str
    dirty: bool
    built: str


@dataclass(frozen=True)
class Failing:
    """An output, or a run as a whole, that fails now, over all its cases.

    `since`: when the earliest of the present failures began, with its session and revision; `ever_passed`: whether
    there was a session before in which it did not fail. `command` repeats the worst run, whose bad elements are `axes`.
    """

    op: str
    configuration: str
    output: str
    cases: tuple[str, ...]
    runs: int
    failed: int
    since: str
    session: str
    revision: str
    ever_passed: bool
    rule: str
    reason: str
    diverged: str
    command: str
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Moved:
    """Statistics of one output that left the spread they had, over all its cases; the largest step of each first."""

    op: str
    configuration: str
    output: str
    shifts: tuple[Shift, ...]


@dataclass(frozen=True)
class Output:
    """The figures of one output over the cases of its newest sessions.

    `used`: largest share of its limit that was taken now, `used_ever` over everything recorded; None where the rule
    measures none. `histogram`: share of compared elements in each bin of relative error (`svg.BINS`); `trend`: per
    session (its start, largest share used).
    """

    op: str
    configuration: str
    name: str
    stage: bool
    status: str
    rule: str
    rows: int
    used: float | None
    used_ever: float | None
    ulp_max: int | None
    differing: float
    rel_l2: float | None
    bias_z: float | None
    histogram: tuple[float, ...]
    trend: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Duration:
    """Mean seconds of the runs of an op in its newest session, parts that a session had kept left out."""

    op: str
    configuration: str
    runs: int
    inputs: float
    golden: float
    device: float
    judge: float
    trend: tuple[tuple[str, float], ...]

    @property
    def total(self) -> float:
        return self.inputs + self.golden + self.device + self.judge


@dataclass(frozen=True)
class SessionLine:
    """One recording session."""

    session: str
    began: str
    revision: str
    dirty: bool
    host: str
    runs: int
    failed: int
    seconds: float


@dataclass(frozen=True)
class Kills:
    """What became of the mutants of one group. `errors`: the harness broke at them. `gates`: per gate (rejected,
    judged) on the default case alone."""

    name: str
    killed: int
    survived: int
    equivalent: int
    refused: int
    errors: int
    gates: dict[str, tuple[int, int]]

    @property
    def rate(self) -> float | None:
        counted = self.killed + self.survived + self.errors
        return self.killed / counted if counted else None


@dataclass(frozen=True)
class MutantTable:
    """Kill counts per op and per class of operators, their sum, and the survivors by id."""

    ops: tuple[Kills, ...]
    classes: tuple[Kills, ...]
    total: Kills
    survivors: tuple[str, ...]


@dataclass(frozen=True)
class Alarms:
    """Runs of legal devices per op: how many, with nothing to compare, and how many failed."""

    op: str
    runs: int
    empty: int
    failed: int


@dataclass(frozen=True)
class Report:
    """Everything a page says."""

    scope: Scope
    failing: tuple[Failing, ...]
    moved: tuple[Moved, ...]
    fixed: tuple[Change, ...]
    unverified: tuple[str, ...]
    outputs: tuple[Output, ...]
    durations: tuple[Duration, ...]
    sessions: tuple[SessionLine, ...]
    mutants: MutantTable | None = None
    alarms: tuple[Alarms, ...] | None = None
