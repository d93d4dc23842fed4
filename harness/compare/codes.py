"""Steps of a quantised code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from harness.compare.base import Comparator
from harness.compare.budgets import budget, step_limits, step_share
from harness.compare.output import Output
from harness.compare.words import bias_label, budget_label, labelled
from harness.metrics import Metrics, Rule


@dataclass(frozen=True, kw_only=True)
class Codes(Comparator):
    """Quantised values: no code further than `max_step`, few that differ, and no bias.

    `step_fraction` and `step_points` are the budget of codes that differ; `bias_z` catches a wrong rounding mode,
    whose errors all have one sign.
    """

    kind: ClassVar[str] = "codes"
    max_step: int
    step_fraction: float
    step_points: int
    bias_z: float

    @property
    def label(self) -> str:
        parts = [f"{self.max_step} step", f"differing {budget_label(self.step_fraction, self.step_points)}"]
        return labelled(", ".join(parts + bias_label(self.bias_z)), self.nonfinite)

    def rule(self, output: Output) -> Rule:
        return lambda points: (points.distance.astype(np.float64), float(self.max_step))

    def limits(self, metrics: Metrics) -> list[str]:
        allowed = budget(self.step_fraction, self.step_points, metrics.compared)
        return step_limits(metrics, allowed, self.bias_z)

    def used(self, metrics: Metrics) -> float:
        allowed = budget(self.step_fraction, self.step_points, metrics.compared)
        return step_share(metrics, allowed, self.bias_z)
