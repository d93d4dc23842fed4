"""Golden of rms_norm: straight-line rows, FP64 bound, and the facts of contracts/dense.md 4."""

import numpy as np
import pytest
import torch
from golden_testing import F32, RMS_EPS, D, assert_same_bits, bf16, exact_sum, rms_norm_inputs, run

from goldens.rms_norm import rms_norm


def straight_line(x, w):
    """Section 4.3 on one row, one NumPy FP32 operation per rounding."""
    mean = exact_sum([v * v for v in x]) * F32(1 / len(x))
    inv = F32(1) / np.sqrt(mean + F32(RMS_EPS))
    return bf16([(v * inv) * g for v, g in zip(x, w, strict=True)])


@pytest.mark.parametrize("seed", range(3))
def test_equals_straight_line_code(seed):
    inputs, _ = rms_norm_inputs(seed)
    found = run("rms_norm", rms_norm_inputs(seed))["x_normed"]
    w = inputs["norm_w"].float().numpy()
    wanted = np.stack([straight_line(x, w) for x in inputs["x"].float().numpy()])
    assert_same_bits(found.float(), torch.from_numpy(wanted))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_error_against_fp64(scale):
    """One BF16 rounding, 2^-8 relative (8 bits), after FP32 roundings of u = 2^-24 each.

    BF16 squares are exact in FP32. Sum, 1/D, its product and eps: 4 u on the argument of the root, so 2 u on
    the root, and 1 each for the root, the quotient and the two products: 6 u.
    """
    inputs, _ = rms_norm_inputs(1, t=50)
    x = (inputs["x"].float() * scale).bfloat16()
    found = run("rms_norm", rms_norm_inputs(1, t=50), x=x)["x_normed"].double()
    wide = x.double()
    wanted = wide / (wide.square().mean(1, keepdim=True) + RMS_EPS).sqrt() * inputs["norm_w"].double()
    bound = wanted.abs() * (2.0**-8 + 7 * 2.0**-24)
    assert ((found - wanted).abs() <= bound).all()
    assert ((found - wanted).abs() > bound / 2).any()  # the bound is no larger than it must be


def test_epsilon_and_zero_rows():
    x = torch.zeros(2, 4096, dtype=torch.bfloat16)
    x[0] = 1e-6
    found = rms_norm(x, torch.ones(4096, dtype=torch.bfloat16), rms_eps=1e-6)["x_normed"]
    assert (found[0] == 0.00099945068359375).all()
    assert (found[1] == 0).all()


def test_overflowing_sum_gives_zeros_and_nan_poisons_only_its_row():
    x = torch.ones(3, D, dtype=torch.bfloat16)
    x[0, :4] = 1e20
    x[1, 5] = torch.nan
    found = run("rms_norm", rms_norm_inputs(), x=x)["x_normed"]
    assert (found[0] == 0).all()
    assert found[1].isnan().all()
    assert found[2].isfinite().all()


def test_negation_and_powers_of_two_of_the_weight_are_exact():
    inputs, _ = rms_norm_inputs(2)
    plain = run("rms_norm", rms_norm_inputs(2))["x_normed"]
    assert_same_bits(run("rms_norm", rms_norm_inputs(2), x=-inputs["x"])["x_normed"], -plain)
    assert_same_bits(run("rms_norm", rms_norm_inputs(2), norm_w=inputs["norm_w"] * 8)["x_normed"], plain * 8)


def test_order_of_the_two_products_matters():
    """(x * inv) * w, not x * (inv * w): about one BF16 value in 1e5 differs."""
    inputs, _ = rms_norm_inputs(0, t=3000)
    taps = {}
    found = run("rms_norm", rms_norm_inputs(0, t=3000), taps=taps)["x_normed"]
    other = (inputs["x"].float() * (taps["inv_rms"] * inputs["norm_w"].float())).bfloat16()
    assert 0 < (other != found).sum() < 1e-3 * found.numel()


def test_pro_width_multiplies_by_the_fp32_constant():
    """1/7168 is not exact: sum * (1/D) and sum / D differ."""
    x = torch.randn(64, 7168, generator=torch.Generator().manual_seed(0)).bfloat16()
    taps = {}
    rms_norm(x, torch.ones(7168, dtype=torch.bfloat16), rms_eps=1e-6, taps=taps)
    sums = [exact_sum(row) for row in (x.float() ** 2).tolist()]
    assert taps["mean_square"].flatten().tolist() == [s * F32(1 / 7168) for s in sums]
    assert taps["mean_square"].flatten().tolist() != [s / F32(7168) for s in sums]
