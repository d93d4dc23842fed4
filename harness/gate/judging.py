"""Works through a plan within its budget, and says what came of it."""

from __future__ import annotations

import ast
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness.compare import FAIL
from harness.execute import Refused, execute_each
from harness.gate.plan import Plan
from harness.report import unverified_outputs
from harness.run import Run
from harness.verify import Verdict

if TYPE_CHECKING:
    from harness.history.regression import Findings


@dataclass
class Outcome:
    """What the gate found. `not_run`: runs that the budget left no time for; `findings`: against the baseline."""

    plan: Plan
    verdicts: list[Verdict] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    not_run: list[Run] = field(default_factory=list)
    seconds: float = 0.0
    findings: Findings | None = None

    @property
    def failed(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.status == FAIL]

    @property
    def unjudged(self) -> list[str]:
        """Affected ops of which nothing ran."""
        ran = {v.run.op for v in self.verdicts} | {r.run.op for r in self.refused}
        return [affected.op for affected in self.plan.affected if affected.op not in ran]

    @property
    def unverified(self) -> list[str]:
        """Outputs that nothing verified."""
        return unverified_outputs(self.verdicts)


Progress = Callable[[int, int, str], None]


def work_through(
    plan: Plan, jobs: int, budget: float | None, record: Callable[[Verdict], None], progress: Progress
) -> Outcome:
    """Judge the runs of a plan in order until the budget (seconds) is spent. Every verdict is recorded at once."""
    outcome = Outcome(plan)
    start = time.monotonic()
    results = execute_each(plan.runs, jobs)
    done = 0
    for result in results:
        done += 1
        if isinstance(result, Refused):
            outcome.refused.append(result)
        else:
            outcome.verdicts.append(result)
            record(result)
        progress(done, len(plan.runs), result.run.id)
        if budget is not None and time.monotonic() - start > budget:
            break
    results.close()  # type: ignore[attr-defined]  # a generator: its workers stop
    outcome.not_run = list(plan.runs[done:])
    outcome.seconds = time.monotonic() - start
    return outcome


@dataclass(frozen=True)
class Place:
    """A line of a kernel that a message belongs to."""

    file: str
    line: int


def place_of(run: Run) -> Place:
    """The file of a run's kernel and the line of its entry."""
    from specs.registry import ROOT

    path = Path(run.kernel) if run.kernel is not None else ROOT / "kernels" / f"{run.op}.py"
    return Place(str(path), _line_of(path, run.function or run.op))


def _line_of(path: Path, function: str) -> int:
    try:
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    except (OSError, SyntaxError, UnicodeDecodeError):
        return 1
    return next((n.lineno for n in nodes if isinstance(n, ast.FunctionDef) and n.name == function), 1)


def worst_first(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """One failed verdict per op, the first in order of its runs."""
    seen: dict[str, Verdict] = {}
    for verdict in verdicts:
        if verdict.status == FAIL:
            seen.setdefault(verdict.run.op, verdict)
    return list(seen.values())
