"""hc_post: every case on the emulator against its golden (contracts/hc_gate_experts.md, 2)."""

import pytest


@pytest.mark.goldengate("hc_post", schedules=(0, 7))
def test_hc_post_decode(goldengate_run):
    goldengate_run.check()


@pytest.mark.goldengate("hc_post", deployments=("prefill",), schedules=(3,))
def test_hc_post_prefill(goldengate_run):
    goldengate_run.check()
