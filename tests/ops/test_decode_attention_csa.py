"""decode_attention_csa: every case of the layer on the emulator against its golden, stage by stage
(contracts/decode_attention.md, 7)."""

import pytest
import torch

from harness.devices.emulator.device import EmulatorDevice
from specs.registry import load_op

DEPLOYMENTS = ("decode", "decode_mtp")


@pytest.mark.goldengate(
    "decode_attention_csa", cases=("default", "window_edges"), deployments=DEPLOYMENTS, schedules=(7,)
)
def test_decode_attention_csa(goldengate_run):
    goldengate_run.check()


@pytest.mark.slow
@pytest.mark.goldengate("decode_attention_csa", deployments=DEPLOYMENTS, schedules=(3,))
def test_decode_attention_csa_every_case(goldengate_run):
    goldengate_run.check()


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_the_list_does_not_depend_on_the_tile_set(deployment):
    """moe_and_layers.md 15.2, 672.2: a block per token and one task for the slots build the list of one grid."""
    op = load_op("decode_attention_csa", "tiny", deployment)
    device = EmulatorDevice(checks=False)
    inputs = op.inputs()
    split, joint = (
        device.run(device.load(op.kernel, op.name, op.sizes, tiles), op, dict(inputs), 0).intermediates
        for tiles in ("pr672", "before_pr672")
    )
    for name in ("cmp_sparse_indices", "valid_block_mask"):
        assert torch.equal(split[name], joint[name]), name
    assert split["valid_block_mask"][:, 0].eq(1).all()
    assert split["cmp_sparse_indices"].ge(0).any()
