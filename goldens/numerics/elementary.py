"""FP32 functions whose last bit does not depend on the machine: evaluated in FP64, rounded once.

torch's own FP32 exp differs between builds, vector widths and memory layouts. The FP64 value is accurate to a
few parts in 2^53, so its FP32 rounding is the correctly rounded result but for about one argument in 2^27.
"""

import torch
from torch import Tensor


def exp(x: Tensor) -> Tensor:
    """e^x, FP32 to FP32, one rounding. Inf above 88.7, 0 below -104."""
    return x.double().exp().float()


def log1p(x: Tensor) -> Tensor:
    """log(1 + x), FP32 to FP32, one rounding."""
    return x.double().log1p().float()


def reciprocal(x: Tensor) -> Tensor:
    """1 / x, one rounding: a true quotient (contracts/hc_gate_experts.md 0.3)."""
    return torch.ones_like(x) / x


def sqrt(x: Tensor) -> Tensor:
    """Square root, correctly rounded: FP64 carries more than twice FP32's digits, so rounding twice is safe.

    torch's own FP32 sqrt is not: with AVX-512 it is one ULP off in 15 % of all values.
    """
    return x.double().sqrt().float()


def inverse_sqrt(x: Tensor) -> Tensor:
    """1 / sqrt(x), two roundings. torch.rsqrt rounds once or twice, depending on the machine."""
    return reciprocal(sqrt(x))


def sigmoid(x: Tensor) -> Tensor:
    """1 / (exp(-x) + 1) with a rounding after exp, after the sum and after the quotient; 0 where exp
    overflows.
    """
    return reciprocal(exp(-x) + 1.0)
