"""decode_attention_swa: every case of the layer on the emulator against its golden, stage by stage
(contracts/decode_attention.md, 5)."""

import pytest

DEPLOYMENTS = ("decode", "decode_mtp")


@pytest.mark.goldengate(
    "decode_attention_swa", cases=("default", "window_edges"), deployments=DEPLOYMENTS, schedules=(0, 7)
)
def test_decode_attention_swa(goldengate_run):
    goldengate_run.check()


@pytest.mark.slow
@pytest.mark.goldengate("decode_attention_swa", deployments=DEPLOYMENTS, schedules=(3,))
def test_decode_attention_swa_every_case(goldengate_run):
    goldengate_run.check()
