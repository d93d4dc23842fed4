"""Golden of rms_norm: RMS normalisation of token rows with a learned weight (contracts/dense.md, section
4).
"""

import torch
from torch import Tensor

from goldens.checks import expect
from goldens.numerics.elementary import inverse_sqrt
from goldens.numerics.reduce import row_sum

STAGES = ("mean_square", "inv_rms", "scaled", "x_normed")


def _mean_square(x: Tensor) -> Tensor:
    """Steps 1, 2: squares in FP32, their sum rounded once, times the FP32 constant 1/D. [T, 1]"""
    return row_sum(x * x) * (1.0 / x.shape[-1])


def _inverse_rms(mean_square: Tensor, rms_eps: float) -> Tensor:
    """Steps 3, 4: 1 / sqrt(mean square + eps), a rounding for each operation. [T, 1]"""
    return inverse_sqrt(mean_square + rms_eps)


def _scaled(x: Tensor, inv_rms: Tensor, norm_w: Tensor) -> Tensor:
    """Step 5 before its last rounding: (x * inv) * w in this order, two FP32 roundings. [T, D]"""
    return (x * inv_rms).mul_(norm_w)


def rms_norm(x: Tensor, norm_w: Tensor, *, rms_eps: float, taps: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """x / rms(x) * w for every token.

    x [T, D] BF16, norm_w [D] BF16. Returns x_normed [T, D] BF16. Rows are independent; a NaN or Inf poisons
    its own. Raises GoldenInputError for a wrong shape or dtype.
    """
    _, d = expect("rms_norm: x", x, (None, None), torch.bfloat16)
    expect("rms_norm: norm_w", norm_w, (d,), torch.bfloat16)

    wide = x.float()
    mean_square = _mean_square(wide)
    inv_rms = _inverse_rms(mean_square, rms_eps)
    scaled = _scaled(wide, inv_rms, norm_w.float())
    x_normed = scaled.to(torch.bfloat16)  # RNE

    if taps is not None:
        taps.update(mean_square=mean_square, inv_rms=inv_rms, scaled=scaled, x_normed=x_normed)
    return {"x_normed": x_normed}
