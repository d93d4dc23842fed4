"""The reference repository's rules, from the text in which `tolerances.yaml` records them (reference_harness.md 12)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction

import torch
from torch import Tensor

from harness.foreign.golden_compare import ratio_allclose, ratio_reldiff, topk_pair_compare

Outputs = Mapping[str, Tensor]
Check = Callable[[Tensor, Tensor, Outputs], bool]
"""Whether an output passes: actual, expected, all actual outputs."""

_KNOWN = ("ratio_allclose", "allclose", "ratio_reldiff", "topk_pair_compare", "exact")


def reference_check(rule: str) -> Check | None:
    """The comparator that a provenance text names, None for a text that names none.

    Known: `ratio_allclose(atol 1e-4, rtol 1/128, ratio 0.005)`, `allclose(atol …, rtol …)`, `ratio_reldiff(diff_thd …,
    pct_thd …[, max_diff_hd …])`, `topk_pair_compare(NAME)` and `exact`; words after the parenthesis are remarks.
    """
    name, inside, numbers = _parsed(rule)
    if name == "topk_pair_compare" and inside:
        compare = topk_pair_compare(inside)
        return lambda a, e, outputs: bool(compare(a, e, actual_outputs=outputs, expected_outputs={}, inputs={})[0])
    if name == "exact":
        return lambda a, e, _: torch.equal(a, e)
    try:
        if name == "allclose":
            atol, rtol = numbers["atol"], numbers["rtol"]
            return lambda a, e, _: torch.allclose(a, e, rtol=rtol, atol=atol)
        if name == "ratio_allclose":
            ratio = ratio_allclose(numbers["atol"], numbers["rtol"], numbers["ratio"])
        elif name == "ratio_reldiff":
            cap = numbers.get("max_diff_hd", math.inf)
            ratio = ratio_reldiff(numbers["diff_thd"], numbers["pct_thd"], cap)
        else:
            return None
    except KeyError:
        return None
    return lambda a, e, _: bool(ratio(a, e)[0])


def reference_limits(rule: str) -> tuple[float, float, float] | None:
    """Absolute tolerance, relative tolerance and the share of elements that may exceed them; None for a text without
    such a rule."""
    name, _, numbers = _parsed(rule)
    if name == "exact":
        return 0.0, 0.0, 0.0
    try:
        if name == "allclose":
            return numbers["atol"], numbers["rtol"], 0.0
        if name == "ratio_allclose":
            return numbers["atol"], numbers["rtol"], numbers["ratio"]
        if name == "ratio_reldiff":
            return numbers["diff_thd"], numbers["diff_thd"], numbers["pct_thd"]
    except KeyError:
        return None
    return None


def _parsed(rule: str) -> tuple[str, str, dict[str, float]]:
    """Name, the text in parentheses, and its numbers by name."""
    match = re.match(rf"({'|'.join(_KNOWN)})\b(?:\((.*?)\))?", rule)
    if match is None:
        return "", "", {}
    inside = (match[2] or "").strip()
    numbers: dict[str, float] = {}
    for part in inside.split(","):
        words = part.split()
        if len(words) == 2:
            try:
                numbers[words[0]] = float(Fraction(words[1]))
            except ValueError:
                continue
    return match[1], inside, numbers
