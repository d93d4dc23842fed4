"""expert_shared: every case on the emulator against its golden (contracts/hc_gate_experts.md, 4)."""

import pytest


@pytest.mark.goldengate("expert_shared", schedules=(0, 7))
def test_expert_shared_decode(goldengate_run):
    goldengate_run.check()


@pytest.mark.goldengate("expert_shared", deployments=("prefill",), schedules=(3,))
def test_expert_shared_prefill(goldengate_run):
    goldengate_run.check()
