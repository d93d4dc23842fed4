"""Selected ids by the keys that they were selected by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from harness.compare.base import Comparator
from harness.compare.output import Output
from harness.metrics import Rule


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
