"""decode_attention_swa: every case of the layer on the emulator against its golden, stage by stage
(contracts/decode_attention.md, 5)."""

import pytest

from harness.devices.emulator.device import EmulatorDevice
from specs.registry import load_op

GUARDED = """\
                nothing = pl.mul(pl.cast(attn_out[t : t + 1, 0:GUARD], pl.FP32), 0.0)
                guarded = pl.add(pl.cast(kv[t : t + 1, 0:GUARD], pl.FP32), nothing)
"""
UNGUARDED = "                guarded = pl.cast(kv[t : t + 1, 0:GUARD], pl.FP32)\n"

DEPLOYMENTS = ("decode", "decode_mtp")


@pytest.mark.goldengate(
    "decode_attention_swa", cases=("default", "window_edges"), deployments=DEPLOYMENTS, schedules=(7,)
)
def test_decode_attention_swa(goldengate_run):
    goldengate_run.check()


@pytest.mark.slow
@pytest.mark.goldengate("decode_attention_swa", deployments=DEPLOYMENTS, schedules=(3,))
def test_decode_attention_swa_every_case(goldengate_run):
    goldengate_run.check()


@pytest.mark.parametrize(("guarded", "codes"), [(GUARDED, set()), (UNGUARDED, {"GG403"})])
def test_write_back_waits_for_all_who_read_the_ring(guarded, codes, tmp_path):
    """contracts/decode_attention.md, CB-5: the runtime does not make a writer wait for readers; 0 * attn_out does."""
    op = load_op("decode_attention_swa", "tiny", "decode_mtp")
    source = op.kernel.read_text(encoding="utf-8")
    assert source.count(GUARDED) == 1
    copy = tmp_path / op.kernel.name
    copy.write_text(source.replace(GUARDED, guarded), encoding="utf-8")
    device = EmulatorDevice()
    run = device.run(device.load(copy, op.name, op.sizes), op, op.inputs(), 0)
    assert {finding.code for finding in run.findings} == codes
