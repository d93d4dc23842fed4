"""A kernel that was changed within its contract passes: in every case, for every seed and on every legal device."""

from __future__ import annotations

from pathlib import Path

import pytest
from change import Change
from legal_changes import CHANGES

from harness.compare import EMPTY, PASS
from harness.devices import get_device
from harness.report import failure_text
from harness.run import Run
from harness.tolerances import load_tolerances
from harness.verify import Session
from specs.registry import all_ops, load_op

DEVICES = 2


def test_every_op_has_one() -> None:
    assert {change.op for change in CHANGES} == set(all_ops())
    assert len({change.id for change in CHANGES}) == len(CHANGES)


@pytest.mark.parametrize("change", list({c.op: c for c in reversed(CHANGES)}.values()), ids=lambda c: c.id)
def test_the_first_of_an_op_in_its_default_case(change: Change, tmp_path: Path) -> None:
    kernel, _ = change.write(tmp_path)
    passes([Run(change.op, kernel=str(kernel), schedule=1)])


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.id)
def test_every_case_on_several_devices(change: Change, tmp_path: Path) -> None:
    kernel, _ = change.write(tmp_path)
    op = load_op(change.op)
    ranks = (("ep_world_size", 2),) if op.world > 2 else ()  # eight of them take four times as long
    passes(
        [
            Run(op.name, case=case, seed=seed, schedule=seed * DEVICES + device, kernel=str(kernel), overrides=ranks)
            for case in [case.name for case in op.cases if not case.invalid]
            for seed in (0, 1)
            for device in range(DEVICES)
        ]
    )


def passes(runs: list[Run]) -> None:
    session = Session(get_device("emulator"), load_tolerances())
    for run in runs:
        verdict = session.verify(run)
        assert verdict.status in (PASS, EMPTY), failure_text(verdict)
