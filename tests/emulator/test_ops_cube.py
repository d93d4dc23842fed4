"""Matrix multiplication (pypto_dsl.md 3.7)."""

from __future__ import annotations

import pytest
import torch
from ops_testing import codes, gm, kernel, pl, randn, rejects, tile

from harness.devices.emulator import dtypes as dt

A, B = randn(16, 64, seed=1), randn(64, 32, seed=2)


def codes8(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("a_trans", [False, True])
@pytest.mark.parametrize("b_trans", [False, True])
def test_accepts_floats_rounded_once(dtype, a_trans, b_trans):
    a, b = A.to(dtype), B.to(dtype)
    with kernel() as machine:
        left, right = (a.T.contiguous() if a_trans else a), (b.T.contiguous() if b_trans else b)
        result = pl.matmul(gm(left), tile(right), out_dtype=dt.FP32, a_trans=a_trans, b_trans=b_trans)
        assert torch.equal(result.data, (a.double() @ b.double()).float())
        assert (result.dtype, result.space) == (dt.FP32, "Acc")
        assert machine.findings == []


@pytest.mark.parametrize("depth", [32, 1024, 1056, 4065])
def test_int8_is_exact(depth):
    """Section 7, trap 15. Sums of 127 · 127 need all 31 bits of an odd number: FP32 cannot hold them."""
    largest = (torch.full((16, depth), 127, dtype=torch.int8), torch.full((32, depth), 127, dtype=torch.int8))
    for a, b in ((codes8(16, depth, seed=1), codes8(32, depth, seed=2)), largest):
        with kernel():
            got = pl.matmul(tile(a), tile(b), out_dtype=dt.INT32, b_trans=True).data
        assert got.dtype is torch.int32
        assert torch.equal(got.long(), a.long() @ b.long().T)


def test_out_dtype_does_not_change_the_accumulator():
    """Section 7, trap 15."""
    with kernel() as machine:
        assert pl.matmul(tile(A.bfloat16()), tile(B.bfloat16())).dtype is dt.FP32
        assert codes(machine) == {"GG205"}


def test_batch_axes_broadcast():
    a, b = randn(2, 16, 64), randn(1, 64, 32)
    with kernel():
        got = pl.matmul(tile(a), tile(b), out_dtype=dt.FP32)
        assert torch.equal(got.data, (a.double() @ b.double()).float())
        with rejects("batch axes [2] and [3] differ"):
            pl.matmul(tile(a), tile(randn(3, 64, 32)), out_dtype=dt.FP32)


def test_acc_is_updated_in_place():
    """Section 3.7: the chain rounds once per call."""
    with kernel():
        acc = pl.matmul(tile(A[:, :32]), tile(B[:32]), out_dtype=dt.FP32)
        first = acc.data.clone()
        again = pl.matmul_acc(acc, tile(A[:, 32:]), tile(B[32:]))
        assert again is acc
        second = (A[:, 32:].double() @ B[32:].double()).float()
        assert torch.equal(acc.data, first + second)
        pl.matmul_acc(acc, tile(A[:, 32:]), tile(B[32:]), init_cond=True)
        assert torch.equal(acc.data, second)
        integer = pl.matmul(tile(codes8(16, 32)), tile(codes8(32, 32)), out_dtype=dt.INT32)
        before = integer.data.clone()
        pl.matmul_acc(integer, tile(codes8(16, 32)), tile(codes8(32, 32)))
        assert torch.equal(integer.data, 2 * before)


@pytest.mark.parametrize("order", ["ascending", "shuffled", "tree"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_orders_round_after_every_fractal(order, dtype):
    a, b = randn(16, 256, seed=3).to(dtype), randn(256, 32, seed=4).to(dtype)
    with kernel(3, cube=order):
        got = pl.matmul(tile(a), tile(b), out_dtype=dt.FP32).data
    step = 8 if dtype is torch.float32 else 16
    parts = [(a[:, k : k + step].double() @ b[k : k + step].double()).float() for k in range(0, 256, step)]
    if order == "ascending":
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        assert torch.equal(got, total)
    exact = a.double() @ b.double()
    bound = len(parts) * 2.0**-23 * (a.double().abs() @ b.double().abs())
    assert bool(((got.double() - exact).abs() <= bound).all())
    assert not torch.equal(got, exact.float())


def test_the_product_is_valid_where_rows_and_columns_are():
    with kernel() as machine:
        got = pl.matmul(tile(A, (8, 64)), tile(B), out_dtype=dt.FP32)
        assert got.valid == (8, 32)
        assert torch.equal(got.valid_data, (A[:8].double() @ B.double()).float())
        narrowed = pl.matmul(tile(A, (16, 48)), tile(B, (48, 32)), out_dtype=dt.FP32)
        assert torch.equal(narrowed.data, (A[:, :48].double() @ B[:48].double()).float())
        assert machine.findings == []


def test_garbage_beyond_the_valid_k_takes_part():
    with kernel() as machine:
        got = pl.matmul(tile(A), tile(B, (48, 32)), out_dtype=dt.FP32)
        assert codes(machine) == {"GG208"}
        assert bool((got.taint > 0).all())


def test_taint_reaches_its_row_and_column():
    with kernel():
        x = pl.create_tile([16, 64], dt.FP32)
        pl.assemble(x, tile(A[:8]), [0, 0])
        got = pl.matmul(x, tile(B), out_dtype=dt.FP32)
        assert not bool(got.taint[:8].any())
        assert bool((got.taint[8:] > 0).all())
        clean = pl.matmul(tile(A), tile(B), out_dtype=dt.FP32)
        pl.matmul_acc(clean, x, tile(B))
        assert not bool(clean.taint[:8].any())
        assert bool((clean.taint[8:] > 0).all())


@pytest.mark.parametrize(("a", "b", "code"), [
    (randn(8, 64), randn(64, 32), "GG103"), (randn(16, 12), randn(12, 32), "GG103"),
    (torch.ones(16, 4096), torch.ones(16, 4096), "GG105"), (torch.ones(256, 16), torch.ones(16, 256), "GG104"),
])  # fmt: skip
def test_sizes_the_cube_does_not_take_are_recorded(a, b, code):
    """Section 7, trap 35; the 8-row product of appendix C."""
    with kernel() as machine:
        pl.matmul(tile(a), tile(b), out_dtype=dt.FP32, b_trans=a.shape[1] == b.shape[1])
        assert code in codes(machine)


def test_rejects_operands_that_do_not_fit():
    with kernel():
        with rejects("operands are pl.FP32 and pl.BF16"):
            pl.matmul(tile(A), tile(B.bfloat16()), out_dtype=dt.FP32)
        with rejects("K differs: lhs [16, 64], rhs [32, 64]"):
            pl.matmul(tile(A), tile(B), out_dtype=dt.FP32, b_trans=True)
        with rejects("the cube unit has no pl.INT32 operands"):
            pl.matmul(tile(A.int()), tile(B.int()), out_dtype=dt.INT32)
        with rejects("the accumulator is a tile [16, 64] pl.FP32, the product [16, 32] pl.FP32"):
            pl.matmul_acc(pl.full([16, 64], dt.FP32, 0.0), tile(A), tile(B))
        with rejects("must be an FP32 or INT32 tile"):
            pl.matmul_acc(tile(A.bfloat16()), tile(A), tile(B))


def test_bias_and_one_row_forms():
    bias = randn(1, 32, seed=5)
    with kernel():
        got = pl.matmul_bias(tile(A), tile(B), gm(bias)).data
        assert torch.equal(got, bias + (A.double() @ B.double()).float())
        row = pl.gemv(tile(A[:1]), tile(B), out_dtype=dt.FP32)
        assert torch.equal(row.data, (A[:1].double() @ B.double()).float())
        with rejects("pl.gemv: lhs [16, 64] must have one row"):
            pl.gemv(tile(A), tile(B), out_dtype=dt.FP32)
        with rejects("the bias [1, 32] does not have 64 columns"):
            pl.matmul_bias(tile(B.T), tile(A), gm(bias), a_trans=True)
