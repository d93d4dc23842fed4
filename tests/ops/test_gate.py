"""gate: every case on the emulator against its golden (contracts/hc_gate_experts.md, 3)."""

import pytest


@pytest.mark.goldengate("gate", schedules=(0, 7))
def test_gate_decode(goldengate_run):
    goldengate_run.check()


@pytest.mark.goldengate("gate", deployments=("prefill",), schedules=(3,))
def test_gate_prefill(goldengate_run):
    goldengate_run.check()
