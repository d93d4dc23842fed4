"""What one output of one legal device would have needed of its tolerance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from harness.compare import FAIL, Close, Codes, Comparator, Judgement, Output, Ulp
from harness.metrics import Points, measure
from harness.tolerances import Entry, Tolerances

_LARGEST = 1e300  # JSON has no infinity


@dataclass(frozen=True)
class Observation:
    """Figures of one output in one run.

    `status`: of the tolerance in force; `compared`: elements; `count`: those that differ (for `exact`: in a bit);
    `need`: per parameter the least that this output passes with, the others as they are: `limit` is the largest error
    as a share of the limit of `close`, `max_ulp` and `max_step` are steps, `atol_rms` a share of the row's RMS;
    `spared`: it passed only because a flipped code or a last bit on a boundary explains what differs, so that its
    count says nothing about the budget.
    """

    status: str
    compared: int
    count: int
    need: Mapping[str, float] = field(default_factory=dict)
    spared: bool = False

    def as_dict(self) -> dict[str, Any]:
        return {"status": self.status, "compared": self.compared, "count": self.count, "need": dict(self.need)} | (
            {"spared": True} if self.spared else {}
        )


def observe(comparator: Comparator, output: Output, judged: Judgement) -> Observation:
    """The figures of one judged output."""
    if judged.metrics is None:  # another shape or dtype: no tolerance helps
        return Observation(judged.status, 0, 0)
    metrics = judged.metrics
    count = metrics.compared - metrics.bit_equal if comparator.kind == "exact" else metrics.differing
    need: dict[str, float] = {}
    spared = False
    if isinstance(comparator, Close):
        need["limit"] = min(_largest_share(comparator, output), _LARGEST)
    elif isinstance(comparator, Codes):
        need["max_step"] = metrics.ulp_max
    elif isinstance(comparator, Ulp):
        plain = metrics.over > 0 or bool(comparator.limits(metrics))
        spared = plain and judged.status != FAIL
        if not spared:
            need["max_ulp"], need["atol_rms"] = _steps(comparator, output)
    return Observation(judged.status, metrics.compared, count, need, spared)


def _points(output: Output) -> list[Points]:
    """The finite elements that differ, chunk by chunk."""
    found: list[Points] = []

    def keep(points: Points) -> tuple[Any, float]:
        found.append(points)
        return np.zeros(points.flat.shape), 0.0

    measure(output.actual, output.expected, keep, valid=output.valid, undefined=output.undefined)
    return found


def _largest_share(comparator: Close, output: Output) -> float:
    """Largest error over its limit; infinite where the limit is 0 and there is an error."""
    rule = comparator.rule(output)
    largest = 0.0
    for points in _points(output):
        measured, limit = rule(points)
        with np.errstate(divide="ignore"):
            largest = max(largest, float(np.max(measured / limit, initial=0.0)))
    return largest


def _steps(comparator: Ulp, output: Output) -> tuple[float, float]:
    """Largest number of steps among elements that the share of the row's RMS does not cover, and the largest such
    share among those further apart than the steps allowed."""
    width = output.expected.shape[-1]
    rows = output.expected.double().reshape(-1, width)
    rms = (torch.linalg.vector_norm(rows, dim=1) / width**0.5).numpy()
    steps, share = 0.0, 0.0
    for points in _points(output):
        row = rms[points.flat // width]
        error = np.abs(points.diff).astype(np.float64)
        covered = error <= comparator.atol_rms * row
        steps = max(steps, float(np.max(points.distance[~covered], initial=0)))
        far = points.distance > comparator.max_ulp
        with np.errstate(divide="ignore"):
            share = max(share, float(np.max(error[far] / row[far], initial=0.0)))
    return steps, min(share, _LARGEST)


class Observer:
    """Judges as a comparator does and keeps what was seen. It stands where a comparator stands in a tolerance."""

    def __init__(self, comparator: Comparator) -> None:
        self.comparator = comparator
        self.seen: Observation | None = None

    @property
    def kind(self) -> str:
        return self.comparator.kind

    @property
    def label(self) -> str:
        return self.comparator.label

    @property
    def stages(self) -> tuple[str, ...]:
        return self.comparator.stages

    def judge(self, output: Output) -> Judgement:
        judged = self.comparator.judge(output)
        self.seen = observe(self.comparator, output, judged)
        return judged


def observing(tolerances: Tolerances) -> tuple[Tolerances, dict[str, dict[str, Observer]]]:
    """The tolerances with an observer in each entry, and the observers by op and output."""
    observers = {
        op: {name: Observer(entry.comparator) for name, entry in entries.items()} for op, entries in tolerances.items()
    }
    watched = {
        op: {name: _watched(entry, observers[op][name]) for name, entry in entries.items()}
        for op, entries in tolerances.items()
    }
    return watched, observers


def _watched(entry: Entry, observer: Observer) -> Entry:
    comparator: Any = observer
    return Entry(entry.output, comparator, entry.given, entry.provenance, entry.line)
