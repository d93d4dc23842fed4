"""Q8, the symmetric INT8 quantiser of a row (contracts/hc_gate_experts.md 0.4, contracts/dense.md 2.4)."""

import torch
from torch import Tensor

from goldens.numerics.elementary import reciprocal

AMAX_EPS = 1e-4
"""Floor of a row's largest magnitude."""

QMAX = 127.0
"""Largest code. -128 never occurs."""


def quantize_rows(v: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise every row of FP32 `v` [..., n]: INT8 codes [..., n] and FP32 dequant scales [..., 1].

    v is about codes * scale. The scale is 1 / (127 / amax), two roundings: amax / 127 differs in a third of
    the rows. An all-zero row has codes 0 and scale 1e-4 / 127, not 0. A NaN in a row makes its scale NaN and
    its codes 0.
    """
    amax = v.abs().amax(dim=-1, keepdim=True).clamp(min=AMAX_EPS)
    to_codes = torch.full_like(amax, QMAX) / amax  # tensor by tensor: `127.0 / amax` would round twice
    codes = (v * to_codes).round_()  # RNE. The device's hop through FP16 is exact for |code| <= 127
    if not bool(amax.isfinite().all()):
        codes.nan_to_num_(nan=0.0)  # NaN * q, and Inf * 0 in a row with Inf
    return codes.to(torch.int8), reciprocal(to_codes)
