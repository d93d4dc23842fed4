"""Steps of the dtype, with what a last bit earlier on may move."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from harness.compare.base import FAIL, PASS, Comparator, Judgement
from harness.compare.budgets import budget, step_limits, step_share
from harness.compare.output import Output
from harness.compare.words import bias_label, budget_label, labelled
from harness.metrics import Array, Metrics, Points, Rule


@dataclass(frozen=True, kw_only=True)
class Ulp(Comparator):
    """No element further than `max_ulp` steps of the dtype, and few that differ at all.

    An element that is small because terms cancelled is judged by |a - e| <= atol_rms * RMS of its expected row (the
    last axis) instead. `differing_fraction` and `differing_points` are the budget of elements at least one step
    apart. `flip_codes` names a stage of INT8 codes, row by row the operand of the last matmul: a share `flip_rows`
    of the rows (at least one row) may break the rule if one code off by one explains it. Such a flip moves the row by
    d = 1 / norm of its codes, relative to its norm; rounding to the dtype turns a move below its spacing into rare
    whole steps, so the relative L2 error r is held to r^2 <= (c d)^2 + c d eps/2, c = `flip_limit`.
    `near_stage` names the stage that was rounded to give this output. An element one step apart is no difference
    where that stage lies within `near` (relative) of the boundary between the two values: a last bit of a factor that
    a whole row shares carries every element of the row with one significand across it together. That happens to few
    rows: to a share `near_rows`, at least two. A wrong rounding mode does it to all.
    Contract: dense.md 3 and 4.5, hc_gate_experts.md 1.5 and 4.5.
    """

    kind: ClassVar[str] = "ulp"
    max_ulp: int
    atol_rms: float
    differing_fraction: float
    differing_points: int
    bias_z: float | None = None
    flip_codes: str | None = None
    flip_limit: float | None = None
    flip_rows: float | None = None
    near_stage: str | None = None
    near: float | None = None
    near_rows: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if len({self.near_stage is None, self.near is None, self.near_rows is None}) != 1:
            raise ValueError("near_stage, near and near_rows stand together")
        if len({self.flip_codes is None, self.flip_limit is None, self.flip_rows is None}) != 1:
            raise ValueError("flip_codes, flip_limit and flip_rows stand together")

    @property
    def label(self) -> str:
        parts = [f"{self.max_ulp} ULP"]
        if self.atol_rms:
            parts[0] += f" or {self.atol_rms:g} row RMS"
        parts.append(f"differing {budget_label(self.differing_fraction, self.differing_points)}")
        parts += bias_label(self.bias_z)
        if self.near_stage is not None:
            near = f"{self.near_stage} within {self.near:g} of a boundary"
            parts.append(f"{self.near_rows:.2%} of rows, at least 2: {near}")
        if self.flip_codes is not None:
            parts.append(f"{self.flip_rows:.2%} of rows, at least 1: {self.flip_limit:g} flips of {self.flip_codes}")
        return labelled(", ".join(parts), self.nonfinite)

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(name for name in (self.flip_codes, self.near_stage) if name is not None)

    def rule(self, output: Output) -> Rule:
        if not self.atol_rms:
            return lambda points: (points.distance.astype(np.float64), float(self.max_ulp))
        slack = (self.atol_rms * _row_rms(output)).numpy()
        width = output.expected.shape[-1]

        def rule(points: Points) -> tuple[Array, float]:
            steps = points.distance.astype(np.float64)
            steps[np.abs(points.diff) <= slack[points.flat // width]] = 0.0
            return steps, float(self.max_ulp)

        return rule

    def limits(self, metrics: Metrics) -> list[str]:
        allowed = budget(self.differing_fraction, self.differing_points, metrics.compared)
        return step_limits(metrics, allowed, self.bias_z)

    def used(self, metrics: Metrics) -> float:
        allowed = budget(self.differing_fraction, self.differing_points, metrics.compared)
        return step_share(metrics, allowed, self.bias_z)

    def judge(self, output: Output) -> Judgement:
        judged = super().judge(output)
        if judged.status != FAIL or judged.metrics is None or not self.stages:
            return judged
        if judged.metrics.undefined or judged.metrics.nonfinite_bad:
            return judged
        valid = output.valid
        if self.near_stage is not None:
            valid = self._without_boundary_cases(output, output.stages[self.near_stage])
        if self.flip_codes is not None:
            valid = self._without_flipped_rows(replace(output, valid=valid), output.stages[self.flip_codes])
        spared = super()._judge(replace(output, valid=valid), self.rule(output))
        if spared.status == FAIL:
            return judged
        return replace(judged, status=PASS, reason="", worst=None, where=(), used=spared.used)

    def _without_boundary_cases(self, output: Output, rounded: Tensor) -> Tensor:
        """The valid mask, less the elements one step apart whose boundary the rounded stage all but touches, in as
        many rows as the budget has."""
        assert self.near is not None
        assert self.near_rows is not None
        actual, expected, stage = output.actual.double(), output.expected.double(), rounded.double()
        eps = torch.finfo(output.expected.dtype).eps
        size = torch.maximum(actual.abs(), expected.abs())
        one_step = (actual != expected) & ((actual - expected).abs() <= eps * size)
        touching = (stage - (actual + expected) / 2).abs() <= self.near * stage.abs()
        valid = torch.ones_like(one_step) if output.valid is None else output.valid
        width = expected.shape[-1]
        cases = (one_step & touching & valid).reshape(-1, width)
        allowed = budget(self.near_rows, 2, int(valid.reshape(-1, width).any(dim=1).sum()))
        rows = torch.argsort(cases.sum(dim=1), descending=True, stable=True)
        cases[rows[allowed:]] = False
        return valid & ~cases.reshape(expected.shape)

    def _without_flipped_rows(self, output: Output, codes: Tensor) -> Tensor:
        """The valid mask, less the most differing rows that one flipped code explains, within their budget."""
        assert self.flip_limit is not None
        assert self.flip_rows is not None
        width = output.expected.shape[-1]
        actual, expected = (t.reshape(-1, width) for t in (output.actual, output.expected))
        keep = torch.ones(output.expected.shape, dtype=torch.bool) if output.valid is None else output.valid.clone()
        rows = keep.view(-1, width)
        differing = ((actual != expected) & rows).sum(dim=1)
        allowed = budget(self.flip_rows, 1, int(rows.any(dim=1).sum()))
        for row in torch.argsort(differing, descending=True, stable=True)[:allowed].tolist():
            e = expected[row].double()
            error = float(torch.linalg.vector_norm(actual[row].double() - e))
            norm = float(torch.linalg.vector_norm(codes.reshape(-1, codes.shape[-1])[row].double()))
            moved = self.flip_limit * float(torch.linalg.vector_norm(e)) / max(norm, 1.0)
            spacing = torch.finfo(expected.dtype).eps / 2 * float(torch.linalg.vector_norm(e))
            if error * error <= moved * (moved + spacing):
                rows[row] = False
        return keep


def _row_rms(output: Output) -> Tensor:
    """FP64 [rows]: RMS over the last axis of expected."""
    rows = output.expected.reshape(-1, output.expected.shape[-1])
    norms: Tensor = torch.linalg.vector_norm(rows.double(), dim=1)
    return norms / math.sqrt(rows.shape[1])
