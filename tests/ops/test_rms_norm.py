"""rms_norm: every case on the emulator against its golden (contracts/dense.md, 4)."""

import pytest


@pytest.mark.goldengate("rms_norm", schedules=(0, 7))
def test_rms_norm_decode(goldengate_run):
    goldengate_run.check()


@pytest.mark.goldengate("rms_norm", deployments=("prefill",), schedules=(3,))
def test_rms_norm_prefill(goldengate_run):
    goldengate_run.check()
