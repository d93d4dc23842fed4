"""Comparators: what it takes for one output to be right.

A comparator is a frozen value. Its parameters are keyword-only, and none has a default that would loosen it.
Shape and dtype must be equal before any number is looked at; NaN, infinities and elements that were never
written are failures; a budget is `max(points, floor(fraction * compared))`, so that the allowance of a small
output is stated, not rounded up. The label spells the whole rule. Contract: reference_harness.md 18.3.

`base` says what a comparator and a judgement are, `output` what is judged. `budgets` and `words` hold the limits over
all elements and the text that comparators share. `exact`, `close`, `ulp`, `codes`, `topk` and `row_l2` hold one
comparator each. `pool` judges memory of which a call may write a part.
"""

from harness.compare.base import EMPTY, FAIL, PASS, Comparator, Judgement
from harness.compare.budgets import budget
from harness.compare.close import Close
from harness.compare.codes import Codes
from harness.compare.exact import Exact
from harness.compare.output import Output
from harness.compare.pool import judge_pool
from harness.compare.row_l2 import RowL2
from harness.compare.topk import TopK, topk_bad
from harness.compare.ulp import Ulp

__all__ = [
    "COMPARATORS",
    "EMPTY",
    "FAIL",
    "PASS",
    "Close",
    "Codes",
    "Comparator",
    "Exact",
    "Judgement",
    "Output",
    "RowL2",
    "TopK",
    "Ulp",
    "budget",
    "judge_pool",
    "topk_bad",
]

COMPARATORS: dict[str, type[Comparator]] = {c.kind: c for c in (Exact, Close, Ulp, Codes, TopK, RowL2)}
"""Comparators by the name that `tolerances.yaml` uses."""
