"""What a strip of a tensor adds up to, and the figures that follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from harness.metrics.bits import point_at
from harness.metrics.distances import BINS, percentile
from harness.metrics.figures import PERCENTILES, SWEEP, Array, Metrics, Point


@dataclass
class Extreme:
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
class Partial:
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
    histogram: Array = field(default_factory=lambda: np.zeros(BINS, np.int64))
    max_abs: Extreme = field(default_factory=Extreme)
    max_rel: Extreme = field(default_factory=Extreme)
    worst: Extreme = field(default_factory=Extreme)

    def add(self, other: Partial) -> None:
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(value, Extreme):
                mine.take(value.value, value.flat)
            elif name in ("ulp_max", "limit_used"):
                setattr(self, name, max(mine, value))
            else:
                setattr(self, name, mine + value)


def finish(total: Partial, actual: Tensor, expected: Tensor) -> Metrics:
    """The figures of two tensors whose strips add up to `total`."""

    def point(extreme: Extreme) -> Point | None:
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
        ulp={f"{p:g}": percentile(total.histogram, total.finite, total.ulp_max, p) for p in PERCENTILES},
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
