"""Limits over all elements: budgets of those that may break a rule, and the bias of the signs."""

from __future__ import annotations

import math
from fractions import Fraction

from harness.compare.words import count_text, over_text
from harness.metrics import Metrics


def budget(fraction: float, points: int, compared: int) -> int:
    """Elements that may break a rule: the fraction of those compared, rounded down, but at least `points`."""
    return max(points, math.floor(Fraction(repr(fraction)) * compared))


def budget_share(count: int, allowed: int) -> float:
    """The share of a budget that a count takes; infinite for any count where nothing is allowed."""
    return count / allowed if allowed else math.inf if count else 0.0


def biased(metrics: Metrics, limit: float | None) -> list[str]:
    """What is said where more errors have one sign than the limit allows; empty where they do not."""
    if limit is None or abs(metrics.bias_z) <= limit:
        return []
    return [f"errors have one sign: {metrics.higher} up, {metrics.lower} down (z {metrics.bias_z:.1f}, {limit:g})"]


def bias_share(metrics: Metrics, limit: float | None) -> float:
    """The share of the limit of the bias that an output takes; 0 where the limit is none or 0."""
    return 0.0 if not limit else abs(metrics.bias_z) / limit


def step_limits(metrics: Metrics, allowed: int, bias_z: float | None) -> list[str]:
    """What breaks the limits of a rule in steps: no element over it, at most `allowed` that differ, no bias."""
    reasons = [over_text(metrics.over, metrics.compared, 0)] if metrics.over else []
    if metrics.differing > allowed:
        reasons.append(f"differing {count_text(metrics.differing, metrics.compared)}, allowed {allowed}")
    return reasons + biased(metrics, bias_z)


def step_share(metrics: Metrics, allowed: int, bias_z: float | None) -> float:
    """The largest share of any limit of `step_limits` that an output takes."""
    return max(metrics.limit_used, budget_share(metrics.differing, allowed), bias_share(metrics, bias_z))
