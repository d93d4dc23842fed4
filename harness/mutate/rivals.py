"""The gates of others, on the outputs that a mutant left: what each of them would have said.

They see what their users see. The reference repository compares the default case of a fixture, whole buffers, with the
comparator that `tolerances.yaml` records as `provenance.reference`; elements that nobody wrote read as zero, and those
that the contract leaves open are equal on both sides (reference_harness.md 5, 8, 12).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction

import torch
from torch import Tensor

from harness.foreign.golden_compare import ratio_allclose, ratio_reldiff, topk_pair_compare

GATES = ("reference", "assert_close", "cosine")
COSINE_LIMIT = 1e-3

_KNOWN = ("ratio_allclose", "allclose", "ratio_reldiff", "topk_pair_compare", "exact")

Outputs = Mapping[str, Tensor]
Check = Callable[[Tensor, Tensor, Outputs], bool]
"""Whether an output passes: actual, expected, all actual outputs."""


def reference_check(rule: str) -> Check | None:
    """The comparator that a provenance text names, None for a text that names none.

    Known: `ratio_allclose(atol 1e-4, rtol 1/128, ratio 0.005)`, `allclose(atol …, rtol …)`, `ratio_reldiff(diff_thd …,
    pct_thd …[, max_diff_hd …])`, `topk_pair_compare(NAME)` and `exact`; words after the parenthesis are remarks.
    """
    match = re.match(rf"({'|'.join(_KNOWN)})\b(?:\((.*?)\))?", rule)
    if match is None:
        return None
    name, inside = match[1], match[2] or ""
    if name == "topk_pair_compare":
        compare = topk_pair_compare(inside.strip())
        return lambda a, e, outputs: bool(compare(a, e, actual_outputs=outputs, expected_outputs={}, inputs={})[0])
    if name == "exact":
        return lambda a, e, _: torch.equal(a, e)
    try:
        numbers = {key: float(Fraction(value)) for key, value in (part.split() for part in inside.split(","))}
        if name == "allclose":
            return _allclose(numbers["atol"], numbers["rtol"])
        if name == "ratio_allclose":
            ratio = ratio_allclose(numbers["atol"], numbers["rtol"], numbers["ratio"])
        else:
            cap = numbers.get("max_diff_hd", math.inf)
            ratio = ratio_reldiff(numbers["diff_thd"], numbers["pct_thd"], cap)
    except (KeyError, ValueError):
        return None
    return lambda a, e, _: bool(ratio(a, e)[0])


def _allclose(atol: float, rtol: float) -> Check:
    return lambda a, e, _: torch.allclose(a, e, rtol=rtol, atol=atol)


def assert_close(actual: Tensor, expected: Tensor, _: Outputs) -> bool:
    """`torch.testing.assert_close` with its defaults."""
    try:
        torch.testing.assert_close(actual, expected)
    except AssertionError:
        return False
    return True


def cosine(actual: Tensor, expected: Tensor, _: Outputs) -> bool:
    """1 - 2<a, e> / (<a, a> + <e, e>) <= 1e-3, a common gate of kernel suites; equal zeros pass."""
    a, e = actual.double().flatten(), expected.double().flatten()
    if not bool(torch.isfinite(a).all() and torch.isfinite(e).all()):
        return False
    norms = float(a @ a + e @ e)
    return norms == 0.0 or 1.0 - 2.0 * float(a @ e) / norms <= COSINE_LIMIT


def rejected(
    actual: Outputs,
    expected: Outputs,
    defined: Mapping[str, Tensor | None],
    unwritten: Mapping[str, Tensor | None],
    rules: Mapping[str, str],
) -> dict[str, bool | None]:
    """Per gate of GATES whether it rejects the outputs; None where it has no rule for any of them.

    `defined`: bool masks of what the contract defines, `unwritten`: of what the device never wrote, None for all and
    none. `rules`: the provenance text per output.
    """
    seen = {name: _as_read(tensor, unwritten.get(name)) for name, tensor in actual.items()}
    verdicts: dict[str, list[bool]] = {gate: [] for gate in GATES}
    for name, tensor in expected.items():
        keep = defined.get(name)
        got = seen[name] if keep is None else torch.where(keep, seen[name], tensor)
        checks = {"reference": reference_check(rules.get(name, "")), "assert_close": assert_close, "cosine": cosine}
        for gate, check in checks.items():
            if check is not None:
                verdicts[gate].append(check(got, tensor, seen))
    return {gate: None if not passed else not all(passed) for gate, passed in verdicts.items()}


def _as_read(tensor: Tensor, unwritten: Tensor | None) -> Tensor:
    return tensor if unwritten is None else tensor.masked_fill(unwritten, 0)
