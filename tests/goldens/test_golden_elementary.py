"""FP32 functions against libm in FP64, rounded once."""

import math

import numpy as np
import pytest
import torch

from goldens.numerics.elementary import exp, inverse_sqrt, log1p, reciprocal, sigmoid, sqrt


def points(low, high):
    return torch.rand(5000, generator=torch.Generator().manual_seed(9)) * (high - low) + low


@pytest.mark.parametrize(
    ("function", "libm", "x"),
    [(exp, math.exp, points(-104, 88)), (log1p, math.log1p, points(0, 1)), (exp, math.exp, points(-1, 1))],
)
def test_is_libm_rounded_once(function, libm, x):
    assert function(x).tolist() == [np.float32(libm(v)) for v in x.tolist()]


def test_does_not_depend_on_layout():
    x = points(-20, 20).reshape(50, 100)
    assert torch.equal(exp(x.t()).t(), exp(x))
    assert torch.equal(exp(x[:, ::3]), exp(x)[:, ::3])


def test_reciprocal_and_inverse_sqrt_round_after_each_operation():
    x = points(1e-6, 10)
    one = np.float32(1)
    assert reciprocal(x).tolist() == [one / v for v in x.numpy()]
    assert sqrt(x).tolist() == [np.sqrt(v) for v in x.numpy()]
    assert inverse_sqrt(x).tolist() == [one / np.sqrt(v) for v in x.numpy()]
    assert (inverse_sqrt(x) != x.double().rsqrt().float()).any()  # one rounding is something else


def test_sigmoid_limits():
    x = torch.tensor([-torch.inf, -100.0, -89.0, 0.0, 20.0, torch.inf, torch.nan])
    assert sigmoid(x)[:-1].tolist() == [0, 0, 0, 0.5, 1, 1]
    assert sigmoid(x)[-1].isnan()


def test_constants_multiply_as_fp32():
    """x * (1 / n) with a Python number must multiply by the FP32 constant, also where 1 / n is not exact."""
    x = points(0, 1000)
    for n in (7168, 28672, 1536):
        assert (x * (1.0 / n)).tolist() == [v * np.float32(1 / n) for v in x.numpy()]
    assert (x + 1e-6).tolist() == [v + np.float32(1e-6) for v in x.numpy()]
