"""qkv_proj_rope: every case on the emulator against its golden (contracts/dense.md, 7)."""

import pytest


@pytest.mark.goldengate("qkv_proj_rope", deployments=("decode", "decode_mtp"), schedules=(0, 7))
def test_qkv_proj_rope_decode(goldengate_run):
    goldengate_run.check()


@pytest.mark.goldengate("qkv_proj_rope", deployments=("prefill",), schedules=(3,))
def test_qkv_proj_rope_prefill(goldengate_run):
    goldengate_run.check()
