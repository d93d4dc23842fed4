"""`pl.cast` and scalar minimum and maximum (pypto_dsl.md 3.6, 1.6)."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from ops_testing import codes, gm, kernel, pl, randn, rejects, tile

from harness.devices.emulator import dtypes as dt
from harness.devices.emulator.ops.rounding_rules import CHAINS, NATIVE
from harness.devices.emulator.values import Scalar

HALVES = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 1.25, -1.75] * 2])
MODES = {
    "none": [0, 1, 2, 0, -1, -2, 1, -1], "rint": [0, 2, 2, 0, -2, -2, 1, -2], "round": [1, 2, 3, -1, -2, -3, 1, -2],
    "floor": [0, 1, 2, -1, -2, -3, 1, -2], "ceil": [1, 2, 3, 0, -1, -2, 2, -1], "trunc": [0, 1, 2, 0, -1, -2, 1, -1],
    "odd": [0, 1, 2, 0, -1, -2, 1, -1],
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("target", [dt.INT32, dt.INT64, dt.INT16])
def test_accepts_every_mode_by_name_and_number(mode, target):
    """Section 7, trap 3: `none` truncates to integers."""
    with kernel() as machine:
        assert pl.cast(tile(HALVES), target, mode=mode).data.tolist() == [MODES[mode] * 2]
        assert pl.cast(tile(HALVES), target, mode=list(MODES).index(mode)).data.tolist() == [MODES[mode] * 2]
        assert machine.findings == []


def test_the_default_is_half_away_and_recorded():
    """Section 7, trap 1."""
    with kernel() as machine:
        assert pl.cast(tile(HALVES), dt.INT32).data.tolist() == [MODES["round"] * 2]
        assert codes(machine) == {"GG204"}


def test_none_is_ties_even_to_floats():
    """Section 7, trap 3."""
    tie = torch.full((1, 16), 1.00390625)
    with kernel():
        assert pl.cast(tile(tie), dt.BF16, mode="none").data[0, 0] == 1.0
        assert pl.cast(tile(tie + 2**-7), dt.BF16, mode="none").data[0, 0] == 1.015625
        assert pl.cast(tile(tie), dt.BF16, mode="odd").data[0, 0] == 1.0
        assert pl.cast(tile(tie), dt.FP16, mode="odd").data[0, 0] == 1.00390625
        assert pl.cast(tile(tie + 2**-20), dt.FP16, mode="odd").data[0, 0] == 1.0048828125


def test_narrow_integers_wrap_and_wide_ones_saturate():
    """Section 7, trap 4."""
    with kernel():
        half = tile(torch.tensor([[300.0, 128, -129, math.inf, -math.inf, 127, -128, 0] * 4]).half())
        assert pl.cast(half, dt.INT8, mode="trunc").data[0, :8].tolist() == [44, -128, 127, -1, 0, 127, -128, 0]
        assert pl.cast(half, dt.UINT8, mode="trunc").data[0, :3].tolist() == [44, 128, 127]
        assert pl.cast(half, dt.INT32, mode="trunc").data[0, 3:5].tolist() == [2**31 - 1, -(2**31)]
        wide = tile(torch.tensor([[40000.0, -40000, 3e9, -3e9, 0, 0, 0, math.nan] * 2]))
        assert pl.cast(wide, dt.INT16, mode="rint").data[0, :4].tolist() == [-25536, 25536, -1, 0]
        saturated = [40000, -40000, 2**31 - 1, -(2**31), 0, 0, 0, 0]
        assert pl.cast(wide, dt.INT32, mode="rint").data[0, :8].tolist() == saturated
        integers = tile(torch.tensor([[40000, -40000, 65536, 1, 2, 3, 4, 5] * 2], dtype=torch.int32))
        assert pl.cast(integers, dt.INT16).data[0, :3].tolist() == [-25536, 25536, 0]


def test_the_quantisation_idiom_is_exact():
    values = torch.arange(-127, 129).float().reshape(8, 32) * 0.99
    with kernel() as machine:
        integer = pl.cast(tile(values), dt.INT32, mode="rint")
        code = pl.cast(pl.cast(integer, dt.FP16, mode="round"), dt.INT8, mode="trunc")
        assert machine.findings == []
    assert code.data.tolist() == [[round(v) for v in row] for row in values.double().tolist()]


@pytest.mark.parametrize(("source", "target"), [
    (torch.bfloat16, dt.FP32), (torch.float16, dt.FP32), (torch.int16, dt.FP32), (torch.int8, dt.FP16),
    (torch.uint8, dt.FP16), (torch.int32, dt.INT64), (torch.int32, dt.FP32),
])  # fmt: skip
def test_widening_is_exact(source, target):
    values = (randn(8, 32) * 50).abs().to(source)
    with kernel() as machine:
        assert torch.equal(pl.cast(tile(values), target).data.double(), values.double())
        assert machine.findings == []


@pytest.mark.parametrize(("source", "target"), [
    (torch.int8, dt.FP32), (torch.int8, dt.BF16), (torch.int8, dt.INT32), (torch.uint8, dt.FP32),
    (torch.float16, dt.INT64),
])  # fmt: skip
def test_rejects_pairs_without_any_chain(source, target):
    """Section 7, trap 36."""
    with kernel(), rejects(f"to {target}, not even through a chain"):
        pl.cast(tile(torch.ones(1, 32, dtype=source)), target)


def test_chains_are_recorded_and_round_twice():
    """Section 7, trap 36: 0.49999 becomes 0.5 in FP16, then 1."""
    value = torch.full((1, 32), 0.49999)
    with kernel() as machine:
        assert pl.cast(tile(value), dt.INT8, mode="round").data[0, 0] == 1
        assert codes(machine) == {"GG203"}


def test_every_hop_of_a_chain_is_native():
    for (source, target), hops in CHAINS.items():
        route = (source, *hops, target)
        assert all(pair in NATIVE for pair in itertools.pairwise(route))
        assert (source, target) not in NATIVE


def test_rejects_same_dtype_and_unknown_mode():
    with kernel():
        with rejects("the operand already is pl.FP32"):
            pl.cast(tile(HALVES), dt.FP32)
        with rejects("unknown mode 'nearest'"):
            pl.cast(tile(HALVES), dt.BF16, mode="nearest")
        with rejects("unknown mode 7"):
            pl.cast(tile(HALVES), dt.BF16, mode=7)


def test_cast_keeps_valid_region_and_taint():
    with kernel():
        result = pl.cast(tile(randn(8, 64), (5, 40)), dt.BF16, mode="rint")
        assert result.valid == (5, 40)
        assert bool((result.taint[5:] > 0).all())
        assert bool((pl.cast(pl.create_tile([8, 64], dt.FP32), dt.INT32, mode="rint").taint > 0).all())


@pytest.mark.parametrize(("value", "target", "expected"), [
    (2.9, dt.INT32, Scalar(2, dt.INT32)), (-2.9, dt.INDEX, -2), (Scalar(2.9, dt.FP32), dt.INDEX, 2),
    (2**24 + 1, dt.FP32, Scalar(2.0**24, dt.FP32)), (Scalar(300, dt.INT32), dt.INT8, Scalar(44, dt.INT8)),
    (-1, dt.UINT32, Scalar(2**32 - 1, dt.UINT32)), (1e10, dt.INT32, Scalar(2**31 - 1, dt.INT32)),
    (Scalar(1.00390625, dt.FP32), dt.BF16, Scalar(1.0, dt.BF16)), (0.1, dt.FP32, Scalar(0.10000000149011612, dt.FP32)),
])  # fmt: skip
def test_scalar_casts(value, target, expected):
    with kernel(region=False):
        assert pl.cast(value, target) == expected


def test_rejects_scalar_casts():
    with kernel(region=False):
        with rejects("a mode does not apply to a scalar"):
            pl.cast(1.5, dt.INT32, mode="rint")
        with rejects("NaN cannot become pl.INT32"):
            pl.cast(Scalar(math.nan, dt.FP32), dt.INT32)
        with rejects("misplaced operation: pl.cast of a tensor"):
            pl.cast(gm(randn(8, 64)), dt.BF16)


def test_scalar_min_and_max():
    with kernel(region=False):
        assert pl.min(3, 7) == 3
        assert pl.max(Scalar(3, dt.INT32), 7) == 7
        assert pl.min(Scalar(3, dt.INT32), Scalar(7, dt.INT32)) == Scalar(3, dt.INT32)
        assert math.isnan(pl.max(Scalar(math.nan, dt.FP32), Scalar(1.0, dt.FP32)).value)
        with rejects("are of different categories"):
            pl.min(1, 2.0)
        with rejects("operands must be two scalars"):
            pl.min(1, None)


def test_tile_min_max_and_sum_along_an_axis():
    values = randn(8, 64)
    with kernel():
        assert torch.equal(pl.max(tile(values), 1).data, values.amax(1, keepdim=True))
        assert torch.equal(pl.min(tile(values), axis=0).data, values.amin(0, keepdim=True))
        assert torch.equal(pl.sum(tile(values), -1).data, pl.row_sum(tile(values)).data)
