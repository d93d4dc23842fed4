"""Element access and subscripts (pypto_dsl.md 3.3, 3.9)."""

from __future__ import annotations

import pytest
import torch
from ops_testing import gm, kernel, pl, randn, rejects, tile

from harness.devices.emulator import dtypes as dt
from harness.devices.emulator.ops.subscript import subscript_load, subscript_store
from harness.devices.emulator.values import Scalar

A = randn(8, 64, seed=1)


# --- elements --------------------------------------------------------------------------------------------------------


def test_read_and_write_elements():
    with kernel(region=False):
        g = gm(A.clone())
        assert pl.read(g, [2, 3]) == Scalar(float(A[2, 3]), dt.FP32)
        pl.write(g, [2, 3], 0.1)
        assert g.data[2, 3] == torch.tensor(0.1)
        line = gm(torch.arange(4, dtype=torch.int32))
        assert pl.read(line, 3) == Scalar(3, dt.INT32)
        pl.write(line, [3], Scalar(9, dt.INT32))
        assert line.data[3] == 9
        with rejects("a pl.INT64 scalar into g of pl.INT32; cast it first"):
            pl.write(line, [0], Scalar(1, dt.INT64))
        with rejects("the number 1 into g of pl.FP32; cast it first"):
            pl.write(g, [0, 0], 1)
        with rejects("out of bounds: axis 1, index 64 of 64"):
            pl.read(g, [0, 64])
        with rejects("needs 2 indices, got 1"):
            pl.read(g, [0])


def test_a_written_element_is_defined():
    with kernel():
        t = pl.create_tile([1, 8], dt.INT32)
        pl.write(t, [0, 5], Scalar(3, dt.INT32))
        assert pl.read(t, [0, 5]) == Scalar(3, dt.INT32)
        with rejects("create_tile[0, 4] is undefined"):
            pl.read(t, [0, 4])


def test_dim_is_the_runtime_extent():
    with kernel():
        assert pl.tensor.dim(gm(A), 1) == 64
        with rejects("axis 2 of [8, 64] does not exist"):
            pl.tensor.dim(gm(A), 2)


# --- subscripts ------------------------------------------------------------------------------------------------------


def test_subscript_views_in_orchestration():
    g = gm(randn(4, 8, 64))
    with kernel(region=False):
        assert torch.equal(subscript_load(g, 2).data, g.data[2])
        assert torch.equal(subscript_load(g, (slice(1, 3), 5)).data, g.data[1:3, 5])
        assert torch.equal(subscript_load(subscript_load(g, Scalar(1, dt.INT32)), slice(2, 4)).data, g.data[1, 2:4])
        assert subscript_load(g, (0, 1, 2)) == Scalar(float(g.data[0, 1, 2]), dt.FP32)
        g.data[2, 0, 0] = 5
        assert subscript_load(g, 2).data[0, 0] == 5


def test_subscript_copies_in_a_kernel():
    g = gm(A.clone())
    with kernel():
        t = subscript_load(g, (slice(2, 6), slice(None, 32)))
        g.data[2, 0] = 5
        assert torch.equal(t.data, A[2:6, :32])
        with rejects("a rank-reducing subscript of g[8, 64]"):
            subscript_load(g, 0)


def test_subscript_of_a_tile_is_cut_at_its_valid_extent():
    with kernel():
        t = subscript_load(tile(A, (5, 40)), (slice(2, 8), slice(0, 64)))
        assert t.shape == (6, 64)
        assert t.valid == (3, 40)
        assert subscript_load(tile(A), (0, slice(0, 64))).shape == (1, 64)


@pytest.mark.parametrize(("index", "message"), [
    (slice(-1, None), "a negative slice bound"), (slice(0, 8, 2), "has no step"),
    (None, "None and ... are not allowed"),
    (..., "None and ... are not allowed"), ((0, 0, 0), "has 2 axes, the subscript names 3"),
    (slice(0, 9), "out of bounds: axis 0, elements 0..8 of 8"), (slice(4, 2), "empty or reversed"),
    (1.5, "must be an integer scalar"),
])  # fmt: skip
def test_rejects_subscripts(index, message):
    with kernel(region=False), rejects(message):
        subscript_load(gm(A), index)


def test_subscript_store_is_an_assemble():
    out = gm(torch.zeros(4, 8, 64))
    with kernel():
        assert subscript_store(out, (1, slice(0, 8), slice(0, 64)), tile(A)) is out
        assert torch.equal(out.data[1], A)
        subscript_store(out, (slice(2, 3), slice(0, 5), slice(0, 40)), pl.reshape(tile(A[:5, :40]), [1, 5, 40]))
        assert torch.equal(out.data[2, :5, :40], A[:5, :40])
        whole = gm(torch.zeros(8, 64))
        subscript_store(whole, slice(None), tile(A))
        assert torch.equal(whole.data, A)
        narrowed = gm(torch.zeros(5, 40))
        subscript_store(narrowed, slice(None), tile(A, (5, 40)))
        assert torch.equal(narrowed.data, A[:5, :40])


def test_rejects_subscript_stores():
    with kernel():
        with rejects("an element of g cannot be assigned by subscript; use pl.write"):
            subscript_store(gm(A.clone()), (0, 0), Scalar(1.0, dt.FP32))
        with rejects("the window [4, 64] of g cannot take a tile [8, 64] pl.FP32"):
            subscript_store(gm(A.clone()), slice(0, 4), tile(A))
        with rejects("a region of g needs a tensor or tile, not the number 0.0"):
            subscript_store(gm(A.clone()), slice(0, 4), 0.0)
