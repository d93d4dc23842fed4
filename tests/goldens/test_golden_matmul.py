"""int8_matmul is exact, fp32_matmul is the exact sum rounded once, whatever the machine."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from goldens.numerics import matmul
from goldens.numerics.matmul import fp32_matmul, int8_matmul, int8_matmul_exact


def int8(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator)


@pytest.mark.parametrize("m", [0, 1, 2, 3, 8, 16, 17, 130])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 5), (16, 32), (33, 127), (40, 512)])
def test_int8_equals_integer_arithmetic(m, n, k):
    a, b_t = int8(m, m, k), int8(n, n, k)
    wanted = a.numpy().astype(np.int64) @ b_t.numpy().astype(np.int64).T
    for found in (int8_matmul(a, b_t), int8_matmul_exact(a, b_t)):
        assert found.dtype == torch.int32
        assert found.is_contiguous()
        assert np.array_equal(found.numpy(), wanted)


@pytest.mark.parametrize("m", [1, 3, 16, 64])
@pytest.mark.parametrize(("left", "right"), [(-128, -128), (127, 127), (-128, 127)])
def test_int8_extremes_do_not_saturate(m, left, right):
    """Pairs of extreme products overflow INT16: the fault of x86 without VNNI."""
    a = torch.full((m, 7168), left, dtype=torch.int8)
    b_t = torch.full((32, 7168), right, dtype=torch.int8)
    assert (int8_matmul(a, b_t) == left * right * 7168).all()


def test_int8_takes_strided_operands():
    a, b_t = int8(1, 64, 10).t(), int8(2, 64, 7).t()
    assert torch.equal(int8_matmul(a, b_t), int8_matmul_exact(a.contiguous(), b_t.contiguous()))


def test_int8_falls_back_where_int_mm_is_not_exact(monkeypatch):
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: (a.int() @ b.int()).clamp(-32768, 32767))
    matmul._int_mm_is_exact.cache_clear()
    try:
        a = torch.full((2, 4096), -128, dtype=torch.int8)
        assert (int8_matmul(a, a) == 4096 << 14).all()
    finally:
        matmul._int_mm_is_exact.cache_clear()


def nearest_fp32(exact):
    """The FP32 number nearest to a Fraction, ties to even."""
    guess = np.float32(float(exact))
    near = [np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf))]
    return min(near, key=lambda f: (abs(Fraction(float(f)) - exact), int(f.view(np.uint32)) & 1))


@pytest.mark.parametrize("k", [1, 2, 7, 255, 256, 257, 1024])
@pytest.mark.parametrize("spread", [0, 12])
def test_fp32_is_the_exact_sum_rounded_once(k, spread):
    generator = torch.Generator().manual_seed(k)
    a = torch.randn(3, k, generator=generator) * torch.exp(spread * torch.randn(3, k, generator=generator))
    b_t = torch.randn(4, k, generator=generator)
    found = fp32_matmul(a, b_t).numpy()
    for i, j in np.ndindex(3, 4):
        exact = sum(Fraction(x) * Fraction(y) for x, y in zip(a[i].tolist(), b_t[j].tolist(), strict=True))
        assert found[i, j] == nearest_fp32(exact)


TINY = 2.0**-60


@pytest.mark.parametrize(
    ("terms", "wanted"),
    [
        ((1.0, 2**-24, TINY), 1 + 2**-23),  # above a tie by less than FP64 keeps: FP64 alone gives 1
        ((1.0, 2**-24, -TINY), 1.0),
        ((1.0, 2**-24, 0.0), 1.0),  # the tie itself goes to even
        ((1 + 2**-23, 2**-24, -TINY), 1 + 2**-23),  # FP64 alone gives 1 + 2^-22
        ((-1.0, -(2**-24), -TINY), -1 - 2**-23),
        ((1e30, -1e30, 3.0), 3.0),
    ],
)
def test_fp32_double_rounding_and_cancellation(terms, wanted):
    a = torch.tensor([terms], dtype=torch.float32)
    assert fp32_matmul(a, torch.ones_like(a)).item() == wanted


def test_fp32_does_not_depend_on_the_order_of_k():
    """Nor, therefore, on how a library splits the sum. FP64 accumulation alone fails this about once in
    10^5.
    """
    generator = torch.Generator().manual_seed(11)
    a, b_t = torch.randn(64, 4096, generator=generator), torch.randn(64, 4096, generator=generator)
    order = torch.randperm(4096, generator=generator)
    assert torch.equal(fp32_matmul(a, b_t), fp32_matmul(a[:, order], b_t[:, order]))


def test_fp32_batched_equals_one_by_one():
    generator = torch.Generator().manual_seed(4)
    a, b_t = torch.randn(5, 3, 300, generator=generator), torch.randn(5, 2, 300, generator=generator)
    found = fp32_matmul(a, b_t)
    assert all(torch.equal(found[i], fp32_matmul(a[i], b_t[i])) for i in range(5))


def test_fp32_nan_inf_and_zero():
    a = torch.tensor([[torch.nan, 1.0], [torch.inf, 1.0], [torch.inf, -torch.inf], [0.0, 0.0], [3e38, 3e38]])
    found = fp32_matmul(a, torch.ones(1, 2)).flatten()
    assert found.isnan().tolist() == [True, False, True, False, False]
    assert found[[1, 3, 4]].tolist() == [torch.inf, 0.0, torch.inf]


def test_rejects_unknown_order():
    with pytest.raises(ValueError, match="'device', expected exact"):
        fp32_matmul(torch.ones(1, 1), torch.ones(1, 1), order="device")
