"""What every comparator is, and the judgement that it gives."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

from harness.compare.output import Output, bad_mask, first_bad, mismatch, unwritten
from harness.compare.words import count_text, over_text
from harness.locate import Axis, locate
from harness.metrics import Metrics, Point, Rule, measure

PASS, FAIL, EMPTY = "pass", "fail", "empty"


@dataclass(frozen=True)
class Judgement:
    """The verdict on one output. `status`: pass, fail, or empty when there was no element to compare.

    `reason` says what broke which limit ("" unless failed); `worst` is the element that did so by most, `where` the
    bad elements per axis. `used`: the largest share of a limit that was taken. `metrics` is None where shapes or dtypes
    differ.
    """

    status: str
    label: str
    metrics: Metrics | None
    reason: str = ""
    worst: Point | None = None
    where: tuple[Axis, ...] = ()
    used: float = 0.0

    @property
    def passed(self) -> bool:
        return self.status == PASS


@dataclass(frozen=True, kw_only=True)
class Comparator(ABC):
    """Base of all comparators. `nonfinite`: "refuse" any, or accept the "same" NaN or infinity on both sides."""

    kind: ClassVar[str]
    nonfinite: str = "refuse"

    def __post_init__(self) -> None:
        if self.nonfinite not in ("refuse", "same"):
            raise ValueError(f"nonfinite is {self.nonfinite!r}, expected refuse or same")
        for name, value in vars(self).items():
            if isinstance(value, (int, float)) and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value!r}, expected a finite number >= 0")
            if name.endswith(("_fraction", "_rows")) and value is not None and value > 1:
                raise ValueError(f"{name} is {value!r}, expected a fraction of at most 1")

    @property
    @abstractmethod
    def label(self) -> str:
        """The whole rule in one line."""

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the golden's intermediates that the rule needs."""
        return ()

    @abstractmethod
    def rule(self, output: Output) -> Rule:
        """The per-element rule."""

    def limits(self, metrics: Metrics) -> list[str]:
        """What breaks a limit over all elements, in words; empty if nothing does."""
        return [] if metrics.over == 0 else [over_text(metrics.over, metrics.compared, 0)]

    def used(self, metrics: Metrics) -> float:
        """The largest share of any of its limits that an output takes: 0 for bit equality, 1 at a limit. Where a
        budget of elements may break the per-element rule, that rule is no limit, and the budget is."""
        return metrics.limit_used

    def judge(self, output: Output) -> Judgement:
        """Judge one output. Never raises for what a device may hand back."""
        unlike = mismatch(output.actual, output.expected)
        if unlike:
            return Judgement(FAIL, self.label, None, unlike)
        return self._judge(output, self.rule(output))

    def _judge(self, output: Output, rule: Rule) -> Judgement:
        metrics = measure(
            output.actual,
            output.expected,
            rule,
            valid=output.valid,
            undefined=output.undefined,
            same_nonfinite=self.nonfinite == "same",
        )
        if metrics.compared + metrics.undefined == 0:
            return Judgement(EMPTY, self.label, metrics)
        reasons = []
        if metrics.undefined:
            reasons.append(f"{count_text(metrics.undefined, metrics.compared + metrics.undefined)} never written")
        if metrics.nonfinite_bad:
            reasons.append(
                f"{count_text(metrics.nonfinite_bad, metrics.compared)} not finite "
                f"(actual {metrics.nonfinite_actual}, expected {metrics.nonfinite_expected})"
            )
        finite = replace(metrics, over=metrics.over - metrics.nonfinite_bad)
        broken = self.limits(finite)
        reasons += broken
        used = self.used(finite)
        if not reasons:
            return Judgement(PASS, self.label, metrics, used=used)
        if not broken and not metrics.nonfinite_bad:  # what was written is right
            bad = unwritten(output)
            worst = first_bad(output, bad)
        else:
            bad = bad_mask(output, rule, everything=metrics.over == 0)
            worst = metrics.worst or metrics.max_abs or first_bad(output, bad)
        return Judgement(FAIL, self.label, metrics, "; ".join(reasons), worst, locate(bad), used)
