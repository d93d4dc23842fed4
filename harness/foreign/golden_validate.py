"""`golden.validate_golden` (contracts/reference_harness.md, section 8)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from harness.foreign.golden_compare import NOTE, Comparator
from harness.foreign.session import note

_SHOWN = 20


def validate_golden(
    outputs: Mapping[str, Tensor],
    golden: Mapping[str, Tensor],
    rtol: float = 1e-5,
    atol: float = 1e-5,
    compare_fn: Mapping[str, Comparator] | None = None,
    inputs: Mapping[str, Tensor] | None = None,
) -> None:
    """Compare every output with its golden, by its comparator or by torch.allclose, and print a line each.

    Raises AssertionError, after all were visited, that lists every failed output; KeyError for an output without
    golden; RuntimeError from torch where shapes do not broadcast or dtypes differ.
    """
    comparators = dict(compare_fn or {})
    for name in sorted(set(comparators) - set(outputs)):
        note(f"compare_fn names {name!r}, which is no output: it is never used")
    failures: dict[str, str] = {}
    for name, value in outputs.items():
        actual, expected = value.detach().cpu(), golden[name].detach().cpu()
        compare = comparators.get(name)
        if compare is None:
            label = ""
            passed, text = _allclose(actual, expected, rtol, atol)
        else:
            label = str(getattr(compare, "__name__", "custom"))
            passed, text = compare(
                actual,
                expected,
                actual_outputs=outputs,
                expected_outputs=golden,
                inputs=dict(inputs or {}),
                rtol=rtol,
                atol=atol,
            )
        suffix = f" ({label})" if label else ""
        what = f"'{name}' {'PASS' if passed else 'FAIL'}  shape={tuple(actual.shape)} dtype={actual.dtype}"
        print(f"[RUN]   {what}{suffix}")
        if not passed:
            failures[name] = f"'{name}' shape={tuple(actual.shape)} dtype={actual.dtype}\n{text}"
        else:
            _notes(name, actual, expected, label, text)
    if failures:
        names = ", ".join(f"'{name}'" for name in failures)
        raise AssertionError(f"golden mismatch in {names}\n" + "\n".join(failures.values()))


def _notes(name: str, actual: Tensor, expected: Tensor, label: str, text: str) -> None:
    """What Goldengate would not have accepted in an output that passed."""
    if actual.shape != expected.shape:
        note(f"{name}: shapes {tuple(actual.shape)} and {tuple(expected.shape)} differ and were broadcast")
    if actual.dtype != expected.dtype:
        note(f"{name}: dtypes {actual.dtype} and {expected.dtype} differ")
    if label.startswith("ratio_") and not actual.is_floating_point() and _beyond_fp32(actual):
        note(f"{name}: integers beyond 2^24 were compared in FP32")
    if isinstance(text, str) and text.startswith(NOTE):
        note(f"{name}: {text.removeprefix(NOTE)}")


def _beyond_fp32(values: Tensor) -> bool:
    """Whether an integer tensor holds values that FP32 cannot tell from their neighbours."""
    return bool((values.to(torch.int64).abs() > 2**24).any())


def _allclose(actual: Tensor, expected: Tensor, rtol: float, atol: float) -> tuple[bool, str]:
    """torch.allclose, whose tolerance is computed in the tensors' dtype; the text lists the first mismatches."""
    if torch.allclose(actual, expected, rtol=rtol, atol=atol):
        return True, ""
    bad = ~torch.isclose(actual, expected, rtol=rtol, atol=atol)
    actual, expected, bad = actual.expand_as(bad), expected.expand_as(bad), bad.flatten()
    lines = [f"{int(bad.sum())} of {bad.numel()} elements mismatch, rtol={rtol:g} atol={atol:g}"]
    for index in bad.nonzero().flatten()[:_SHOWN].tolist():
        lines.append(f"[{index}] actual={actual.flatten()[index].item()} expected={expected.flatten()[index].item()}")
    return False, "\n".join(lines)
