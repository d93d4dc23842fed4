"""decode_attention_hca: every case of the layer on the emulator against its golden, stage by stage
(contracts/decode_attention.md, 6)."""

import pytest

DEPLOYMENTS = ("decode", "decode_mtp")


@pytest.mark.goldengate(
    "decode_attention_hca", cases=("default", "window_edges"), deployments=DEPLOYMENTS, schedules=(7,)
)
def test_decode_attention_hca(goldengate_run):
    goldengate_run.check()


@pytest.mark.slow
@pytest.mark.goldengate("decode_attention_hca", deployments=DEPLOYMENTS, schedules=(3,))
def test_decode_attention_hca_every_case(goldengate_run):
    goldengate_run.check()
