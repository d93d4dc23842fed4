"""The case bf16_ties of the experts: outputs exactly halfway between two BF16 numbers, enough of them to be seen."""

from __future__ import annotations

import pytest
import torch

from goldens.numerics.rounding import round_to
from specs.registry import load_op


@pytest.mark.parametrize(
    ("name", "output", "scale"),
    [("expert_routed", "recv_y", "routed_w2_scale"), ("expert_shared", "sh", "shared_w2_scale")],
)
def test_many_outputs_are_ties_that_two_rounding_modes_break_apart(name: str, output: str, scale: str) -> None:
    op = load_op(name)
    inputs = op.inputs("bf16_ties", 0)
    stages: dict[str, torch.Tensor] = {}
    golden = op.golden(inputs, stages)[output]
    weight = inputs["recv_weights"].unsqueeze(-1) if name == "expert_routed" else 1.0
    columns = inputs[scale].unsqueeze(-2)
    unrounded = torch.nan_to_num(stages["y_acc"].float() * (stages["h_scale"] * weight) * columns)
    valid = op.valid(inputs)[output]
    defined = torch.ones_like(golden, dtype=torch.bool) if valid is None else valid
    assert torch.equal(round_to(unrounded, torch.bfloat16, "rint")[defined], golden[defined])
    apart = (round_to(unrounded, torch.bfloat16, "round") != golden) & defined
    assert int(apart.sum()) > 0.01 * int(defined.sum())  # ten times what the tolerance grants
