"""decode_sparse_attn_hca: every case on the emulator against its golden, stage by stage
(contracts/decode_attention.md, 3)."""

import pytest


@pytest.mark.goldengate("decode_sparse_attn_hca", deployments=("decode", "decode_mtp"), schedules=(7,))
def test_decode_sparse_attn_hca(goldengate_run):
    goldengate_run.check()
