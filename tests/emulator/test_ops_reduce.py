"""Reductions (pypto_dsl.md 3.10, dense.md 2.3)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ops_testing import codes, kernel, pl, randn, rejects, tile

from harness.devices.emulator import dtypes as dt

A = randn(8, 64, seed=1)


def adjacent(values: list[np.float32]) -> np.float32:
    """Pairs of neighbours until one value is left."""
    while len(values) > 1:
        rest = values[len(values) // 2 * 2 :]
        values = [np.float32(a + b) for a, b in zip(values[0::2], values[1::2], strict=False)] + rest
    return values[0]


def add(*blocks: np.ndarray) -> np.ndarray:
    total = blocks[0]
    for block in blocks[1:]:
        total = (total + block).astype(np.float32)
    return total


@pytest.mark.parametrize(("columns", "formula"), [
    (128, lambda r: add(r[0], r[1])),
    (192, lambda r: add(r[0], r[1], r[2])),
    (256, lambda r: add(add(r[0], r[1]), add(r[2], r[3]))),
    (512, lambda r: add(add(add(r[0], r[1]), add(r[2], r[3])), add(add(r[4], r[5]), add(r[6], r[7])))),
    (448, lambda r: add(add(add(r[0], r[1], r[6]), add(r[2], r[3])), add(r[4], r[5]))),
    (640, lambda r: add(add(add(r[0], r[1]), add(r[2], r[3])), add(add(r[4], r[5]), add(r[6], r[7]), add(r[8], r[9])))),
])  # fmt: skip
def test_row_sum_follows_the_worked_examples(columns, formula):
    """dense.md 2.3 spells the first five orders out; 640 applies its rule for an odd sum of the second round."""
    x = randn(8, columns, seed=3)
    with kernel():
        got = pl.row_sum(tile(x)).data
    for row in range(8):
        lanes = formula(x[row].numpy().reshape(-1, 64))
        assert got[row, 0].item() == adjacent(list(lanes))


@pytest.mark.parametrize("columns", [8, 40, 64])
def test_a_short_row_is_one_lane_tree(columns):
    x = randn(8, columns, seed=4)
    with kernel():
        got = pl.row_sum(tile(x)).data
    assert got.flatten().tolist() == [adjacent(list(row)) for row in x.numpy()]


@pytest.mark.parametrize("option", ["lanes", "lanes_in_order"])
@pytest.mark.parametrize("columns", [72, 136, 200, 328])
def test_a_ragged_tail_joins_its_lanes(option, columns):
    x = torch.zeros(8, columns)
    x[:, -1] = 1e8
    x[:, columns // 64 * 64 - 64 + (columns % 64) - 1] = 1.0  # the same lane of the last full block
    with kernel(row_sum=option):
        assert pl.row_sum(tile(x)).data.flatten().tolist() == [1e8] * 8
        assert torch.equal(pl.row_sum(tile(x * 0 + 1)).data, torch.full((8, 1), float(columns)))


def test_sequential_order_rounds_every_sum():
    """Section 7, trap 18: 2^24 + 1 + 1 stays 2^24 from the left and gains from the right."""
    x = torch.zeros(8, 64)
    x[:, 0], x[:, 1], x[:, 2] = 2**24, 1, 1
    with kernel(row_sum="sequential"):
        assert pl.row_sum(tile(x)).data[0, 0] == 2**24
        assert pl.row_sum(tile(x.flip(1))).data[0, 0] == 2**24 + 2


def test_col_sum_adds_top_to_bottom():
    x = torch.zeros(8, 8)
    x[0], x[1], x[2], x[3] = 2**24, 1, 1, 0
    with kernel():
        assert pl.col_sum(tile(x)).data[0].tolist() == [2**24] * 8
    with kernel(col_sum="pairwise"):
        assert pl.col_sum(tile(x.roll(1, 0))).data[0].tolist() == [2**24 + 2] * 8


@pytest.mark.parametrize(("name", "function"), [
    ("row_max", lambda x: x.max(1, keepdims=True)), ("row_min", lambda x: x.min(1, keepdims=True)),
    ("col_max", lambda x: x.max(0, keepdims=True)), ("col_min", lambda x: x.min(0, keepdims=True)),
    ("row_prod", lambda x: np.multiply.accumulate(x, 1)[:, -1:]),
    ("col_prod", lambda x: np.multiply.accumulate(x, 0)[-1:]),
    ("row_argmax", lambda x: x.argmax(1)[:, None]), ("row_argmin", lambda x: x.argmin(1)[:, None]),
    ("col_argmax", lambda x: x.argmax(0)[None]), ("col_argmin", lambda x: x.argmin(0)[None]),
])  # fmt: skip
@pytest.mark.parametrize("valid", [(8, 64), (5, 40)])
def test_accepts_reductions_of_the_valid_rectangle(name, function, valid):
    with kernel() as machine:
        result = getattr(pl, name)(tile(A, valid))
        expected = function(A.numpy()[: valid[0], : valid[1]])
        assert np.array_equal(result.valid_data.numpy(), expected)
        assert result.valid == expected.shape
        assert result.shape == ((8, 1) if name.startswith("row") else (1, 64))
        assert machine.findings == []
        if "arg" in name:
            assert result.dtype is dt.INT32


def test_integer_sums_wrap():
    x = torch.full((8, 64), 2**30, dtype=torch.int32)
    with kernel():
        assert pl.row_sum(tile(x)).data[0, 0] == 0
        assert pl.col_sum(tile(x)).data[0, 0] == 0
        assert pl.row_sum(tile(x)).data.dtype is torch.int32


def test_leading_axes_are_merged():
    x = randn(2, 8, 64)
    with kernel():
        assert torch.equal(pl.row_max(tile(x)).data, x.amax(2, keepdim=True))
        assert torch.equal(pl.col_max(tile(x)).data, x.reshape(16, 64).amax(0, keepdim=True))


def test_argmax_takes_the_first_of_equal_ones_or_the_schedules_choice():
    x = torch.zeros(8, 64)
    with kernel():
        assert pl.row_argmax(tile(x)).data[0, 0] == 0
    with kernel(sort_ties="last"):
        assert pl.row_argmax(tile(x)).data[0, 0] == 63


def test_taint_stays_in_its_row():
    with kernel():
        x = pl.create_tile([8, 64], dt.FP32)
        pl.assemble(x, tile(A[:4]), [0, 0])
        pl.assemble(x, tile(A[4:8, :56]), [4, 0])
        taint = pl.row_sum(x).taint
        assert not bool(taint[:4].any())
        assert bool((taint[4:] > 0).all())
        columns = pl.col_sum(x).taint
        assert not bool(columns[:, :56].any())
        assert bool((columns[:, 56:] > 0).all())


def test_nan_propagates_unless_the_schedule_ignores_it():
    x = A.clone()
    x[0, 3] = torch.nan
    x[1] = torch.nan
    with kernel():
        assert bool(pl.row_max(tile(x)).data[0].isnan())
    with kernel(max_nan="number"):
        got = pl.row_max(tile(x)).data
        assert got[0, 0] == np.nanmax(x[0].numpy())
        assert bool(got[1].isnan())


def test_rejects_empty_and_recorded_dtypes():
    with kernel(), rejects("pl.row_sum: the valid region [0, 64] is empty"):
        pl.row_sum(tile(A, (0, 64)))
    with kernel() as machine:
        pl.row_max(tile(A.bfloat16()))
        assert "GG202" in codes(machine)
