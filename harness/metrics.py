"""All error figures of one output in one chunked pass: constant memory, any size, no verdict.

What is compared are the elements that are valid (the contract defines them) and defined (the device wrote
them). Most of an honest output is bit-equal, so a chunk is compared as bits first and only the elements that
differ are looked at as numbers. Every figure is defined in the docstring of `Metrics`;
`tests/harness/test_metrics.py` has the slow definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]

SWEEP = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Thresholds of the relative difference |a - e| / max(|a|, |e|) whose exceedances are counted."""

PERCENTILES = (50.0, 99.0, 99.9, 99.99)
"""Percentiles of the distance in units of the last place that are kept."""

CHUNK = 1 << 17
STRIP = 16 * CHUNK
_TINY = np.float32(1e-45)
_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
_INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool)
# The histogram of distances has one bin per float32 with 8 fraction bits: exact below 512, then within 0.4 %.
_BIN_SHIFT = 15
_FIRST_BIN = 127 << 8
_BINS = (192 << 8) - _FIRST_BIN + 1


@dataclass(frozen=True)
class Point:
    """One element: its index, both values, both bit patterns, and the distance in units of the last place."""

    index: tuple[int, ...]
    actual: float | int
    expected: float | int
    actual_bits: str
    expected_bits: str
    distance: int | None


@dataclass(frozen=True)
class Points:
    """The differing, finite elements of one chunk, as parallel arrays, for a rule to judge.

    `flat` is the position in the flattened tensor; `actual` and `expected` are FP32 for 16-bit floats, else
    FP64; `diff` is actual - expected; `distance` counts steps of the output's dtype (codes for integers).
    """

    flat: Array
    actual: Array
    expected: Array
    diff: Array
    distance: Array


Rule = Callable[[Points], tuple[Array, Array | float]]
"""Gives per point a measure and its limit, in one unit; a point is bad where the measure exceeds the limit."""


@dataclass(frozen=True)
class Metrics:
    """Figures of one output. Errors are actual - expected, over the compared elements finite on both sides.

    elements: all; compared: valid and written; undefined: valid but never written.
    over: compared elements that break the rule, non-finite ones included; over_fraction: over / compared.
    limit_used: the largest share of its own limit that an element's measure takes (above 1: it breaks the rule).
    differing: distance of at least one step (-0 and +0 are none); bit_equal: compared with equal bits.
    higher, lower: elements with a positive, a negative error; bias_z: (higher - lower) / sqrt(higher + lower).
    nonfinite_actual, nonfinite_expected: NaN and infinities; nonfinite_bad: those that the policy refuses.
    ulp_max, ulp: distance in steps of the output's dtype, maximum and percentiles (nearest rank: the lowest
    distance that at least that share of the elements does not exceed, rounded up by at most 0.4 % above 512).
    sweep: share of elements whose |a - e| / max(|a|, |e|) exceeds each threshold of SWEEP.
    max_abs, max_rel: the elements with the largest |a - e| and |a - e| / max(|a|, |e|), None when all are equal.
    rel_l2: norm of the errors over the norm of expected (infinite when only the latter is 0).
    cosine: of the two vectors; 1 when both are 0, 0 when one is.
    mean_error: mean signed error over compared elements.
    worst: the bad element that exceeds its limit by most (a non-finite one first), None when none is bad.
    """

    elements: int
    compared: int
    undefined: int
    over: int
    limit_used: float
    differing: int
    bit_equal: int
    higher: int
    lower: int
    nonfinite_actual: int
    nonfinite_expected: int
    nonfinite_bad: int
    ulp_max: int
    ulp: dict[str, int]
    sweep: dict[str, float]
    max_abs: Point | None
    max_abs_error: float
    max_rel: Point | None
    max_rel_error: float
    rel_l2: float
    cosine: float
    mean_error: float
    worst: Point | None

    @property
    def over_fraction(self) -> float:
        return self.over / self.compared if self.compared else 0.0

    @property
    def differing_fraction(self) -> float:
        return self.differing / self.compared if self.compared else 0.0

    @property
    def bias_z(self) -> float:
        total = self.higher + self.lower
        return (self.higher - self.lower) / math.sqrt(total) if total else 0.0


@dataclass
class _Extreme:
    """The largest value seen, and where."""

    value: float = -math.inf
    flat: int = -1

    def see(self, values: Array, flat: Array) -> None:
        at = int(values.argmax())
        self.take(float(values[at]), int(flat[at]))

    def take(self, value: float, flat: int) -> None:
        if value > self.value:
            self.value, self.flat = value, flat


