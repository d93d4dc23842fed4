"""hc_head: every case on the emulator against its golden (contracts/dense.md, 8)."""

import pytest


@pytest.mark.goldengate("hc_head", schedules=(0, 7))
def test_hc_head_decode(goldengate_run):
    goldengate_run.check()


@pytest.mark.goldengate("hc_head", deployments=("prefill",), schedules=(3,))
def test_hc_head_prefill(goldengate_run):
    goldengate_run.check()
