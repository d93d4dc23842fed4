"""lm_head: every case on the ranks of the emulator against its golden (contracts/dense.md, 10)."""

import pytest


@pytest.mark.goldengate("lm_head", deployments=("decode", "decode_mtp"), schedules=(0, 7))
def test_lm_head_decode(goldengate_run):
    goldengate_run.check()


@pytest.mark.goldengate("lm_head", deployments=("prefill",), schedules=(3,))
def test_lm_head_prefill(goldengate_run):
    goldengate_run.check()
