"""Comparators: what it takes for one output to be right.

A comparator is a frozen value. Its parameters are keyword-only, and none has a default that would loosen it.
Shape and dtype must be equal before any number is looked at; NaN, infinities and elements that were never
written are failures; a budget is `max(points, floor(fraction * compared))`, so that the allowance of a small
output is stated, not rounded up. The label spells the whole rule. Contract: reference_harness.md 18.3.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from harness.locate import Axis, locate
from harness.metrics import Array, Metrics, Point, Points, Rule, measure, point_at

PASS, FAIL, EMPTY = "pass", "fail", "empty"


@dataclass(frozen=True)
class Output:
    """What is judged: the device's tensor, the golden's, and what is known about their elements.

    `valid`: bool mask of the elements that the contract defines, None for all. `undefined`: bool mask of those the
    device never wrote, None for none. `stages`: the golden's intermediates by name.
    """

    actual: Tensor
    expected: Tensor
    valid: Tensor | None = None
    undefined: Tensor | None = None
    stages: Mapping[str, Tensor] = field(default_factory=dict)


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
        unlike = _unlike(output.actual, output.expected)
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
            reasons.append(f"{_count(metrics.undefined, metrics.compared + metrics.undefined)} never written")
        if metrics.nonfinite_bad:
            reasons.append(
                f"{_count(metrics.nonfinite_bad, metrics.compared)} not finite "
                f"(actual {metrics.nonfinite_actual}, expected {metrics.nonfinite_expected})"
            )
        finite = replace(metrics, over=metrics.over - metrics.nonfinite_bad)
        reasons += self.limits(finite)
        used = self.used(finite)
        if not reasons:
            return Judgement(PASS, self.label, metrics, used=used)
        bad = bad_mask(output, rule, everything=metrics.over == 0)
        worst = metrics.worst or metrics.max_abs or first_bad(output, bad)
        return Judgement(FAIL, self.label, metrics, "; ".join(reasons), worst, locate(bad), used)


@dataclass(frozen=True, kw_only=True)
class Exact(Comparator):
    """Every bit equal: -0 is not +0."""

    kind: ClassVar[str] = "exact"

    @property
    def label(self) -> str:
        return _labelled("bit-equal", self.nonfinite)

    def rule(self, output: Output) -> Rule:
        return lambda points: (points.distance.astype(np.float64) + 1.0, 0.0)


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
        parts = [f"|a-e| <= {limit}", f"over {_budget(self.over_fraction, self.over_points)}"]
        if self.row_fraction is not None:
            parts.append(f"row <= {self.row_fraction:.4%}")
        return _labelled(", ".join(parts + _bias_label(self.bias_z)), self.nonfinite)

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
        return _over(metrics, self.over_fraction, self.over_points) + _biased(metrics, self.bias_z)

    def used(self, metrics: Metrics) -> float:
        allowed = budget(self.over_fraction, self.over_points, metrics.compared)
        share = _share(metrics.over, allowed) if allowed else metrics.limit_used
        return max(share, _bias_share(metrics, self.bias_z))

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
        parts.append(f"differing {_budget(self.differing_fraction, self.differing_points)}")
        parts += _bias_label(self.bias_z)
        if self.near_stage is not None:
            near = f"{self.near_stage} within {self.near:g} of a boundary"
            parts.append(f"{self.near_rows:.2%} of rows, at least 2: {near}")
        if self.flip_codes is not None:
            parts.append(f"{self.flip_rows:.2%} of rows, at least 1: {self.flip_limit:g} flips of {self.flip_codes}")
        return _labelled(", ".join(parts), self.nonfinite)

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
        reasons = [] if not metrics.over else [over_text(metrics.over, metrics.compared, 0)]
        allowed = budget(self.differing_fraction, self.differing_points, metrics.compared)
        if metrics.differing > allowed:
            reasons.append(f"differing {_count(metrics.differing, metrics.compared)}, allowed {allowed}")
        return reasons + _biased(metrics, self.bias_z)

    def used(self, metrics: Metrics) -> float:
        allowed = budget(self.differing_fraction, self.differing_points, metrics.compared)
        shares = metrics.limit_used, _share(metrics.differing, allowed), _bias_share(metrics, self.bias_z)
        return max(shares)

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
        parts = [f"{self.max_step} step", f"differing {_budget(self.step_fraction, self.step_points)}"]
        return _labelled(", ".join(parts + _bias_label(self.bias_z)), self.nonfinite)

    def rule(self, output: Output) -> Rule:
        return lambda points: (points.distance.astype(np.float64), float(self.max_step))

    def limits(self, metrics: Metrics) -> list[str]:
        reasons = [] if not metrics.over else [over_text(metrics.over, metrics.compared, 0)]
        allowed = budget(self.step_fraction, self.step_points, metrics.compared)
        if metrics.differing > allowed:
            reasons.append(f"differing {_count(metrics.differing, metrics.compared)}, allowed {allowed}")
        return reasons + _biased(metrics, self.bias_z)

    def used(self, metrics: Metrics) -> float:
        allowed = budget(self.step_fraction, self.step_points, metrics.compared)
        shares = metrics.limit_used, _share(metrics.differing, allowed), _bias_share(metrics, self.bias_z)
        return max(shares)


@dataclass(frozen=True, kw_only=True)
class TopK(Comparator):
    """Selected ids [..., K], judged by the golden's selection keys [..., N] of the ids that were chosen.

    At rank j the key of the chosen id must lie within `band` of the j-th largest key; ids are in range and
    distinct. So any order among ties is right, and every worse candidate is wrong. A golden row that is no such
    selection (a table look-up, the placeholder of an inactive token) and every negative golden id must be equal.
    Contract: hc_gate_experts.md 3.5, reference_harness.md R23.
    """

    kind: ClassVar[str] = "topk"
    keys: str
    band: float

    @property
    def label(self) -> str:
        return f"top-k by {self.keys}, band {self.band:g}; other rows equal"

    @property
    def stages(self) -> tuple[str, ...]:
        return (self.keys,)

    def rule(self, output: Output) -> Rule:
        k = output.expected.shape[-1]
        actual, golden = (t.reshape(-1, k).long() for t in (output.actual, output.expected))
        keys = output.stages[self.keys]
        keys = keys.reshape(-1, keys.shape[-1])
        bad = topk_bad(actual, golden, keys, self.band).reshape(-1).numpy()
        return lambda points: (bad[points.flat].astype(np.float64), 0.0)


def judge_pool(comparator: Comparator, output: Output, before: Tensor, mapped: Tensor) -> Judgement:
    """Judge a paged pool or state: elements that the call may write (`mapped`) by `comparator`, all others must have
    the bits they had `before`. Contract: decode_compressor_indexer.md 1.6, decode_attention.md 1, CB-5."""
    unlike = _unlike(output.actual, output.expected)
    label = f"{comparator.label}; unmapped elements keep their bits"
    if unlike:
        return Judgement(FAIL, label, None, unlike)
    kept = Exact(nonfinite="same").judge(replace(output, expected=before, valid=~mapped, stages={}))
    if kept.status == FAIL:
        return replace(kept, label=label, reason=f"unmapped elements were written: {kept.reason}")
    valid = mapped if output.valid is None else mapped & output.valid
    judged = comparator.judge(replace(output, valid=valid))
    status = kept.status if judged.status == EMPTY else judged.status
    return replace(judged, label=label, status=status)


def topk_bad(actual: Tensor, golden: Tensor, keys: Tensor, band: float) -> Tensor:
    """Bool [R, K]: chosen ids that are wrong, for actual and golden [R, K] INT64 and keys [R, N]."""
    n = keys.shape[1]
    keys = keys.double()
    golden_keys = keys.gather(1, golden.clamp(0, n - 1))
    ranked = keys.sort(dim=1, descending=True).values[:, : golden.shape[1]]
    padding = golden < 0
    selection = (padding | (golden_keys == ranked)).all(dim=1) & ~_repeats(golden, padding).any(dim=1)
    in_range = (actual >= 0) & (actual < n)
    near = (keys.gather(1, actual.clamp(0, n - 1)) - golden_keys).abs() <= band
    right = in_range & near & ~_repeats(actual, padding)
    strict = padding | ~selection.unsqueeze(1)
    return torch.where(strict, actual != golden, ~right)


def _repeats(ids: Tensor, padding: Tensor) -> Tensor:
    """True where another position of the row, padding aside, has the same id."""
    same = (ids.unsqueeze(2) == ids.unsqueeze(1)) & ~padding.unsqueeze(1) & ~padding.unsqueeze(2)
    return same.sum(dim=2) > 1


@dataclass(frozen=True, kw_only=True)
class RowL2(Comparator):
    """Relative L2 error per token: ||a - e|| <= rel_l2 * ||e||, and zeros where e is zeros. The first `row_axes` axes
    count the tokens.

    For an output at the end of a chain of which the device tells no stage: legal flips of INT8 codes spread over a row,
    so that no bound per element is both honest and of use. Contract: decode_attention.md 5.5.
    """

    kind: ClassVar[str] = "row_l2"
    rel_l2: float
    row_axes: int

    @property
    def label(self) -> str:
        return _labelled(f"relative L2 of each token <= {self.rel_l2:g}", self.nonfinite)

    def rule(self, output: Output) -> Rule:
        width = max(math.prod(output.expected.shape[self.row_axes :]), 1)
        keep = torch.ones_like(output.expected, dtype=torch.bool) if output.valid is None else output.valid
        actual, expected = (
            t.double().masked_fill(~keep, 0.0).nan_to_num(0.0, 0.0, 0.0).reshape(-1, width)
            for t in (output.actual, output.expected)
        )
        size = torch.linalg.vector_norm(expected, dim=1)
        error = torch.linalg.vector_norm(actual - expected, dim=1)
        relative = torch.where(error == 0, 0.0, error / size).numpy()
        return lambda points: (relative[points.flat // width], self.rel_l2)


COMPARATORS: dict[str, type[Comparator]] = {c.kind: c for c in (Exact, Close, Ulp, Codes, TopK, RowL2)}
"""Comparators by the name that `tolerances.yaml` uses."""


def budget(fraction: float, points: int, compared: int) -> int:
    """Elements that may break a rule: the fraction of those compared, rounded down, but at least `points`."""
    return max(points, math.floor(Fraction(repr(fraction)) * compared))


def over_text(over: int, compared: int, allowed: int) -> str:
    return f"over the limit {_count(over, compared)}, allowed {allowed}"


def bad_mask(output: Output, rule: Rule, *, everything: bool = False) -> Tensor:
    """Bool mask of the bad elements of a failed output; of all that differ where a limit over all was broken."""
    actual, expected = output.actual, output.expected
    valid = torch.ones_like(expected, dtype=torch.bool) if output.valid is None else output.valid
    bad = torch.zeros(expected.shape, dtype=torch.bool)  # zeros_like would keep the strides of a view
    flat = bad.view(-1)

    def marking(points: Points) -> tuple[Array, Array | float]:
        measured, limit = rule(points)
        marked = np.ones(points.flat.shape, bool) if everything else np.asarray(measured > limit)
        flat[torch.from_numpy(points.flat[marked])] = True
        return measured, limit

    measure(actual, expected, marking, valid=valid, undefined=output.undefined)
    if expected.is_floating_point():
        bad |= valid & ~(torch.isfinite(actual) & torch.isfinite(expected))
    if output.undefined is not None:
        bad |= valid & output.undefined
    return bad


def first_bad(output: Output, bad: Tensor) -> Point | None:
    """The first marked element."""
    at = torch.nonzero(bad.reshape(-1))
    return point_at(output.actual, output.expected, int(at[0])) if len(at) else None


def _unlike(actual: Tensor, expected: Tensor) -> str:
    if tuple(actual.shape) != tuple(expected.shape):
        return f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if actual.dtype != expected.dtype:
        return f"dtype {actual.dtype}, expected {expected.dtype}"
    return ""


def _over(metrics: Metrics, fraction: float, points: int) -> list[str]:
    allowed = budget(fraction, points, metrics.compared)
    return [over_text(metrics.over, metrics.compared, allowed)] if metrics.over > allowed else []


def _biased(metrics: Metrics, limit: float | None) -> list[str]:
    if limit is None or abs(metrics.bias_z) <= limit:
        return []
    return [f"errors have one sign: {metrics.higher} up, {metrics.lower} down (z {metrics.bias_z:.1f}, {limit:g})"]


def _share(count: int, allowed: int) -> float:
    return count / allowed if allowed else math.inf if count else 0.0


def _bias_share(metrics: Metrics, limit: float | None) -> float:
    return 0.0 if not limit else abs(metrics.bias_z) / limit


def _fullest_row(bad: Tensor, valid: Tensor | None, fraction: float) -> tuple[int, int, int, int]:
    """The row of the last axis that exceeds its budget by most: its number, bad count, width and budget."""
    width = bad.shape[-1]
    counts = bad.reshape(-1, width).sum(dim=1)
    valid = torch.ones_like(bad) if valid is None else valid
    sizes = valid.reshape(-1, width).sum(dim=1)
    allowed = torch.tensor([budget(fraction, 0, int(size)) for size in sizes])
    row = int((counts - allowed).argmax())
    return row, int(counts[row]), int(sizes[row]), int(allowed[row])


def _row_rms(output: Output) -> Tensor:
    """FP64 [rows]: RMS over the last axis of expected."""
    rows = output.expected.reshape(-1, output.expected.shape[-1])
    norms: Tensor = torch.linalg.vector_norm(rows.double(), dim=1)
    return norms / math.sqrt(rows.shape[1])


def _count(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / max(whole, 1):.4%})"


def _budget(fraction: float, points: int) -> str:
    if not fraction:
        return f"<= {points}" if points else "0"
    return f"<= max({points}, {fraction:.4%})" if points else f"<= {fraction:.4%}"


def _bias_label(bias_z: float | None) -> list[str]:
    return [] if bias_z is None else [f"|z| <= {bias_z:g}"]


def _labelled(text: str, nonfinite: str) -> str:
    return text if nonfinite == "refuse" else f"{text}, same NaN and infinities"
