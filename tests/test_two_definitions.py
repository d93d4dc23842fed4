"""Rounding, sums and products exist twice, in the goldens and in the emulator, and must agree where both are defined.

Neither imports the other; each has a third, independent definition in its own tests.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from goldens.numerics import elementary
from goldens.numerics.matmul import fp32_matmul, int8_matmul
from goldens.numerics.reduce import row_sum
from goldens.numerics.rounding import round_to
from harness.devices.emulator import dtypes, ops
from harness.devices.emulator.machine import Machine, Region, running
from harness.devices.emulator.values import Tile
from harness.devices.emulator.variance import Schedule

PL = ops.namespace()
ROWS = 1024
MODES = ("rint", "round", "trunc", "floor", "ceil")
TARGETS = [
    (torch.bfloat16, dtypes.BF16, MODES),
    (torch.float16, dtypes.FP16, (*MODES, "odd")),
    (torch.int32, dtypes.INT32, MODES),
    (torch.int16, dtypes.INT16, MODES),
]


def on_emulator(op: str, *tiles: torch.Tensor, **options: object) -> torch.Tensor:
    """The result of one op at schedule 0, on tiles with these elements; a long operand goes in pieces that fit."""
    if len(tiles) == 1 and len(tiles[0]) > ROWS:
        return torch.cat([on_emulator(op, part, **options) for part in torch.split(tiles[0], ROWS)])
    with running(Machine(schedule=Schedule(0), files=set(), region=Region("at"))):
        operands = [Tile.of(t, dtypes.from_torch(t.dtype)) for t in tiles]
        return PL[op](*operands, **options).data.clone()


def fp32_patterns() -> torch.Tensor:
    """Every upper half of an FP32 pattern, with low halves below, at and above the ties of BF16 and FP16."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    low = np.array([0, 1, 0x0FFF, 0x1000, 0x1001, 0x2000, 0x7FFF, 0x8000, 0x8001, 0xEFFF, 0xF000, 0xFFFF], np.uint32)
    return torch.from_numpy((upper[:, None] | low).astype(np.uint32).view(np.float32))


def assert_equal_bits(a: torch.Tensor, b: torch.Tensor) -> None:
    """Equal bits; any NaN equals any NaN."""
    assert a.dtype == b.dtype
    if a.is_floating_point():
        nan = a.isnan() & b.isnan()
        width = {2: torch.int16, 4: torch.int32}[a.itemsize]
        a, b = a.view(width).masked_fill(nan, 0), b.view(width).masked_fill(nan, 0)
    wrong = (a != b).nonzero()
    assert not len(wrong), f"{len(wrong)} differ, first at {wrong[0].tolist()}"


@pytest.mark.parametrize(
    ("torch_dtype", "dtype", "mode"),
    [pytest.param(t, d, m, id=f"{d.name}-{m}") for t, d, modes in TARGETS for m in modes],
)
def test_casts_agree_on_every_upper_half(torch_dtype, dtype, mode: str) -> None:
    x = fp32_patterns()
    if not torch_dtype.is_floating_point:
        x = x[~x.isnan().any(dim=1)]  # what NaN becomes is not documented (3.6)
    assert_equal_bits(on_emulator("cast", x, target_type=dtype, mode=mode), round_to(x, torch_dtype, mode))


@pytest.mark.parametrize("columns", [8, 64, 128, 256, 448, 512])
def test_row_sums_in_device_order_agree(columns: int) -> None:
    x = torch.randn(16, columns, generator=torch.Generator().manual_seed(columns))
    assert_equal_bits(on_emulator("row_sum", x), row_sum(x, "device"))


@pytest.mark.parametrize(
    ("op", "golden"), [("exp", elementary.exp), ("sqrt", elementary.sqrt), ("recip", elementary.reciprocal)]
)
def test_functions_are_correctly_rounded_in_both(op: str, golden) -> None:
    x = torch.rand(64, 512, generator=torch.Generator().manual_seed(1)) * 20
    assert_equal_bits(on_emulator(op, x), golden(x))


def test_products_agree() -> None:
    draw = torch.Generator().manual_seed(2)
    a = torch.randint(-128, 128, (16, 512), generator=draw, dtype=torch.int8)
    b = torch.randint(-128, 128, (64, 512), generator=draw, dtype=torch.int8)
    product = on_emulator("matmul", a, b, out_dtype=dtypes.INT32, b_trans=True)
    assert torch.equal(product, int8_matmul(a, b))
    x, y = torch.randn(16, 256, generator=draw), torch.randn(32, 256, generator=draw)
    assert_equal_bits(on_emulator("matmul", x, y, out_dtype=dtypes.FP32, b_trans=True), fp32_matmul(x, y))
