"""Kill and false-alarm tables from the journals of `goldengate mutate` and `goldengate calibrate --check`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.journal import Record, read_journal
from harness.mutate.judge import EQUIVALENT, ERROR, KILLED, REFUSED, SURVIVED
from harness.mutate.mutants import OPERATORS
from harness.reporting.facts import Alarms, Kills, MutantTable


def mutants(path: Path) -> MutantTable:
    """Counts over the newest record of every mutant. Raises UsageError for what is no journal of `mutate`."""
    newest = {record["id"]: record for record in _read(path, "mutate", "id", "op", "operator", "status", "default")}
    records = list(newest.values())
    ops: dict[str, list[Record]] = {}
    classes: dict[str, list[Record]] = {}
    for record in records:
        operator = OPERATORS.get(record["operator"])
        ops.setdefault(record["op"], []).append(record)
        classes.setdefault("of an older version" if operator is None else operator.kind, []).append(record)
    return MutantTable(
        tuple(_kills(name, group) for name, group in sorted(ops.items())),
        tuple(_kills(name, group) for name, group in sorted(classes.items())),
        _kills("all", records),
        tuple(sorted(record["id"] for record in records if record["status"] == SURVIVED)),
    )


_FIELDS = {KILLED: "killed", SURVIVED: "survived", EQUIVALENT: "equivalent", REFUSED: "refused", ERROR: "errors"}


def _kills(name: str, records: Iterable[Record]) -> Kills:
    counts = dict.fromkeys(_FIELDS, 0)
    gates: dict[str, tuple[int, int]] = {}
    for record in records:
        if record["status"] in counts:
            counts[record["status"]] += 1
        if record["status"] not in (KILLED, SURVIVED):
            continue
        answers: dict[str, Any] = record["default"]
        for gate, rejected in answers.items():
            if rejected is not None:
                said, judged = gates.get(gate, (0, 0))
                gates[gate] = said + bool(rejected), judged + 1
    return Kills(name, **{field: counts[status] for status, field in _FIELDS.items()}, gates=gates)


def alarms(path: Path) -> tuple[Alarms, ...]:
    """Runs and failures per op, of what was run last with the same kernel, golden, spec and tolerances.

    Raises UsageError for what is no journal of `calibrate --check`.
    """
    records = _read(path, "calibrate --check", "run", "mark", "status")
    mark = {_op(record): record["mark"] for record in records}
    valid = {record["run"]: record["status"] for record in records if record["mark"] == mark[_op(record)]}
    counts: dict[str, list[int]] = {}
    for run, status in valid.items():
        row = counts.setdefault(run.partition("-")[0], [0, 0, 0])
        row[0] += 1
        row[1] += status == "empty"
        row[2] += status == "fail"
    return tuple(Alarms(op, *row) for op, row in sorted(counts.items()))


def _read(path: Path, kind: str, *needed: str) -> list[Record]:
    records = read_journal(path, kind)
    for number, record in enumerate(records, 2):
        if not record.keys() >= set(needed):
            raise UsageError(f"{path}:{number}: written by another version of goldengate {kind}")
    return records


def _op(record: Record) -> str:
    return str(record["run"]).partition("-")[0]  # names of ops have no hyphen
