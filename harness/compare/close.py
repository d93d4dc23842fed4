"""An absolute and a relative tolerance, and a share of the magnitude of a sum."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from harness.compare.base import FAIL, Comparator, Judgement
from harness.compare.budgets import bias_share, biased, budget, budget_share
from harness.compare.output import Output, bad_mask
from harness.compare.words import bias_label, budget_label, labelled, over_text
from harness.locate import locate
from harness.metrics import Array, Metrics, Points, Rule


@dataclass(frozen=True, kw_only=True)
class Close(Comparator):
    """|a - e| <= atol + rtol * |e| for all but a budget of elements; optionally no bias, and a budget per row.

    `over_fraction` and `over_points` are the budget over all elements, `row_fraction` (rounded down) the one for
    each row of the last axis. `bias_z` bounds |share of positive errors - share of negative ones| in standard
    deviations of a fair coin. For a long accumulation, `magnitude` names the stage that holds, per element, the sum of
    the absolute terms, or a bound of it; `magnitude_tol` of it is tolerated as well. Reordering a sum moves it by a
    share of that, however small the sum itself is by cancellation (dense.md 3).
    """

    kind: ClassVar[str] = "close"
    rtol: float
    atol: float
    over_fraction: float
    over_points: int
    bias_z: float | None = None
    row_fraction: float | None = None
    magnitude: str | None = None
    magnitude_tol: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.magnitude is None) != (self.magnitude_tol is None):
            raise ValueError("magnitude and magnitude_tol stand together")

    @property
    def label(self) -> str:
        limit = f"{self.atol:g} + {self.rtol:g}|e|"
        if self.magnitude is not None:
            limit += f" + {self.magnitude_tol:g} {self.magnitude}"
        parts = [f"|a-e| <= {limit}", f"over {budget_label(self.over_fraction, self.over_points)}"]
        if self.row_fraction is not None:
            parts.append(f"row <= {self.row_fraction:.4%}")
        return labelled(", ".join(parts + bias_label(self.bias_z)), self.nonfinite)

    @property
    def stages(self) -> tuple[str, ...]:
        return () if self.magnitude is None else (self.magnitude,)

    def rule(self, output: Output) -> Rule:
        if self.magnitude is None or self.magnitude_tol is None:
            return self._rule
        # expand: a stage may hold one magnitude per row.
        size = output.stages[self.magnitude].double().expand(output.expected.shape).reshape(-1).numpy()
        share = self.magnitude_tol

        def rule(points: Points) -> tuple[Array, Array]:
            measured, limit = self._rule(points)
            return measured, limit + share * size[points.flat]

        return rule

    def _rule(self, points: Points) -> tuple[Array, Array]:
        # In FP64: a tolerance computed in the tensors' dtype gives equal numbers unequal verdicts (W27).
        expected = points.expected.astype(np.float64)
        return np.abs(points.actual.astype(np.float64) - expected), self.atol + self.rtol * np.abs(expected)

    def limits(self, metrics: Metrics) -> list[str]:
        return _over(metrics, self.over_fraction, self.over_points) + biased(metrics, self.bias_z)

    def used(self, metrics: Metrics) -> float:
        allowed = budget(self.over_fraction, self.over_points, metrics.compared)
        share = budget_share(metrics.over, allowed) if allowed else metrics.limit_used
        return max(share, bias_share(metrics, self.bias_z))

    def judge(self, output: Output) -> Judgement:
        judged = super().judge(output)
        if self.row_fraction is None or not judged.passed or judged.metrics is None or not judged.metrics.over:
            return judged
        bad = bad_mask(output, self.rule(output))
        row, count, width, allowed = _fullest_row(bad, output.valid, self.row_fraction)
        if count <= allowed:
            return judged
        reason = f"row {row}: {over_text(count, width, allowed)}"
        return replace(judged, status=FAIL, reason=reason, worst=judged.metrics.worst, where=locate(bad))


def _over(metrics: Metrics, fraction: float, points: int) -> list[str]:
    allowed = budget(fraction, points, metrics.compared)
    return [over_text(metrics.over, metrics.compared, allowed)] if metrics.over > allowed else []


def _fullest_row(bad: Tensor, valid: Tensor | None, fraction: float) -> tuple[int, int, int, int]:
    """The row of the last axis that exceeds its budget by most: its number, bad count, width and budget."""
    width = bad.shape[-1]
    counts = bad.reshape(-1, width).sum(dim=1)
    valid = torch.ones_like(bad) if valid is None else valid
    sizes = valid.reshape(-1, width).sum(dim=1)
    allowed = torch.tensor([budget(fraction, 0, int(size)) for size in sizes])
    row = int((counts - allowed).argmax())
    return row, int(counts[row]), int(sizes[row]), int(allowed[row])