@dataclass
class _Partial:
    """What one strip of the tensor adds up to."""

    compared: int = 0
    undefined: int = 0
    over: int = 0
    unequal: int = 0
    higher: int = 0
    lower: int = 0
    nonfinite_actual: int = 0
    nonfinite_expected: int = 0
    nonfinite_bad: int = 0
    finite: int = 0
    ulp_max: int = 0
    limit_used: float = 0.0
    sum_expected: float = 0.0
    sum_diff: float = 0.0
    sum_cross: float = 0.0
    signed: float = 0.0
    sweep: Array = field(default_factory=lambda: np.zeros(len(SWEEP), np.int64))
    histogram: Array = field(default_factory=lambda: np.zeros(_BINS, np.int64))
    max_abs: _Extreme = field(default_factory=_Extreme)
    max_rel: _Extreme = field(default_factory=_Extreme)
    worst: _Extreme = field(default_factory=_Extreme)

    def add(self, other: _Partial) -> None:
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(value, _Extreme):
                mine.take(value.value, value.flat)
            elif name in ("ulp_max", "limit_used"):
                setattr(self, name, max(mine, value))
            else:
                setattr(self, name, mine + value)


class _Side:
    """One tensor as flat arrays: its bit patterns and, on request, its numbers."""

    def __init__(self, tensor: Tensor) -> None:
        flat = tensor.detach().reshape(-1).contiguous()
        self.dtype = tensor.dtype
        self.is_float = tensor.dtype in _BITS
        if not self.is_float and tensor.dtype not in _INTEGERS:
            raise TypeError(f"cannot compare tensors of {tensor.dtype}")
        if tensor.dtype == torch.bool:
            flat = flat.view(torch.uint8)
        self.bits: Array = flat.view(_BITS[tensor.dtype]).numpy() if self.is_float else flat.numpy()

    def numbers(self, bits: Array) -> Array:
        """FP32 for 16-bit floats (exact), FP64 otherwise (exact but for integers above 2^53)."""
        if self.dtype == torch.bfloat16:
            wide: Array = bits.view(np.uint16).astype(np.uint32)
            wide <<= 16
            return wide.view(np.float32)
        if self.dtype == torch.float16:
            return bits.view(np.float16).astype(np.float32)
        if self.dtype == torch.float32:
            return bits.view(np.float32).astype(np.float64)
        return bits.astype(np.float64)

    def squares(self, bits: Array) -> float:
        """Sum of squares; not finite exactly when an element is not."""
        numbers: Array = bits.view(np.float32) if self.dtype == torch.float32 else self.numbers(bits)
        total = float(np.dot(numbers, numbers))
        # Outside this range a square may have left the range of FP32 although no element did.
        if numbers.dtype == np.float32 and not 1e-20 < total < math.inf:
            numbers = numbers.astype(np.float64)
            total = float(np.dot(numbers, numbers))
        return total

    def steps(self, actual: Array, expected: Array) -> Array:
        """Distance in steps of the dtype: ordered-integer distance for floats, |a - e| for integers."""
        if self.is_float:
            return np.asarray(np.abs(_ordered(actual) - _ordered(expected)))
        if actual.dtype.itemsize < 8:
            return np.asarray(np.abs(actual.astype(np.int64) - expected.astype(np.int64)))
        a, e = actual.view(np.uint64), expected.view(np.uint64)
        # Modulo 2^64: exact where int64 would overflow.
        return np.asarray(np.where(actual > expected, a - e, e - a))


def _ordered(bits: Array) -> Array:
    """Integers in the order of the floats, both zeros at 0."""
    wide = bits.astype(np.int32 if bits.dtype == np.int16 else np.int64)
    magnitude = wide & (0x7FFF if bits.dtype == np.int16 else 0x7FFFFFFF)
    return np.asarray(np.where(wide < 0, -magnitude, magnitude))


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
    sides = _Side(actual), _Side(expected)
    keep, lost = (None if m is None else m.reshape(-1).contiguous().numpy() for m in (valid, undefined))

    def strip(start: int) -> _Partial:
        total = _Partial()
        # Squares and differences may leave the range of FP32; where that matters they are taken in FP64.
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            for at in range(start, min(start + STRIP, expected.numel()), CHUNK):
                _chunk(total, at, sides[0], sides[1], keep, lost, rule, same_nonfinite)
        return total

    total = _Partial()
    for partial in _in_order(strip, range(0, expected.numel(), STRIP)):
        total.add(partial)
    return _finish(total, actual, expected)


def _in_order(work: Callable[[int], _Partial], starts: range) -> Iterator[_Partial]:
    threads = min(torch.get_num_threads(), len(starts))
    if threads <= 1:
        yield from map(work, starts)
    else:
        with ThreadPoolExecutor(threads) as pool:
            yield from pool.map(work, starts)


