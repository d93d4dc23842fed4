"""From what an ensemble needed to a tolerance: the maximum times a margin, rounded up.

The share of a `close` limit is scaled as a whole, so that its absolute and its relative part keep their proportion.
Steps are whole and take no margin: a value that is legally carried across a rounding boundary lands one step further,
and not two. The share of elements that may differ is that of the case with most, times the margin; where none differed,
three in all its elements, the upper end of a 95 % confidence interval. The points that a small output may have are the
count that an honest one exceeds once in 10^5 runs. What the ensemble says nothing about is left as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from harness.compare import FAIL, Close, Codes, Comparator, Ulp
from harness.reference import reference_limits

MARGIN = 2.0
_RARE = 1e-5
_LARGE = 500.0
_RULE_OF_THREE = 3.0
_LEAST_CLOSE = 2.0**-23  # one step of FP32, relative


@dataclass(frozen=True)
class Need:
    """What the ensemble needed of one output. `runs`: those that compared an element; `failed`: under the tolerance in
    force; `elements`, `differing`: of all runs whose count says something; `most`: the largest count in one run, by the
    number of elements that were compared; `need`: largest need per parameter; `rate`: share that differs in the case
    where it is largest, since a mean over all cases would hide the one that has most."""

    runs: int
    failed: int
    elements: int
    differing: int
    most: Mapping[int, int]
    need: Mapping[str, float]
    rate: float


def gathered(observations: Sequence[Mapping[str, Any]]) -> Need:
    """The figures of one output over an ensemble; observations as in the journal."""
    told = [o for o in observations if o["compared"]]
    counted = [o for o in told if not o.get("spared")]
    cases = {o.get("case") for o in counted}
    names = dict.fromkeys(name for o in told for name in o["need"])
    return Need(
        runs=len(told),
        failed=sum(o["status"] == FAIL for o in observations),
        elements=sum(o["compared"] for o in counted),
        differing=sum(o["count"] for o in counted),
        most={
            size: max(o["count"] for o in counted if o["compared"] == size)
            for size in sorted({o["compared"] for o in counted})
        },
        need={name: max(o["need"].get(name, 0.0) for o in told) for name in names},
        rate=max((_rate([o for o in counted if o.get("case") == case]) for case in cases), default=0.0),
    )


def _rate(observations: Sequence[Mapping[str, Any]]) -> float:
    return float(sum(o["count"] for o in observations) / sum(o["compared"] for o in observations))


@dataclass(frozen=True)
class Fit:
    """One parameter of one output: what was observed, what follows, and what the file says."""

    op: str
    output: str
    parameter: str
    observed: float
    fitted: float
    now: float

    @property
    def looser(self) -> bool:
        """Whether it would let more pass than the file does."""
        return self.fitted > self.now


def fits(op: str, output: str, comparator: Comparator, need: Need, margin: float = MARGIN) -> list[Fit]:
    """The parameters of an output that the ensemble says something about; none where nothing was compared."""
    if not need.elements:
        return []

    def fit(name: str, observed: float, fitted: float) -> Fit:
        now = float(getattr(comparator, name))
        # Nothing seen bounds a share from above; it is no evidence that the one in force is too small.
        return Fit(op, output, name, observed, fitted if need.differing else min(fitted, now), now)

    if isinstance(comparator, Close):
        share = need.need["limit"]
        scaled = {name: getattr(comparator, name) for name in ("rtol", "atol", "magnitude_tol")}
        return [
            fit(name, value * share, rounded_up(max(value * share * margin, min(value, _LEAST_CLOSE))))
            for name, value in scaled.items()
            if value
        ]
    if isinstance(comparator, (Ulp, Codes)):
        step, share_name, points = (
            ("max_ulp", "differing_fraction", "differing_points")
            if isinstance(comparator, Ulp)
            else ("max_step", "step_fraction", "step_points")
        )
        rate = max(need.rate, _RULE_OF_THREE / margin / need.elements)
        allowed = {size: max(rare_count(rate * size), most) for size, most in need.most.items()}
        least = allowed[min(allowed)]
        # Larger outputs need more where the points are too few and the share leaves no room for chance.
        share = max([rate * margin, *(count / size for size, count in allowed.items() if count > least)])
        found = [
            fit(step, need.need.get(step, 0.0), max(need.need.get(step, 0.0), 1.0)),
            fit(share_name, need.rate, rounded_up(min(share, 1.0))),
            fit(points, max(need.most.values()), least),
        ]
        rms = need.need.get("atol_rms", 0.0)
        if isinstance(comparator, Ulp) and rms:
            found.append(fit("atol_rms", rms, rounded_up(rms * margin)))
        return found
    return []


def rare_count(mean: float) -> int:
    """The least count that a Poisson variable of this mean exceeds with a probability of at most 1e-5.

    Above 500, where e^-mean nears the smallest number there is, by the Cornish-Fisher expansion, rounded up.
    """
    if mean > _LARGE:
        z = NormalDist().inv_cdf(1.0 - _RARE)
        return math.ceil(mean + z * math.sqrt(mean) + (z * z - 1.0) / 6.0)
    term = total = math.exp(-mean)
    count = 0
    while 1.0 - total > _RARE:
        count += 1
        term *= mean / count
        total += term
    return count


def rounded_up(value: float, digits: int = 2) -> float:
    """The least number of that many decimal digits that is not below `value`."""
    if value <= 0.0:
        return 0.0
    exponent = math.floor(math.log10(value)) - digits + 1
    scaled = math.ceil(value / 10.0**exponent * (1.0 - 1e-12))
    return float(f"{scaled}e{exponent}")


def looser_than_reference(comparator: Comparator, rule: str) -> bool:
    """Whether a tolerance accepts what the reference's rule rejects.

    `close` lets every element be at its limit, so that limit may not be wider anywhere; of steps and codes only a share
    may differ, so either the step or the share must be within the reference's. False for a rule without numbers
    (top-k) and for a text without a rule.
    """
    limits = reference_limits(rule)
    if limits is None:
        return False
    absolute, relative, share = limits
    if isinstance(comparator, Close):
        return comparator.rtol > relative or comparator.atol > absolute or comparator.over_fraction > share
    if isinstance(comparator, Codes):
        return comparator.max_step > absolute and comparator.step_fraction > share
    if isinstance(comparator, Ulp):
        return comparator.max_ulp * 2.0**-7 > relative and comparator.differing_fraction > share
    return False
