"""Matrix products with one right answer: INT8 exactly, FP32 correctly rounded."""

import math
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from goldens.numerics.exact import rounded_sums, settle

_SPAN = 1024  # columns of K at a time: a short sum has a small error bound, and its FP64 operands stay in the cache
_COLUMNS = 256  # rows of b_t at a time, for the same cache
_UNROUNDED = 2.0**52  # FP64 adds multiples of a quantum exactly up to so many of it
_SETTLED = 1 << 20  # products of doubtful dot products settled at a time; bounds the memory


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
    """a @ b_t^T, correctly rounded: `a` [..., M, K] and `b_t` [..., N, K], FP32 or BF16, to FP32 [..., M, N].

    The products are exact in FP64. How a library orders the FP64 sum depends on the machine and the thread
    count; where that could change the FP32 rounding, the dot product is evaluated again in a fixed order, if
    need be in twice FP64's precision. So the result is the exact sum, rounded once, on every machine.
    """
    if order != "exact":
        raise ValueError(f"unknown accumulation order {order!r}, expected exact")
    k = a.shape[-1]
    total = _fp64_products(a, b_t)
    # In any order a sum of n terms is off by at most (n - 1) u sum|term|, to first order, with u = 2^-53. So
    # |error| <= (span + number of spans) u sum|a_k b_k|, and sum|a_k b_k| <= |a| |b|; 16 covers what is left.
    steps = min(k, _SPAN) + -(-k // _SPAN) + 16
    magnitude = _norm(a) * _norm(b_t).mT
    result, doubtful = settle(total, steps, magnitude)
    if doubtful is not None and _mostly_ties(a, b_t, doubtful):
        exact = magnitude <= _quantum(a) * _quantum(b_t).mT * _UNROUNDED
        result = torch.where(exact, total.float(), result)
        doubtful &= ~exact
    if doubtful is not None and bool(doubtful.any()):
        # Rows of both operands, laid out [..., M, N, K] without a copy.
        shape = (*result.shape, k)
        left = a.unsqueeze(-2).expand(shape)[doubtful]
        right = b_t.unsqueeze(-3).expand(shape)[doubtful]
        parts = (torch.split(t, max(1, _SETTLED // k)) for t in (left, right, total[doubtful], magnitude[doubtful]))
        result[doubtful] = torch.cat([_settled(*block) for block in zip(*parts, strict=True)])
    return result


def _settled(left: Tensor, right: Tensor, total: Tensor, magnitude: Tensor) -> Tensor:
    """FP32 [F]: dot products of `left` and `right` [F, K], of which FP64 gave `total` [F], rounded once."""
    if not left.dtype == right.dtype == torch.bfloat16:
        return rounded_sums(left.double() * right.double())
    result = total.float()
    rounded = magnitude > (_quantum(left) * _quantum(right)).squeeze(1) * _UNROUNDED
    if bool(rounded.any()):
        result[rounded] = rounded_sums(left[rounded].double() * right[rounded].double())
    return result


def _fp64_products(a: Tensor, b_t: Tensor) -> Tensor:
    """FP64 [..., M, N], a span of K after the other. The operands are widened into buffers that stay in the cache."""
    m, n, k = a.shape[-2], b_t.shape[-2], a.shape[-1]
    total = torch.zeros(*a.shape[:-2], m, n, dtype=torch.float64)
    at_once = min(n, _COLUMNS)
    left, right, product = (torch.empty(s, dtype=torch.float64) for s in (m * _SPAN, at_once * _SPAN, m * at_once))
    batch = math.prod(a.shape[:-2])
    matrices = zip(total.view(batch, m, n), a.reshape(batch, m, k), b_t.reshape(batch, n, k), strict=True)
    for sums, x, y in matrices:
        for x_span, y_span in zip(torch.split(x, _SPAN, dim=1), torch.split(y, _SPAN, dim=1), strict=True):
            width = x_span.shape[1]
            wide_x = left[: m * width].view(m, width).copy_(x_span)
            for out, part in zip(torch.split(sums, _COLUMNS, dim=1), torch.split(y_span, _COLUMNS), strict=True):
                rows = part.shape[0]
                wide_y = _widened(part, right[: rows * width])
                out += torch.mm(wide_x, wide_y, out=product[: m * rows].view(m, rows))
    return total


def _widened(part: Tensor, buffer: Tensor) -> Tensor:
    """`part` [N, K] as FP64 [K, N] in the buffer, read along the axis that is contiguous in memory."""
    rows, width = part.shape
    if part.stride(1) == 1:
        return buffer.view(rows, width).copy_(part).t()
    return buffer.view(width, rows).copy_(part.t())


def _mostly_ties(a: Tensor, b_t: Tensor, doubtful: Tensor) -> bool:
    """Whether more dot products of BF16 are in doubt than there are rows: short sums often lie exactly on a tie."""
    both = a.dtype == b_t.dtype == torch.bfloat16
    return both and int(doubtful.sum()) > math.prod(a.shape[:-1]) + math.prod(b_t.shape[:-1])


def _quantum(x: Tensor) -> Tensor:
    """A power of two that divides every element of a row of BF16, FP64 [..., 1]: the last bit of the smallest."""
    bits = x.contiguous().view(torch.int16) & 0x7FFF
    smallest = torch.where(bits == 0, 0x7F80, bits).amin(dim=-1, keepdim=True)  # a row of zeros: any will do
    exponent = (smallest >> 7).clamp_(min=1).int() - 127
    return torch.ldexp(torch.ones(smallest.shape, dtype=torch.float64), exponent - 7)


def _norm(x: Tensor) -> Tensor:
    """Upper bounds of the Euclidean norms of the rows, FP64 [..., 1]."""
    # Torch widens a whole operand before it sums, and sums slowly along an axis with a stride.
    parts = (part.contiguous() for part in torch.split(x, _COLUMNS, dim=-2))
    norms = [torch.linalg.vector_norm(part, dim=-1, keepdim=True, dtype=torch.float32) for part in parts]
    norm = torch.cat(norms, dim=-2).double()
    # Far from the ends of FP32's range the FP32 sum is good to K u; elsewhere its squares may vanish or overflow.
    unsafe = ~((norm > 2.0**-40) & (norm < 2.0**60))
    if bool(unsafe.any()):
        rows = unsafe.squeeze(-1)
        norm[rows] = torch.linalg.vector_norm(x[rows], dim=-1, keepdim=True, dtype=torch.float64)
    return norm * (1.0 + x.shape[-1] * 2.0**-23)
