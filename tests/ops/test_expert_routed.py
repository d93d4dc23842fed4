"""expert_routed: every case on the emulator against its golden (contracts/hc_gate_experts.md, 5)."""

import pytest


@pytest.mark.goldengate("expert_routed", schedules=(0, 7))
def test_expert_routed_decode(goldengate_run):
    goldengate_run.check()


@pytest.mark.goldengate("expert_routed", deployments=("prefill",), schedules=(3,))
def test_expert_routed_prefill(goldengate_run):
    goldengate_run.check()
