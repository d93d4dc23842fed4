"""hc_pre: every case on the emulator against its golden (contracts/hc_gate_experts.md, 1)."""

import pytest


@pytest.mark.goldengate("hc_pre", schedules=(0, 7))
def test_hc_pre_decode(goldengate_run):
    goldengate_run.check()


@pytest.mark.goldengate("hc_pre", deployments=("prefill",), schedules=(3,))
def test_hc_pre_prefill(goldengate_run):
    goldengate_run.check()
