"""The runs of an ensemble, and those that count false alarms on seeds that no calibration sees."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.calibrate.observe import observing
from harness.devices import get_device
from harness.errors import UsageError
from harness.journal import Journal
from harness.run import Run
from harness.tolerances import Tolerances
from harness.verify import Session
from specs.registry import load_op

HELD_OUT = 1_000_000_000
"""Seeds below are for calibration, from here on for counting false alarms: input seeds and schedule seeds alike."""

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Plan:
    """What is calibrated on: per op and preset every valid case (at TINY; the default one elsewhere) with each input
    seed, on as many legal devices; device 0 is program order."""

    ops: tuple[str, ...]
    presets: tuple[str, ...]
    seeds: tuple[int, ...]
    devices: int

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise UsageError(f"--devices {self.devices} is no number >= 1")
        if max(*self.seeds, self.devices - 1) >= HELD_OUT:
            raise UsageError(f"seeds from {HELD_OUT} on are held out for `calibrate --check`")

    def runs(self, op: str) -> Iterator[Run]:
        """The runs of one op, the device fastest."""
        for preset in self.presets:
            for case in _cases(op, preset):
                for seed in self.seeds:
                    for device in range(self.devices):
                        yield Run(op, preset, case=case, seed=seed, schedule=device)


def _cases(op: str, preset: str) -> list[str]:
    valid = [case.name for case in load_op(op, preset).cases if not case.invalid]
    return valid if preset == "tiny" else valid[:1]


def held_out(ops: Sequence[str], count: int) -> Iterator[Run]:
    """`count` runs over all ops and their cases at TINY in turn, each with inputs and a device of its own."""
    turns = [(op, _cases(op, "tiny")) for op in ops]
    for number in range(count):
        op, cases = turns[number % len(turns)]
        case = cases[number // len(turns) % len(cases)]
        yield Run(op, case=case, seed=HELD_OUT + number, schedule=HELD_OUT + number)


def mark(op: str, tolerances: Tolerances) -> str:
    """A hash of what decides about a run of an op: kernel, golden, spec and tolerances. Results of another mark are
    not gone on from."""
    rules = {name: (entry.comparator, entry.given) for name, entry in tolerances.get(op, {}).items()}
    texts = [(ROOT / folder / f"{op}.py").read_text(encoding="utf-8") for folder in ("goldens", "specs/ops", "kernels")]
    return hashlib.sha256("\0".join((*texts, repr(sorted(rules.items())))).encode("utf-8")).hexdigest()[:16]


def observed(plan: Plan, tolerances: Tolerances, journal: Journal | None) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Every run of a plan with its record: per output its observation as plain data, and the problems of the run.

    Runs of the journal are not made again. Raises what Session.verify raises.
    """
    watched, observers = observing(tolerances)
    session = Session(get_device("emulator"), watched)
    known = {} if journal is None else {(r["run"], r["mark"]): r for r in journal.records}
    for op in plan.ops:
        stamp = mark(op, tolerances)
        for run in plan.runs(op):
            record = known.get((run.id, stamp))
            if record is None:
                for observer in observers[op].values():
                    observer.seen = None
                verdict = session.verify(run)
                seen = {name: o.seen.as_dict() for name, o in observers[op].items() if o.seen is not None}
                record = {"run": run.id, "mark": stamp, "outputs": seen, "problems": list(verdict.problems)}
                if journal is not None:
                    journal.append(record)
            yield run, record
