"""Every planted fault makes `verify` fail and name what broke; the shipped kernels pass where the faults are sought."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from faults import FAULTS, Fault

import specs.registry
from harness.compare import FAIL, PASS
from harness.devices import get_device
from harness.report import failure_text
from harness.run import Run
from harness.tolerances import DEFAULT_PATH, load_tolerances
from harness.verify import Session
from specs.registry import all_ops, load_op

RUNS = [(fault, case) for fault in FAULTS for case in fault.cases]

ALWAYS = 3
"""Faults of every op that are planted always; the others are slow, a part of them every day."""
SEEN_ALWAYS = [f for op in all_ops() for f in [fault for fault in FAULTS if fault.op == op][:ALWAYS]]


def marked() -> Iterator[Any]:
    """All runs, those that are not always made as slow ones."""
    for fault, case in RUNS:
        marks = () if fault in SEEN_ALWAYS else (pytest.mark.slow,)
        yield pytest.param(fault, case, id=f"{fault.id}-{case}", marks=marks)


Overrides = tuple[tuple[str, float], ...]


def new_session() -> Session:
    return Session(get_device("emulator"), load_tolerances(DEFAULT_PATH))


@pytest.fixture(scope="module")
def shared() -> Session:
    """Keeps the inputs and golden of the last case from one fault to the next."""
    return new_session()


def configure(monkeypatch: pytest.MonkeyPatch, overrides: Overrides) -> None:
    monkeypatch.setattr(specs.registry, "load_op", partial(load_op, **dict(overrides)))


def test_the_list_is_long_and_covers_every_op() -> None:
    assert len(FAULTS) >= 160
    assert len({fault.id for fault in FAULTS}) == len(FAULTS)
    for op in all_ops():
        assert sum(fault.op == op for fault in FAULTS) >= 6, op


@pytest.mark.parametrize(("fault", "case"), list(marked()))
def test_rejects_planted_fault(
    fault: Fault, case: str, shared: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(monkeypatch, fault.overrides)
    session = new_session() if fault.overrides else shared
    copy, faulty = fault.write(tmp_path)
    run = Run(fault.op, fault.preset, fault.deployment, case, schedule=fault.schedule, kernel=str(copy))

    verdict = session.verify(run)
    text = failure_text(verdict)

    assert verdict.status == FAIL
    assert f"repeat: {run.command}" in text
    if fault.fault:
        assert any(f"{faulty.name}:" in problem and fault.fault in problem for problem in verdict.problems)
    else:
        judged = {**verdict.outputs, **verdict.stages}
        assert judged[fault.output].status == FAIL, text
        assert f"FAIL {fault.op} " in text
        label = fault.output if fault.output in verdict.outputs else f"stage {fault.output}"
        assert f": {label}: " in text
        assert "worst [" in text or "never written" in text


def situation(fault: Fault, case: str) -> tuple[Any, ...]:
    return fault.op, fault.preset, fault.deployment, case, fault.schedule, fault.overrides


CLEAN = sorted({situation(fault, case) for fault, case in RUNS})
CLEAN_ALWAYS = {situation(fault, case) for fault, case in RUNS if fault in SEEN_ALWAYS and fault.overrides}
"""Without overrides they are runs of tests/ops, which are made anyway."""
MARKED = [run if run in CLEAN_ALWAYS else pytest.param(*run, marks=pytest.mark.slow) for run in CLEAN]


@pytest.mark.parametrize(("op", "preset", "deployment", "case", "schedule", "overrides"), MARKED)
def test_accepts_the_shipped_kernel_where_faults_are_sought(
    op: str,
    preset: str,
    deployment: str,
    case: str,
    schedule: int,
    overrides: Overrides,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configure(monkeypatch, overrides)
    verdict = new_session().verify(Run(op, preset, deployment, case, schedule=schedule))
    assert verdict.status == PASS, failure_text(verdict)


@pytest.mark.parametrize("nth", [0, 2])
def test_rejects_a_snippet_that_does_not_occur_as_stated(nth: int) -> None:
    fault = Fault("gate", "x", "piece", "other", "weights", "a test")
    with pytest.raises(ValueError, match=f"'piece' occurs {nth} times, expected 1"):
        fault.plant("piece " * nth)
