"""Seed #496, the unified decode layer: its claim about the three forms of sparse attention (moe_and_layers.md 15.4)."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from harness.devices import get_device
from specs.registry import load_op

FORMS = ("csa", "hca", "swa")
CONFIGURATIONS = ("decode", "decode_mtp")


@pytest.fixture(scope="module")
def alone() -> dict[tuple[str, str], torch.Tensor]:
    """What each form computes when it is the only one loaded."""
    return {(form, deployment): run(form, deployment) for form in FORMS for deployment in CONFIGURATIONS}


def load(form: str, deployment: str):
    op = load_op(f"decode_sparse_attn_{form}", deployment=deployment)
    device = get_device("emulator")
    return op, device, device.load(op.kernel, op.name, op.sizes, None)


def run(form: str, deployment: str) -> torch.Tensor:
    op, device, kernel = load(form, deployment)
    return device.run(kernel, op, op.inputs("window_wrap"), 0).outputs["attn_out"]


@pytest.mark.parametrize("order", list(permutations(FORMS)), ids="-".join)
def test_496_10_loading_order_does_not_matter(order: tuple[str, ...], alone: dict) -> None:
    """Three modules with constants of their own, for two configurations: loaded in any order, then run."""
    loaded = {(form, d): load(form, d) for d in CONFIGURATIONS for form in order}
    for key, (op, device, kernel) in loaded.items():
        found = device.run(kernel, op, op.inputs("window_wrap"), 0).outputs["attn_out"]
        assert torch.equal(found.view(torch.int16), alone[key].view(torch.int16)), key
