"""The shipped kernels load for every preset, refuse sizes they would truncate, and do not depend on their tiling."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.compare import PASS
from harness.devices import get_device
from harness.devices.base import KernelRefused
from harness.report import failure_text
from harness.run import Run
from harness.tolerances import DEFAULT_PATH, load_tolerances
from harness.verify import Session
from specs.registry import all_ops, load_op

KERNELS = Path(__file__).parents[2] / "kernels"
TILE_SETS = ("pr672", "before_pr672")


def test_every_op_has_a_kernel_and_every_kernel_an_op() -> None:
    files = {path.stem for path in KERNELS.glob("*.py")} - {"__init__", "sizes"}
    assert files == set(all_ops())


@pytest.mark.parametrize("tiles", TILE_SETS)
@pytest.mark.parametrize("preset", ["tiny", "flash", "pro"])
@pytest.mark.parametrize("op", all_ops())
def test_the_front_end_accepts(op: str, preset: str, tiles: str) -> None:
    loaded = load_op(op, preset)
    kernel = get_device("emulator").load(loaded.kernel, op, loaded.sizes, tiles)
    assert kernel.function == op


@pytest.mark.parametrize(
    ("op", "sizes", "reason"),
    [
        ("hc_pre", {"HC_MULT": 2}, "HC_MULT is 2"),
        ("hc_pre", {"D": 100, "HC_DIM": 408}, "HC_DIM = 408 is not a multiple of 16"),
        ("rms_norm", {"D": 100}, "divides the extent 100"),
        ("gate", {"T": 12}, "T = 12 is not a multiple of 8"),
        ("gate", {"N_EXPERTS": 528}, "N_EXPERTS = 528"),
        ("gate", {"TOPK": 9}, "TOPK = 9"),
        ("expert_shared", {"T": 24}, "T = 24"),
        ("expert_shared", {"MOE_INTER": 1000}, "divides the extent 1000"),
        ("expert_routed", {"RECV_MAX": 24}, "RECV_MAX = 24"),
    ],
)
def test_rejects_sizes_that_would_lose_a_tail(op: str, sizes: dict[str, int], reason: str) -> None:
    with pytest.raises(KernelRefused, match=reason):
        get_device("emulator").load(KERNELS / f"{op}.py", op, sizes, None)


@pytest.mark.parametrize("deployment", ["decode", "prefill"])
@pytest.mark.parametrize("op", ["hc_post", "expert_shared", "expert_routed"])
def test_outputs_do_not_depend_on_the_tile_set(op: str, deployment: str) -> None:
    """Rows are independent, INT32 sums exact and a maximum has no order, so the retiling moves no bit."""
    loaded = load_op(op, "tiny", deployment)
    device = get_device("emulator")
    inputs = loaded.inputs()
    valid = loaded.valid(inputs)
    runs = [
        device.run(device.load(loaded.kernel, op, loaded.sizes, tiles), loaded, dict(inputs), 0) for tiles in TILE_SETS
    ]
    for name, first in runs[0].outputs.items():
        mask = valid[name]
        second = runs[1].outputs[name]
        bits = torch.int16
        assert first.dtype == torch.bfloat16
        if mask is not None:
            first, second = first[mask], second[mask]
        assert first.numel() > 0
        assert torch.equal(first.view(bits), second.view(bits))


@pytest.mark.parametrize("tiles", TILE_SETS)
@pytest.mark.parametrize("case", ["default", "hash"])
def test_accepts_gate_of_both_tile_sets(case: str, tiles: str) -> None:
    """Another chunking of the sum of squares may move the last bit, so gate is judged and not compared."""
    verdict = Session(get_device("emulator"), load_tolerances(DEFAULT_PATH)).verify(
        Run("gate", deployment="prefill", case=case, tiles=tiles)
    )
    assert verdict.status == PASS, failure_text(verdict)


@pytest.mark.slow
@pytest.mark.parametrize("tiles", TILE_SETS)
@pytest.mark.parametrize("op", ["rms_norm", "hc_pre", "hc_post", "gate", "expert_shared"])
def test_accepts_pro(op: str, tiles: str) -> None:
    """PRO has no power of two anywhere: 7168 columns, 384 experts, slices of 1792."""
    verdict = Session(get_device("emulator"), load_tolerances(DEFAULT_PATH)).verify(Run(op, "pro", tiles=tiles))
    assert verdict.status == PASS, failure_text(verdict)
