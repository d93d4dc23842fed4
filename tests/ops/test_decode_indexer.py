"""decode_indexer: every case on the emulator against its golden, and what the retiling of #672 must keep.

Contracts: decode_compressor_indexer.md, 5; moe_and_layers.md, 15.2, row 672.4.
"""

from __future__ import annotations

import pytest
import torch

from harness.devices import get_device
from specs.registry import load_op


@pytest.mark.goldengate("decode_indexer", deployments=("decode", "decode_mtp"), schedules=(0, 7))
def test_decode_indexer(goldengate_run):
    goldengate_run.check()


@pytest.mark.parametrize("deployment", ["decode", "decode_mtp"])
def test_the_retiled_rotation_of_queries_keeps_every_bit(deployment: str) -> None:
    """672.4: a product with the sign is exact, so it may be folded into the sine; blocks only share the work."""
    op = load_op("decode_indexer", "tiny", deployment, index_n_heads=64)
    device = get_device("emulator")
    inputs = op.inputs()
    folded, before = (
        device.run(device.load(op.kernel, op.name, op.sizes, tiles), op, dict(inputs), 0)
        for tiles in ("pr672", "before_pr672")
    )
    valid = op.valid(inputs)
    assert folded.counters["blocks"] != before.counters["blocks"]
    for name, ours in folded.outputs.items():
        mask = torch.ones_like(ours, dtype=torch.bool) if valid[name] is None else valid[name]
        assert torch.equal(ours[mask].view(torch.uint8), before.outputs[name][mask].view(torch.uint8)), name
