"""Matrix products with one right answer: INT8 exactly, FP32 correctly rounded."""

from functools import cache
from typing import Literal

import torch
from torch import Tensor

_SPAN = 256  # columns of K in one library call: short sums have a small error bound
_BLOCK = 256  # doubtful dot products settled at a time; bounds the memory


def int8_matmul(a: Tensor, b_t: Tensor) -> Tensor:
    """a @ b_t^T for INT8 `a` [M, K] and `b_t` [N, K], exact: INT32 [M, N].

    Exact for K up to 2^17 - 1, so that no accumulator leaves INT32. Uses torch._int_mm where this machine
    computes it exactly, int8_matmul_exact where it does not.
    """
    # torch 2.13's _int_mm leaves its result unwritten for K = 1.
    if a.shape[1] == 1 or not _int_mm_is_exact():
        return int8_matmul_exact(a, b_t)
    # The weights on the left are about twice as fast as on the right for up to a few hundred rows of `a`.
    return torch._int_mm(b_t, a.t()).t().contiguous()


def int8_matmul_exact(a: Tensor, b_t: Tensor) -> Tensor:
    """The same as int8_matmul in FP64, which holds every partial sum: exact in any order, on any machine."""
    return (a.double() @ b_t.double().t()).to(torch.int32)


@cache
def _int_mm_is_exact() -> bool:
    """Whether torch._int_mm is exact here: x86 without VNNI adds product pairs in INT16, which saturates."""
    pairs = torch.tensor([[-128, 127], [127, -128], [127, 127], [-128, -128]], dtype=torch.int8)
    extremes = pairs.repeat(4, 64)
    operands = (extremes[:1], extremes[:3], extremes)
    try:
        return all(torch.equal(torch._int_mm(extremes, a.t()), int8_matmul_exact(extremes, a)) for a in operands)
    except RuntimeError:  # a build of torch without it
        return False


def fp32_matmul(a: Tensor, b_t: Tensor, order: Literal["exact"] = "exact") -> Tensor:
    """a @ b_t^T, correctly rounded: FP32 `a` [..., M, K] and `b_t` [..., N, K] to FP32 [..., M, N].

    The products are exact in FP64. How a library orders the FP64 sum depends on the machine and the thread
    count; where that could change the FP32 rounding, the dot product is evaluated again in twice FP64's
    precision, in a fixed order. So the result is the exact sum, rounded once, on every machine.
    """
    if order != "exact":
        raise ValueError(f"unknown accumulation order {order!r}, expected exact")
    k = a.shape[-1]
    spans = zip(torch.split(a, _SPAN, dim=-1), torch.split(b_t, _SPAN, dim=-1), strict=True)
    products = [left.double() @ right.double().mT for left, right in spans]
    total = torch.stack(products).sum(dim=0) if len(products) > 1 else products[0]
    # In any order a sum of n terms is off by at most (n - 1) u sum|term|, to first order, with u = 2^-53. So
    # |error| <= (span + number of spans) u sum|a_k b_k|, and sum|a_k b_k| <= |a| |b|; 16 covers what is left.
    bound = (min(k, _SPAN) + len(products) + 16) * 2.0**-53 * (_norm(a) * _norm(b_t).mT)
    doubtful = ((total - bound).float() != (total + bound).float()) & bound.isfinite()
    result = total.float()
    if bool(doubtful.any()):
        # Rows of both operands, laid out [..., M, N, K] without a copy.
        shape = (*result.shape, a.shape[-1])
        left = a.unsqueeze(-2).expand(shape)[doubtful]
        right = b_t.unsqueeze(-3).expand(shape)[doubtful]
        result[doubtful] = _rounded_dots(left, right)
    return result


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float64)
    return norm


def _rounded_dots(a: Tensor, b: Tensor) -> Tensor:
    """Row-wise dot products of FP32 `a` and `b` [F, K], FP32 [F]."""
    blocks = zip(torch.split(a, _BLOCK), torch.split(b, _BLOCK), strict=True)
    return torch.cat([_rounded_sums(x.double() * y.double()) for x, y in blocks])


def _rounded_sums(terms: Tensor) -> Tensor:
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
