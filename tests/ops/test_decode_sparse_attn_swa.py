"""decode_sparse_attn_swa: every case on the emulator against its golden, stage by stage
(contracts/decode_attention.md, 4)."""

import pytest


@pytest.mark.goldengate("decode_sparse_attn_swa", deployments=("decode", "decode_mtp"), schedules=(7,))
def test_decode_sparse_attn_swa(goldengate_run):
    goldengate_run.check()
