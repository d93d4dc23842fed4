"""quantize_rows: Q8 of contracts/hc_gate_experts.md 0.4."""

import numpy as np
import pytest
import torch

from goldens.numerics.quant import quantize_rows


def q8_row(row):
    """The five steps on one row, a NumPy FP32 scalar operation each."""
    f32 = np.float32
    amax = max([f32(1e-4)] + [abs(f32(v)) for v in row])
    q = f32(127) / amax
    return [int(np.rint(f32(v) * q)) for v in row], f32(1) / q


@pytest.mark.parametrize("magnitude", [1e-6, 1e-4, 0.03, 1.0, 700.0, 1e30])
@pytest.mark.parametrize("bf16", [False, True])
def test_equals_the_five_steps(magnitude, bf16):
    v = torch.randn(9, 33, generator=torch.Generator().manual_seed(3)) * magnitude
    v = v.bfloat16().float() if bf16 else v
    codes, scales = quantize_rows(v)
    for row, found, scale in zip(v.numpy(), codes.tolist(), scales, strict=True):
        assert (found, scale.item()) == q8_row(row)


def test_true_quotient_differs_from_the_reciprocal_form_where_it_matters():
    """127 / amax by a reciprocal is one ULP off in a quarter of all rows and moves codes that lie on .5."""
    v = torch.randn(4096, 64, generator=torch.Generator().manual_seed(5)).bfloat16().float()
    amax = v.abs().amax(1, keepdim=True)
    reciprocal_form = ((1.0 / amax * 127.0) * v).round().to(torch.int8)
    wrong = (quantize_rows(v)[0] != reciprocal_form).sum().item()
    assert 0 < wrong < 1e-3 * v.numel()


def test_scale_is_not_amax_over_127():
    v = torch.randn(4096, 8, generator=torch.Generator().manual_seed(5))
    amax = v.abs().amax(1, keepdim=True)
    share = (quantize_rows(v)[1] == amax / torch.full_like(amax, 127.0)).double().mean().item()
    assert 0.55 < share < 0.75  # 64 % agree (contract 0.4)


def test_zero_row_and_rows_below_the_floor():
    v = torch.tensor([[0.0, -0.0], [5e-5, -1e-5], [1e-4, 0.0]])
    codes, scales = quantize_rows(v)
    assert scales.flatten().tolist() == [7.874015750530816e-07] * 3
    assert codes.tolist() == [[0, 0], [64, -13], [127, 0]]


def test_every_row_reaches_127_and_none_minus_128():
    amax = torch.rand(200_000, 1, generator=torch.Generator().manual_seed(1)) * 10 + 1e-4
    codes, _ = quantize_rows(torch.cat([amax, -amax, amax * 0.999999], dim=1))
    assert (codes[:, 0] == 127).all()
    assert (codes[:, 1] == -127).all()


def test_nan_and_inf_stay_in_their_row():
    v = torch.tensor([[1.0, torch.nan], [torch.inf, 2.0], [1.0, 2.0]])
    codes, scales = quantize_rows(v)
    assert scales[0].isnan()
    assert codes[:2].eq(0).all()
    assert codes[2].tolist() == [64, 127]


def test_negation_and_powers_of_two():
    v = torch.randn(64, 50, generator=torch.Generator().manual_seed(2))
    codes, scales = quantize_rows(v)
    assert torch.equal(quantize_rows(-v)[0], -codes)
    doubled = quantize_rows(v * 8)
    assert torch.equal(doubled[0], codes)
    assert torch.equal(doubled[1], scales * 8)
