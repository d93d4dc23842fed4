"""Seed #672, retiling of CSA: its claims about the sparse index list, one test per row (moe_and_layers.md 15.2)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from goldens.numerics.visibility import csa_window
from harness.devices import get_device
from specs.registry import Op, load_op

OP = "decode_attention_csa"
STEPS = [
    pytest.param(deployment, tokens, tiles, id=f"{deployment}-T{tokens}-{tiles}")
    for deployment in ("decode", "decode_mtp")
    for tokens in (8, 16)
    for tiles in ("pr672", "before_pr672")
]


def device_stages(op: Op, inputs: dict[str, Tensor], tiles: str) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
    """What the shipped kernel hands back of its intermediates, and which of their elements it never wrote."""
    device = get_device("emulator")
    run = device.run(device.load(op.kernel, op.name, op.sizes, tiles), op, dict(inputs), 0)
    return run.intermediates, run.undefined


@pytest.mark.parametrize(("deployment", "tokens", "tiles"), STEPS)
def test_672_2_list_and_mask_equal_the_golden_for_every_t(deployment: str, tokens: int, tiles: str) -> None:
    """Exactly, from the device's own selection; every row of T is written, and there are no others."""
    op = load_op(OP, deployment=deployment, tokens=tokens)
    inputs = op.inputs("first_tokens", seed=tokens)
    found, undefined = device_stages(op, inputs, tiles)
    wanted: dict[str, Tensor] = {}
    op.golden(inputs, wanted, {"topk_idxs": found["topk_idxs"]})
    for stage in ("cmp_sparse_indices", "valid_block_mask"):
        assert found[stage].shape[0] == tokens
        assert undefined.get(stage) is None
        assert torch.equal(found[stage], wanted[stage])
    assert bool((found["valid_block_mask"][:, 0] == 1).all())
    assert not bool((found["valid_block_mask"][:, 1:] == 1).all()), "no block is empty: the mask is not tested"


def reread(positions: Tensor, win: int) -> list[list[int]]:
    """The window's columns with the positions read again for every column, as the kernel of July did."""
    rows = []
    for request in positions.tolist():
        for step, position in enumerate(request):
            row = []
            for column in range(win):
                raw = column if column <= position else -1
                for earlier in range(step + 1):
                    if request[earlier] % win == column and raw >= 0:
                        raw = win + earlier
                row.append(raw)
            rows.append(row)
    return rows


@pytest.mark.parametrize("seq", [1, 2, 3])
def test_672_3_the_overlay_position_is_that_of_the_token(seq: int) -> None:
    """Positions modulo 128 read once per token give the same list as read once per column."""
    starts = torch.tensor([0, 1, 3, 126, 127, 128, 129, 255, 256, 511, 1000])
    positions = starts.unsqueeze(1) + torch.arange(seq)
    assert csa_window(positions, 128).tolist() == reread(positions, 128)


@pytest.mark.parametrize("deployment", ["decode", "decode_mtp"])
def test_672_3_so_does_the_kernel(deployment: str) -> None:
    op = load_op(OP, deployment=deployment)
    inputs = op.inputs("window_edges")
    found, _ = device_stages(op, inputs, "pr672")
    positions = inputs["position_ids"].view(op.deployment.batch, op.deployment.seq)
    assert found["cmp_sparse_indices"][:, :128].tolist() == reread(positions, 128)
