"""Seed #672, retiling of CSA: its claims about the sparse index list and the rotation of index
queries, one test per row (moe_and_layers.md 15.2)."""

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


def test_672_4_a_sign_may_be_folded_into_the_sine() -> None:
    """x * (+-1) * s is x * (+-s): negation is exact, for numbers of every magnitude and for infinities and zeros."""
    patterns = torch.randint(-(2**31), 2**31, (2, 1 << 20), generator=torch.Generator().manual_seed(672))
    x, sine = patterns.to(torch.int32).view(torch.float32)
    x[:4], sine[:4] = torch.tensor([0.0, -0.0, torch.inf, 1e-45]), torch.tensor([-0.0, 1.0, -2.0, 0.5])
    sign = torch.tensor([-1.0, 1.0]).repeat(x.numel() // 2)
    unfolded, folded = (x * sign) * sine, x * (sine * sign)
    number = ~unfolded.isnan()
    assert torch.equal(number, ~folded.isnan())
    assert int(number.sum()) > x.numel() // 2
    assert torch.equal(unfolded.view(torch.int32)[number], folded.view(torch.int32)[number])


@pytest.mark.parametrize("deployment", ["decode", "decode_mtp"])
@pytest.mark.parametrize(("heads", "rows"), [(16, 8), (64, 32)])
def test_672_4_blocks_are_tiles_and_folding_keeps_every_bit(heads: int, rows: int, deployment: str) -> None:
    """Before: a block per request, the sign on lanes. Since: a block per tile of `rows` heads, the sign in the sine.

    Nothing else depends on the tile set here, so the blocks of both runs differ by those of the rotation alone.
    """
    op = load_op("decode_indexer", deployment=deployment, index_n_heads=heads)
    inputs = op.inputs()
    device = get_device("emulator")
    since, before = (
        device.run(device.load(op.kernel, op.name, op.sizes, tiles), op, dict(inputs), 0)
        for tiles in ("pr672", "before_pr672")
    )
    tiles = op.deployment.tokens * heads // rows
    assert since.counters["blocks"] - before.counters["blocks"] == tiles - op.deployment.batch
    masks = op.valid(inputs)
    for name, found in since.outputs.items():
        mask = masks[name]
        wanted = before.outputs[name]
        defined = torch.ones_like(found, dtype=torch.bool) if mask is None else mask
        assert torch.equal(found[defined].view(torch.uint8), wanted[defined].view(torch.uint8)), name
