"""A paged pool or state: what the call may write by a rule, everything else bit by bit."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from harness.compare.base import EMPTY, FAIL, Comparator, Judgement
from harness.compare.exact import Exact
from harness.compare.output import Output, mismatch


def judge_pool(comparator: Comparator, output: Output, before: Tensor, mapped: Tensor) -> Judgement:
    """Judge a paged pool or state: elements that the call may write (`mapped`) by `comparator`, all others must have
    the bits they had `before`. Contract: decode_compressor_indexer.md 1.6, decode_attention.md 1, CB-5."""
    unlike = mismatch(output.actual, output.expected)
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
