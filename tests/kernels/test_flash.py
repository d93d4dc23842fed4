"""FLASH, the real sizes, on legal devices: sums are eight to sixteen times as long as at TINY, and outputs as wide.

Calibration found here what TINY does not show: 19 of 32768 elements of decode_attention_swa's x_mixed (seed 1,
schedule 1), and 0.83 of the limit that o_r had.
"""

from __future__ import annotations

import pytest

from harness.compare import EMPTY, PASS
from harness.devices import get_device
from harness.report import failure_text
from harness.run import Run
from harness.tolerances import load_tolerances
from harness.verify import Session
from specs.registry import all_ops

OPS = [op for op in all_ops() if op != "moe"]  # eight ranks of FLASH are beyond a test's memory


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "schedule"), [(1, 1), (2, 3)])
@pytest.mark.parametrize("op", OPS)
def test_a_legal_device_passes_at_flash(op: str, seed: int, schedule: int) -> None:
    verdict = Session(get_device("emulator"), load_tolerances()).verify(Run(op, "flash", seed=seed, schedule=schedule))
    assert verdict.status in (PASS, EMPTY), failure_text(verdict)
