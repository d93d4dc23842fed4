"""The pass over both tensors: strips side by side, each in chunks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from harness.metrics.bits import Side, dot
from harness.metrics.distances import add_distances
from harness.metrics.figures import SWEEP, Array, Metrics, Points, Rule
from harness.metrics.sums import Partial, finish

CHUNK = 1 << 17
STRIP = 16 * CHUNK
_TINY = np.float32(1e-45)


def measure(
    actual: Tensor,
    expected: Tensor,
    rule: Rule,
    *,
    valid: Tensor | None = None,
    undefined: Tensor | None = None,
    same_nonfinite: bool = False,
) -> Metrics:
    """Every figure of `Metrics` for two tensors of one shape and dtype.

    `valid`, `undefined`: bool masks of that shape, None for all and none. `same_nonfinite` accepts a NaN where a
    NaN is expected and an infinity where the same one is; otherwise every non-finite element is bad. Uses as many
    threads as torch is set to, with the same result for any number. Raises ValueError on unequal shapes or
    dtypes, TypeError on a dtype that is no real number.
    """
    for what, other in (("actual", actual), ("valid", valid), ("undefined", undefined)):
        if other is not None and other.shape != expected.shape:
            raise ValueError(f"{what} has shape {tuple(other.shape)}, expected has {tuple(expected.shape)}")
    if actual.dtype != expected.dtype:
        raise ValueError(f"actual is {actual.dtype}, expected is {expected.dtype}")
    sides = Side(actual), Side(expected)
    keep, lost = (None if m is None else m.reshape(-1).contiguous().numpy() for m in (valid, undefined))

    def strip(start: int) -> Partial:
        total = Partial()
        # Squares and differences may leave the range of FP32; where that matters they are taken in FP64.
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            for at in range(start, min(start + STRIP, expected.numel()), CHUNK):
                _chunk(total, at, sides[0], sides[1], keep, lost, rule, same_nonfinite)
        return total

    total = Partial()
    for partial in _in_order(strip, range(0, expected.numel(), STRIP)):
        total.add(partial)
    return finish(total, actual, expected)


def _in_order(work: Callable[[int], Partial], starts: range) -> Iterator[Partial]:
    threads = min(torch.get_num_threads(), len(starts))
    if threads <= 1:
        yield from map(work, starts)
    else:
        with ThreadPoolExecutor(threads) as pool:
            yield from pool.map(work, starts)


def _chunk(
    total: Partial,
    start: int,
    actual: Side,
    expected: Side,
    valid: Array | None,
    undefined: Array | None,
    rule: Rule,
    same_nonfinite: bool,
) -> None:
    stop = start + CHUNK
    a, e = actual.bits[start:stop], expected.bits[start:stop]
    origin: Array | None = None  # flat positions, where a mask leaves some out
    if valid is not None or undefined is not None:
        keep = np.ones(e.shape, bool) if valid is None else valid[start:stop]
        if undefined is not None:
            unwritten = keep & undefined[start:stop]
            total.undefined += int(np.count_nonzero(unwritten))
            keep = keep & ~unwritten
        if not keep.all():
            origin = np.flatnonzero(keep)
            a, e = a[origin], e[origin]
    total.compared += e.size
    at = np.flatnonzero(a != e)
    total.unequal += at.size
    squares = expected.squares(e)
    if expected.is_float and not (math.isfinite(squares) and np.isfinite(actual.numbers(a[at])).all()):
        finite = _count_nonfinite(total, start, origin, actual.numbers(a), expected.numbers(e), same_nonfinite)
        origin = finite if origin is None else origin[finite]
        a, e = a[finite], e[finite]
        at, squares = np.flatnonzero(a != e), expected.squares(e)
    total.finite += e.size
    total.sum_expected += squares
    if at.size:
        flat = (at if origin is None else origin[at]) + start
        if at.size < e.size:
            a, e = a[at], e[at]
        numbers = actual.numbers(a), expected.numbers(e)
        _count_differing(total, Points(flat, *numbers, numbers[0] - numbers[1], actual.steps(a, e)), rule)


def _count_nonfinite(
    total: Partial, start: int, origin: Array | None, a: Array, e: Array, same_nonfinite: bool
) -> Array:
    """Count and judge the elements that are not finite on both sides; positions in the chunk of those that are."""
    finite_a, finite_e = np.isfinite(a), np.isfinite(e)
    total.nonfinite_actual += int(np.count_nonzero(~finite_a))
    total.nonfinite_expected += int(np.count_nonzero(~finite_e))
    bad = ~(finite_a & finite_e)
    finite = np.flatnonzero(~bad)
    if same_nonfinite:
        bad &= ~((a == e) | (np.isnan(a) & np.isnan(e)))
    at = np.flatnonzero(bad)
    if at.size:
        total.nonfinite_bad += at.size
        total.over += at.size
        total.worst.take(math.inf, int(at[0] if origin is None else origin[at[0]]) + start)
    return finite


def _count_differing(total: Partial, points: Points, rule: Rule) -> None:
    """Add up finite elements whose bits differ."""
    diff, flat = points.diff, points.flat
    size = np.abs(diff)
    total.higher += int(np.count_nonzero(diff > 0))
    total.lower += int(np.count_nonzero(diff < 0))
    total.signed += float(diff.sum(dtype=np.float64))
    total.sum_diff += dot(diff, diff)
    total.sum_cross += dot(diff, points.expected)
    total.max_abs.see(size, flat)
    relative = size / np.maximum(np.maximum(np.abs(points.actual), np.abs(points.expected)), _TINY)
    total.max_rel.see(relative, flat)
    left = relative
    for i, threshold in enumerate(SWEEP):
        left = left[left > threshold]
        if not left.size:
            break
        total.sweep[i] += left.size
    total.ulp_max = max(total.ulp_max, int(points.distance.max()))
    add_distances(total.histogram, points.distance)
    measured, limit = rule(points)
    excess = measured - limit
    with np.errstate(divide="ignore", invalid="ignore"):
        total.limit_used = max(total.limit_used, float(np.nan_to_num(measured / limit, posinf=math.inf).max()))
    bad = int(np.count_nonzero(excess > 0))
    if bad:
        total.over += bad
        total.worst.see(excess, flat)
