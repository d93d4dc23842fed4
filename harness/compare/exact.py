"""Bit equality."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from harness.compare.base import Comparator
from harness.compare.output import Output
from harness.compare.words import labelled
from harness.metrics import Rule


@dataclass(frozen=True, kw_only=True)
class Exact(Comparator):
    """Every bit equal: -0 is not +0."""

    kind: ClassVar[str] = "exact"

    @property
    def label(self) -> str:
        return labelled("bit-equal", self.nonfinite)

    def rule(self, output: Output) -> Rule:
        return lambda points: (points.distance.astype(np.float64) + 1.0, 0.0)
