"""The comparators of the package `golden`, by its formulas (contracts/reference_harness.md, section 12).

A comparator is called with (actual, expected) and the keyword arguments `actual_outputs`, `expected_outputs`, `inputs`,
`rtol`, `atol`, and returns (verdict, text). The text of a pass is empty, or a line `note: …` where Goldengate would
have refused. Where July and HEAD of the reference differ, the verdict is HEAD's: non-finite values on either side
fail, and empty tensors pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Verdict = tuple[bool, str]
Comparator = Callable[..., Verdict]
NOTE = "note: "


def _fp32(value: Tensor) -> Tensor:
    return value.detach().cpu().to(torch.float32)


def _non_finite(actual: Tensor, expected: Tensor) -> str | None:
    """Counts of NaN and infinity per side, None when there are none."""
    parts = [
        f"{side}: {int(torch.isnan(t).sum())} NaN, {int(torch.isinf(t).sum())} Inf"
        for side, t in (("actual", actual), ("expected", expected))
        if not bool(torch.isfinite(t).all())
    ]
    return "; ".join(parts) or None


def _caveat(bad: int, ratio: float, a: Tensor, e: Tensor) -> str:
    """The note for a pass that Goldengate would refuse: nothing was compared, or the budget was rounded up."""
    count = (a - e).numel()
    if count == 0:
        return f"{NOTE}the tensor is empty: nothing was compared"
    if bad <= math.floor(ratio * count):
        return ""
    return f"{NOTE}{bad} of {count} points exceed the tolerance, more than the stated fraction {ratio:g}"


class _Decided(Exception):
    """The prefix options decide: args are a verdict."""


def _prefix(actual: Tensor, expected: Tensor, rows: int | None, axis: int, zero_tail: bool) -> tuple[Tensor, Tensor]:
    """Both sides in FP32, restricted to the first `rows` entries along `axis` (12.5). Raises _Decided."""
    actual, expected = _fp32(actual), _fp32(expected)
    if rows is None:
        return actual, expected
    length = actual.shape[axis]
    if not 0 <= rows <= length:
        raise _Decided(False, f"valid_rows={rows} is outside 0..{length} of axis {axis}")
    if zero_tail:
        stray = int(torch.count_nonzero(actual.narrow(axis, rows, length - rows)))
        if stray:
            raise _Decided(False, f"{stray} elements behind row {rows} are not zero")
    if rows == 0:
        raise _Decided(True, f"{NOTE}no valid row: nothing was compared")
    return actual.narrow(axis, 0, rows), expected.narrow(axis, 0, rows)


def _ratio_allclose(actual: Tensor, expected: Tensor, atol: float, rtol: float, ratio: float, show: int) -> Verdict:
    found = _non_finite(actual, expected)
    if found is not None:
        return False, f"non-finite values: {found}"
    difference = (actual - expected).abs()
    tolerance = atol + rtol * expected.abs()
    bad = difference > tolerance
    count, total = int(bad.sum()), bad.numel()
    limit = round(ratio * total)
    if count <= limit:
        return True, _caveat(count, ratio, actual, expected)
    actual, expected = actual.expand_as(difference), expected.expand_as(difference)
    worst = int(difference.argmax())
    flat = difference.flatten()
    lines = [
        f"{count} of {total} points are bad (ratio {count / total:.6f}, allowed {ratio:g}, {limit} points)",
        f"atol={atol:g} rtol={rtol:g}; largest difference {flat[worst].item():.6g} at {worst}, "
        f"tolerance there {tolerance.expand_as(difference).flatten()[worst].item():.6g}",
    ]
    for index in bad.flatten().nonzero().flatten()[:show].tolist():
        lines.append(
            f"[{index}] actual={actual.flatten()[index].item():.8g} expected={expected.flatten()[index].item():.8g} "
            f"diff={flat[index].item():.6g} tol={tolerance.expand_as(difference).flatten()[index].item():.6g}"
        )
    return False, "\n".join(lines)


def ratio_allclose(
    atol: float | None = None,
    rtol: float | None = None,
    max_error_ratio: float = 0.005,
    max_show: int = 10,
    valid_rows: int | None = None,
    valid_axis: int = 0,
    zero_tail: bool = False,
) -> Comparator:
    """Passes when at most round(max_error_ratio · N) points have |a − e| > atol + rtol·|e|, in FP32 (12.1, 12.5).

    None for `atol` or `rtol` takes the run's. `valid_rows` compares the first rows along `valid_axis` only; with
    `zero_tail` the rest of actual must be zero. Raises ValueError for a ratio outside 0..1.
    """
    if not 0.0 <= max_error_ratio <= 1.0:
        raise ValueError(f"max_error_ratio must be in [0, 1], got {max_error_ratio}")
    absolute, relative = atol, rtol

    def compare(actual: Tensor, expected: Tensor, *, rtol: float = 1e-5, atol: float = 1e-5, **_: Any) -> Verdict:
        try:
            a, e = _prefix(actual, expected, valid_rows, valid_axis, zero_tail)
        except _Decided as verdict:
            return verdict.args[0], verdict.args[1]
        return _ratio_allclose(
            a,
            e,
            atol if absolute is None else absolute,
            rtol if relative is None else relative,
            max_error_ratio,
            max_show,
        )

    compare.__name__ = (
        f"ratio_allclose(atol={atol}, rtol={rtol}, max_error_ratio={max_error_ratio}, valid_rows={valid_rows}, "
        f"valid_axis={valid_axis}, zero_tail={zero_tail})"
    )
    return compare


def relative_difference(actual: Tensor, expected: Tensor, threshold: float) -> Tensor:
    """r of section 12.2: |a − e| where that is below `threshold`, else it over max(|a|, |e|, 2⁻¹⁴/threshold) + 1e-9."""
    difference = (actual - expected).abs()
    base = torch.maximum(actual.abs(), expected.abs()).clamp_min(2.0**-14 / threshold) + 1e-9
    return torch.where(difference < threshold, difference, difference / base)


def ratio_reldiff(
    diff_thd: float = 0.01,
    pct_thd: float = 0.05,
    max_diff_hd: float = math.inf,
    max_show: int = 10,
    valid_rows: int | None = None,
    valid_axis: int = 0,
    zero_tail: bool = False,
) -> Comparator:
    """Passes when at most round(pct_thd · N) points have r > diff_thd and the worst is below max_diff_hd (12.2, 12.5).

    r is `relative_difference`, so every point with |a − e| < diff_thd is good. Raises ValueError for a parameter
    out of range.
    """
    if diff_thd <= 0:
        raise ValueError(f"diff_thd must be positive, got {diff_thd}")
    if not 0.0 <= pct_thd <= 1.0:
        raise ValueError(f"pct_thd must be in [0, 1], got {pct_thd}")
    if max_diff_hd <= 0:
        raise ValueError(f"max_diff_hd must be positive, got {max_diff_hd}")

    def compare(actual: Tensor, expected: Tensor, **_: Any) -> Verdict:
        try:
            a, e = _prefix(actual, expected, valid_rows, valid_axis, zero_tail)
        except _Decided as verdict:
            return verdict.args[0], verdict.args[1]
        found = _non_finite(a, e)
        if found is not None:
            return False, f"non-finite values: {found}"
        r = relative_difference(a, e, diff_thd)
        bad = r > diff_thd
        count, total = int(bad.sum()), bad.numel()
        limit = round(pct_thd * total)
        worst = float(r[bad].max()) if count else 0.0
        reasons = []
        if count > limit:
            reasons.append(f"{count} of {total} points exceed {diff_thd:g} (allowed {pct_thd:g} = {limit} points)")
        if not worst < max_diff_hd:
            reasons.append(f"worst relative difference {worst:.6g} is not below {max_diff_hd:g}")
        if not reasons:
            return True, _caveat(count, pct_thd, a, e)
        a, e = a.expand_as(r), e.expand_as(r)
        lines = ["; ".join(reasons), f"diff_thd={diff_thd:g} pct_thd={pct_thd:g} max_diff_hd={max_diff_hd:g}"]
        for index in bad.flatten().nonzero().flatten()[:max_show].tolist():
            x, y, relative = (side.flatten()[index].item() for side in (a, e, r))
            lines.append(f"[{index}] actual={x:.8g} expected={y:.8g} diff={abs(x - y):.6g} reldiff={relative:.6g}")
        return False, "\n".join(lines)

    compare.__name__ = (
        f"ratio_reldiff(diff_thd={diff_thd}, pct_thd={pct_thd}, max_diff_hd={max_diff_hd}, valid_rows={valid_rows}, "
        f"valid_axis={valid_axis}, zero_tail={zero_tail})"
    )
    return compare


def topk_pair_compare(vals_name: str, dim: int = -1, descending: bool = True, max_show: int = 10) -> Comparator:
    """Indices may differ where the actual values of the output `vals_name` are in order there (12.3)."""

    def compare(actual: Tensor, expected: Tensor, *, actual_outputs: Mapping[str, Tensor], **_: Any) -> Verdict:
        if vals_name not in actual_outputs:
            return False, f"topk_pair_compare is misconfigured: there is no output {vals_name!r}"
        ids, wanted, values = actual.cpu(), expected.cpu(), actual_outputs[vals_name].detach().cpu()
        if ids.shape != wanted.shape:
            return False, f"index shapes differ: {list(ids.shape)} and {list(wanted.shape)}"
        if ids.shape != values.shape:
            return False, f"index shape {list(ids.shape)} differs from value shape {list(values.shape)}"
        if not -ids.dim() <= dim < ids.dim():
            return False, f"dim {dim} is out of range for {ids.dim()} dimensions"
        ids, wanted, values = (t.movedim(dim, -1) for t in (ids, wanted, values))
        left, right = values[..., :-1], values[..., 1:]
        step = left >= right if descending else left <= right
        ordered = torch.ones(values.shape, dtype=torch.bool)
        ordered[..., :-1] &= step
        ordered[..., 1:] &= step
        bad = (ids != wanted) & ~ordered
        if not bool(bad.any()):
            number = int((ids != wanted).sum())
            if number:
                return (
                    True,
                    f"{NOTE}{number} indices differ and are judged by the order of {vals_name!r} alone",
                )
            return True, "" if bool(ordered.all()) else f"{NOTE}{vals_name!r} is out of order and was not looked at"
        lines = [f"{int(bad.sum())} differing indices have values out of order"]
        for index in bad.nonzero()[:max_show].tolist():
            at = tuple(index)
            lines.append(f"{index} actual={ids[at].item()} expected={wanted[at].item()} value={values[at].item():.8g}")
        return False, "\n".join(lines)

    compare.__name__ = f"topk_pair_compare(vals_name={vals_name!r}, dim={dim}, descending={descending})"
    return compare


_ROW_TYPES = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


def mapped_pool_ratio_allclose(
    mapping_name: str,
    mapping_shape: list[int] | tuple[int, ...],
    block_size: int,
    leading_rank_axis: bool = False,
    pool_name: str = "pool",
    atol: float | None = None,
    rtol: float | None = None,
    max_error_ratio: float = 0.005,
    max_show: int = 10,
) -> Comparator:
    """Rows of a pool that the input `mapping_name` names are compared by ratio_allclose, all others exactly (12.6).

    The pool is [blocks, block_size, …], or [ranks, blocks, block_size, …]; −1 in the mapping is no row. Raises
    ValueError for a parameter out of range.
    """
    shape = tuple(mapping_shape)
    if not shape or any(extent <= 0 for extent in shape) or (leading_rank_axis and len(shape) < 2):
        raise ValueError(f"mapping_shape {list(shape)} needs positive extents, with a rank axis at least two")
    if block_size <= 0:
        raise ValueError(f"block_size must be positive, got {block_size}")
    inner = ratio_allclose(atol, rtol, max_error_ratio, max_show)

    def compare(actual: Tensor, expected: Tensor, *, inputs: Mapping[str, Tensor], **run: Any) -> Verdict:
        a, e = actual.detach().cpu(), expected.detach().cpu()
        axis = 2 if leading_rank_axis else 1
        if a.shape != e.shape or a.dim() <= axis or a.shape[axis] != block_size:
            return (
                False,
                f"{pool_name}: shapes {list(a.shape)}, {list(e.shape)}; axis {axis} must be {block_size}",
            )
        if mapping_name not in inputs:
            return False, f"{pool_name}: there is no input {mapping_name!r}"
        mapping = inputs[mapping_name].cpu()
        if mapping.dtype not in _ROW_TYPES or tuple(mapping.shape) != shape:
            return (
                False,
                f"{pool_name}: mapping {mapping_name!r} is {mapping.dtype} {list(mapping.shape)}, not {list(shape)}",
            )
        ranks = a.shape[0] if leading_rank_axis else 1
        if leading_rank_axis and shape[0] != ranks:
            return False, f"{pool_name}: {ranks} ranks, the mapping has {shape[0]}"
        a, e = (t.reshape(ranks, math.prod(t.shape[axis - 1 : axis + 1]), -1) for t in (a, e))
        rows = a.shape[1]
        owned = torch.zeros(ranks, rows, dtype=torch.bool)
        for rank, named in enumerate(mapping.reshape(ranks, -1).to(torch.int64)):
            if bool((named < -1).any()) or bool((named >= rows).any()):
                return False, f"{pool_name}: a mapping value is outside -1..{rows - 1}"
            used = named[named >= 0]
            if used.unique().numel() != used.numel():
                return False, f"{pool_name}: rank {rank} names a row twice"
            owned[rank, used] = True
        stray = (a != e).any(dim=2) & ~owned
        if bool(stray.any()):
            rank, row = stray.nonzero()[0].tolist()
            return (
                False,
                f"{pool_name}: {int(stray.sum())} unmapped rows changed, first rank {rank} row {row}",
            )
        if not bool(owned.any()):
            return True, ""
        return inner(a[owned], e[owned], **run)

    compare.__name__ = f"mapped_pool_ratio_allclose(mapping_name={mapping_name!r}, max_error_ratio={max_error_ratio})"
    return compare


_LARGEST_QUANTILE = 16_777_216  # torch.quantile's limit, which the reference inherits


def error_distribution(
    diff_thds: tuple[float, ...] = (1e-3, 3e-3, 5e-3, 1e-2, 3e-2, 5e-2),
    quantiles: tuple[float, ...] = (0.5, 0.9, 0.99, 0.999, 0.9999, 1.0),
    always_pass: bool = True,
) -> Comparator:
    """Prints how far two tensors are apart, and passes; with always_pass=False non-finite actual values fail (12.4).

    Unlike the reference it takes empty tensors and, without the quantiles, any size.
    """

    def compare(actual: Tensor, expected: Tensor, **_: Any) -> Verdict:
        a, e = _fp32(actual), _fp32(expected)
        both = a - e
        a, e = a.expand_as(both).flatten(), e.expand_as(both).flatten()
        for line in _distribution(a, e, diff_thds, quantiles):
            print(f"[RUN]     {line}")
        if not always_pass and not bool(torch.isfinite(a).all()):
            return False, f"non-finite values in actual: {int((~torch.isfinite(a)).sum())}"
        return True, f"{NOTE}error_distribution measures, it does not judge"

    compare.__name__ = f"error_distribution(always_pass={always_pass})"
    return compare


def _distribution(a: Tensor, e: Tensor, thresholds: tuple[float, ...], quantiles: tuple[float, ...]) -> list[str]:
    if a.numel() == 0:
        return ["empty tensor"]
    difference = (a - e).abs()
    relative = difference / torch.maximum(a.abs(), e.abs()).clamp_min(1e-6)
    norm = float(torch.linalg.vector_norm(a - e)) / max(float(torch.linalg.vector_norm(e)), 1e-12)
    cosine = float(torch.nn.functional.cosine_similarity(a, e, dim=0))
    lines = [f"rel-L2 {norm * 100:.4f}%  cosine {cosine:.8f}  mean |golden| {float(e.abs().mean()):.6g}"]
    for threshold in thresholds:
        r = relative_difference(a, e, threshold)
        bad = r > threshold
        worst = float(r[bad].max()) if bool(bad.any()) else 0.0
        lines.append(f"r > {threshold:g}: {float(bad.float().mean()) * 100:.4f}%  worst {worst:.6g}")
    for name, values in (
        ("relative difference", relative),
        ("absolute difference", difference),
        ("|golden|", e.abs()),
    ):
        finite = values[torch.isfinite(values)]
        if 0 < finite.numel() <= _LARGEST_QUANTILE:
            found = torch.quantile(finite, torch.tensor(quantiles, dtype=torch.float32))
            parts = " ".join(f"p{q * 100:g}={v:.6g}" for q, v in zip(quantiles, found.tolist(), strict=True))
            lines.append(f"{name} quantiles: {parts}")
    return lines
