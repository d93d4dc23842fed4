"""The cases code_ties and bf16_ties of sparse attention: values halfway between two, enough of them to be seen."""

from __future__ import annotations

import pytest
import torch

from goldens.numerics.rounding import round_to
from specs.registry import load_op


@pytest.mark.parametrize("form", ["swa", "hca", "csa"])
def test_many_codes_are_ties_that_two_rounding_modes_break_apart(form: str) -> None:
    op = load_op(f"decode_sparse_attn_{form}")
    stages: dict[str, torch.Tensor] = {}
    op.golden(op.inputs("code_ties"), stages)
    groups = stages["o_r"].reshape(op.deployment.tokens, op.config.o_groups, op.config.o_lora_rank)
    amax = groups.abs().amax(dim=-1)
    assert torch.equal(amax, torch.full_like(amax, 254.0))
    halves = groups * 0.5
    codes = stages["o_codes"].reshape(groups.shape).to(torch.int32)
    assert torch.equal(round_to(halves, torch.int32, "rint"), codes)
    apart = round_to(halves, torch.int32, "round") != codes
    assert int(apart.sum()) > 0.1 * codes.numel()


@pytest.mark.parametrize("form", ["swa", "hca", "csa"])
def test_half_of_the_means_are_ties_that_two_rounding_modes_break_apart(form: str) -> None:
    op = load_op(f"decode_sparse_attn_{form}")
    stages: dict[str, torch.Tensor] = {}
    op.golden(op.inputs("bf16_ties"), stages)
    attended = stages["attended"]
    apart = round_to(attended, torch.bfloat16, "round") != round_to(attended, torch.bfloat16, "rint")
    for lanes in (apart[..., :-64], apart[..., -64::2], apart[..., -63::2]):  # not rotary, even, odd
        assert 0.4 < float(lanes.float().mean()) < 0.6
