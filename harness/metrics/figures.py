"""What is known of one output: its figures, their points, and the rule that points are judged by."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]

SWEEP = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Thresholds of the relative difference |a - e| / max(|a|, |e|) whose exceedances are counted."""

PERCENTILES = (50.0, 99.0, 99.9, 99.99)
"""Percentiles of the distance in units of the last place that are kept."""


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
