"""mtp_projection: every case on the emulator against its golden (contracts/dense.md, 9)."""

import pytest


@pytest.mark.goldengate("mtp_projection", deployments=("decode", "decode_mtp"), schedules=(0, 7))
def test_mtp_projection_decode(goldengate_run):
    goldengate_run.check()


@pytest.mark.goldengate("mtp_projection", deployments=("prefill",), schedules=(3,))
def test_mtp_projection_prefill(goldengate_run):
    goldengate_run.check()