def _chunk(
    total: _Partial,
    start: int,
    actual: _Side,
    expected: _Side,
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
    total: _Partial, start: int, origin: Array | None, a: Array, e: Array, same_nonfinite: bool
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


def _count_differing(total: _Partial, points: Points, rule: Rule) -> None:
    """Add up finite elements whose bits differ."""
    diff, flat = points.diff, points.flat
    size = np.abs(diff)
    total.higher += int(np.count_nonzero(diff > 0))
    total.lower += int(np.count_nonzero(diff < 0))
    total.signed += float(diff.sum(dtype=np.float64))
    total.sum_diff += _dot(diff, diff)
    total.sum_cross += _dot(diff, points.expected)
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
    _add_distances(total.histogram, points.distance)
    measured, limit = rule(points)
    excess = measured - limit
    with np.errstate(divide="ignore", invalid="ignore"):
        total.limit_used = max(total.limit_used, float(np.nan_to_num(measured / limit, posinf=math.inf).max()))
    bad = int(np.count_nonzero(excess > 0))
    if bad:
        total.over += bad
        total.worst.see(excess, flat)


def _add_distances(histogram: Array, distance: Array) -> None:
    """Bin 0 is left out: it is what remains."""
    histogram[1] += np.count_nonzero(distance == 1)
    rest = distance[distance > 1]
    if rest.size:
        bins = (rest.astype(np.float32).view(np.int32) >> _BIN_SHIFT) - _FIRST_BIN + 1
        histogram += np.bincount(bins, minlength=_BINS)


def _percentile(histogram: Array, finite: int, largest: int, percent: float) -> int:
    """Nearest rank; the upper end of its bin."""
    if not finite:
        return 0
    cumulative = finite - int(histogram[1:].sum()) + np.cumsum(histogram[1:])
    rank = math.ceil(percent / 100 * finite)
    if finite - int(histogram[1:].sum()) >= rank:
        return 0
    above = int(np.searchsorted(cumulative, rank)) + 1  # the bin after the one that reaches the rank
    edge = np.array((above + _FIRST_BIN) << _BIN_SHIFT, np.int32).view(np.float32)
    return min(largest, math.ceil(float(edge)) - 1)


def _dot(a: Array, b: Array) -> float:
    total = float(np.dot(a, b))
    if a.dtype == np.float32 and not 1e-20 < abs(total) < math.inf:
        total = float(np.dot(a.astype(np.float64), b.astype(np.float64)))
    return total


def _finish(total: _Partial, actual: Tensor, expected: Tensor) -> Metrics:
    def point(extreme: _Extreme) -> Point | None:
        return point_at(actual, expected, extreme.flat) if extreme.flat >= 0 else None

    norm_e = math.sqrt(total.sum_expected)
    norm_d = math.sqrt(total.sum_diff)
    norm_a = math.sqrt(max(total.sum_expected + 2 * total.sum_cross + total.sum_diff, 0.0))
    dot = total.sum_expected + total.sum_cross
    cosine = dot / (norm_a * norm_e) if norm_a and norm_e else float(norm_a == norm_e)
    return Metrics(
        elements=expected.numel(),
        compared=total.compared,
        undefined=total.undefined,
        over=total.over,
        limit_used=total.limit_used,
        differing=int(total.histogram[1:].sum()),
        bit_equal=total.compared - total.unequal,
        higher=total.higher,
        lower=total.lower,
        nonfinite_actual=total.nonfinite_actual,
        nonfinite_expected=total.nonfinite_expected,
        nonfinite_bad=total.nonfinite_bad,
        ulp_max=total.ulp_max,
        ulp={f"{p:g}": _percentile(total.histogram, total.finite, total.ulp_max, p) for p in PERCENTILES},
        sweep={f"{t:g}": int(n) / max(total.finite, 1) for t, n in zip(SWEEP, total.sweep, strict=True)},
        max_abs=point(total.max_abs),
        max_abs_error=max(total.max_abs.value, 0.0),
        max_rel=point(total.max_rel),
        max_rel_error=max(total.max_rel.value, 0.0),
        rel_l2=norm_d / norm_e if norm_e else math.inf if norm_d else 0.0,
        cosine=max(-1.0, min(1.0, cosine)),
        mean_error=total.signed / max(total.finite, 1),
        worst=point(total.worst),
    )


def point_at(actual: Tensor, expected: Tensor, flat: int) -> Point:
    """The element at position `flat` of the flattened tensors."""
    index = tuple(int(i) for i in np.unravel_index(flat, tuple(expected.shape)))
    a, e = actual[index], expected[index]
    sides = _Side(a), _Side(e)
    finite = bool(torch.isfinite(a)) and bool(torch.isfinite(e))
    distance = int(sides[0].steps(sides[0].bits, sides[1].bits)[0]) if finite else None
    return Point(index, a.item(), e.item(), _hex(sides[0].bits), _hex(sides[1].bits), distance)


def _hex(bits: Array) -> str:
    return "0x" + bits.astype(bits.dtype.newbyteorder(">")).tobytes().hex()
