"""Row sums of FP32 in a stated order (contracts/dense.md 2.3, contracts/pypto_dsl.md 3.10).

Only element-wise additions are used: the order is the one written, whatever the number of threads. The exact
sum needs no order.
"""

from typing import Literal

import torch
from torch import Tensor

from goldens.numerics.exact import rounded_sums, settle

Order = Literal["exact", "device", "sequential", "pairwise"]

_CACHED = 1 << 16  # FP64 elements at a time: half a MiB
_LANES = 64  # FP32 lanes of the vector unit


def row_sum(x: Tensor, order: Order = "exact") -> Tensor:
    """Sum FP32 `x` [..., n] over the last axis: FP32 [..., 1].

    `exact` is the exact sum, rounded once: the centre of all legal orders. `sequential` adds left to right.
    `pairwise` adds adjacent pairs until one is left, an odd one out waits for the next round: (x0+x1)+(x2+x3)
    for n = 4. `device` is the order of A2/A3: blocks of 64 columns are added lane by lane in adjacent pairs,
    then the 64 lanes pairwise. Raises ValueError for another order or an empty row.
    """
    if x.shape[-1] == 0:
        raise ValueError("row_sum of an empty row")
    if order == "exact":
        return _exactly(x)
    if order == "sequential":
        return _left_to_right(x)
    if order == "pairwise":
        return _adjacent_pairs(x)
    if order == "device":
        return _adjacent_pairs(_lanes(x))
    raise ValueError(f"unknown summation order {order!r}, expected exact, device, sequential or pairwise")


def chunked_sum(x: Tensor, chunk: int, order: Order = "exact") -> Tensor:
    """Sum `chunk` columns at a time in the given order, then the chunk sums left to right in FP32: [..., 1].

    The last chunk is shorter where `chunk` does not divide n.
    """
    whole, rest = x.shape[-1] // chunk * chunk, x.shape[-1] % chunk
    sums = [row_sum(x[..., :whole].reshape(*x.shape[:-1], -1, chunk), order).squeeze(-1)] if whole else []
    if rest:
        sums.append(row_sum(x[..., whole:], order))
    return _left_to_right(torch.cat(sums, dim=-1))


def _exactly(x: Tensor) -> Tensor:
    n = x.shape[-1]
    rows = x.reshape(-1, n)
    total, magnitude = (torch.empty(rows.shape[0], 1, dtype=torch.float64) for _ in range(2))
    at_once = max(1, _CACHED // n)
    for block, sums, sizes in zip(*(torch.split(t, at_once) for t in (rows, total, magnitude)), strict=True):
        wide = block.double()
        torch.sum(wide, dim=-1, keepdim=True, out=sums)
        torch.sum(wide.abs_(), dim=-1, keepdim=True, out=sizes)
    # In any order the sum is off by at most (n - 1) u sum|x|; the sum of magnitudes by no more, relatively.
    result, doubtful = settle(total, n + 1, magnitude)
    if doubtful is not None:
        result[doubtful] = rounded_sums(rows[doubtful.squeeze(-1)].double())
    return result.view(*x.shape[:-1], 1)


def _left_to_right(x: Tensor) -> Tensor:
    columns = torch.split(x, 1, dim=-1)
    total = columns[0].clone()
    for column in columns[1:]:
        total += column
    return total


def _adjacent_pairs(x: Tensor) -> Tensor:
    while (n := x.shape[-1]) > 1:
        even = n - n % 2
        x = torch.cat([x[..., 0:even:2] + x[..., 1:even:2], x[..., even:]], dim=-1)
    return x.clone()


def _lanes(x: Tensor) -> Tensor:
    """The 64 partial sums of a row (all columns, where there are no more than 64).

    Full blocks: r0+r1, r2+r3, ...; an odd last block is added to the first pair, and so is a ragged tail,
    lane by lane. The pair sums are added in adjacent pairs until one is left, an odd one out to the last
    pair's sum.
    """
    n = x.shape[-1]
    if n <= _LANES:
        return x
    *blocks, tail = torch.split(x, _LANES, dim=-1)
    if tail.shape[-1] == _LANES:
        blocks.append(tail)
    sums = [a + b for a, b in zip(blocks[0::2], blocks[1::2], strict=False)]
    if len(blocks) % 2:
        sums[:1] = [sums[0] + blocks[-1]] if sums else [blocks[0].clone()]
    if tail.shape[-1] < _LANES:
        sums[0][..., : tail.shape[-1]] += tail
    while len(sums) > 1:
        paired = [a + b for a, b in zip(sums[0::2], sums[1::2], strict=False)]
        if len(sums) % 2:
            paired[-1] = paired[-1] + sums[-1]
        sums = paired
    return sums[0]
