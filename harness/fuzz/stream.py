"""The endless stream of examples of each op, by seed and number alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from harness.run import Run
from specs import variations

DATABASE = Path(".goldengate") / "fuzz"
_LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Plan:
    """What to fuzz. `common`: device, kernel file, tiles and so on of every run, as an example of op "" ; `seed`: of
    the examples; `until`: on the clock of `time.time`; `database`: its directory."""

    ops: tuple[str, ...]
    common: Run
    seed: int
    until: float
    database: Path = DATABASE


def examples(plan: Plan, op: str, start: int = 0) -> Iterator[Run]:
    """The endless stream of examples of one op from number `start` on; each depends on seed and number alone."""
    for number in count(start):
        rng = random.Random(f"{plan.seed}/{op}/{number}")
        found = variations.situation(
            rng.choice,
            op,
            seeds=lambda rng=rng: rng.randrange(_LARGEST_SEED),  # type: ignore[misc]
            case=lambda sized: [case for case in sized.cases if not case.invalid],
        )
        schedule = rng.randrange(_LARGEST_SEED) if rng.random() < 0.75 else 0
        yield run_of(found, plan.common, schedule)


def run_of(found: variations.Situation, common: Run, schedule: int) -> Run:
    """The run of a situation under the device, kernel and tolerances of `common`."""
    return replace(
        common,
        op=found.op,
        preset=found.preset,
        deployment=found.deployment,
        overrides=found.overrides,
        case=found.case,
        seed=found.seed,
        schedule=schedule,
    )


def situation_of(run: Run) -> variations.Situation:
    """The situation of a run."""
    return variations.Situation(run.op, run.preset, run.deployment, run.overrides, run.case, run.seed)
