"""decode_sparse_attn_csa: every case on the emulator against its golden, stage by stage
(contracts/decode_attention.md, 2)."""

import pytest


@pytest.mark.goldengate("decode_sparse_attn_csa", deployments=("decode", "decode_mtp"), schedules=(7,))
def test_decode_sparse_attn_csa(goldengate_run):
    goldengate_run.check()
