"""Sums that are correctly rounded to FP32: the exact value rounded once, on every machine.

A library sums FP64 in an order of its own. That is cheap and nearly always settles the FP32 rounding; the few
sums that it leaves in doubt are evaluated again in a fixed order, if need be in twice FP64's precision.
"""

import numpy as np
import torch
from torch import Tensor

_HALF_ULP = 2.0**-53  # of FP64: the relative error of one operation


def settle(total: Tensor, steps: float, magnitude: Tensor) -> tuple[Tensor, Tensor | None]:
    """FP64 sums rounded to FP32, and where that is in doubt (None: nowhere).

    `total` is off by at most steps * 2^-53 * magnitude. Not finite sums are not in doubt: any order gives them.
    """
    bound = magnitude * (steps * _HALF_ULP)
    below = (total - bound).float()
    above = total.add(bound).float()
    doubtful = below != above
    if not bool(doubtful.any()):
        return above, None
    above = torch.where(bound.isfinite(), above, total.float())
    return above, doubtful & bound.isfinite()


def rounded_sums(terms: Tensor) -> Tensor:
    """Row sums of FP64 `terms` [F, K], rounded once to FP32 [F]."""
    depth = terms.shape[1].bit_length()
    total = _halves(terms)
    # A level of the tree adds a term at most twice (where an odd one joins). The sum of magnitudes is nearly exact.
    result, doubtful = settle(total, 2 * depth, _halves(terms.abs()) * (1.0 + 2.0**-40))
    if doubtful is not None:
        rows = doubtful.squeeze(1)
        result[rows] = _doubled_sums(terms[rows]).unsqueeze(1)
    return result.squeeze(1)


def _doubled_sums(terms: Tensor) -> Tensor:
    """Row sums of FP64 `terms` [F, K], kept as high + low (Knuth's two-sum), rounded once to FP32 [F]."""
    high, low = terms, torch.zeros_like(terms)
    while (n := high.shape[-1]) > 1:
        half = n // 2
        left, right = high[:, :half], high[:, half : 2 * half]
        total = left + right
        shadow = total - left
        error = (left - (total - shadow)) + (right - shadow)
        low = torch.cat([low[:, :half] + low[:, half : 2 * half] + error, low[:, 2 * half :]], dim=1)
        high = torch.cat([total, high[:, 2 * half :]], dim=1)
    total = high + low
    left_over = (low - (total - high)).squeeze(1)
    total = total.squeeze(1)
    # FP64 then FP32 would round twice. Rounding to odd first keeps on which side of a tie the sum lies.
    even = (total.view(torch.int64) & 1) == 0
    onward = torch.nextafter(total, torch.full_like(total, torch.inf).copysign(left_over))
    return torch.where((left_over != 0) & even, onward, total).float()


def _halves(x: Tensor) -> Tensor:
    """Sum of the last axis, [..., 1], by the fastest tree: each half is contiguous. An odd column joins the first.

    In NumPy, whose additions are the same and whose calls cost half as much.
    """
    terms = x.numpy()
    with np.errstate(invalid="ignore", over="ignore"):  # Inf - Inf is NaN here as in torch
        while (n := terms.shape[-1]) > 1:
            half = n // 2
            total = terms[..., :half] + terms[..., half : 2 * half]
            if n % 2:
                total[..., :1] += terms[..., -1:]
            terms = total
    return torch.from_numpy(terms.copy())
