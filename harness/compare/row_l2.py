"""The relative L2 error of each token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from harness.compare.base import Comparator
from harness.compare.output import Output
from harness.compare.words import labelled
from harness.metrics import Rule


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
        return labelled(f"relative L2 of each token <= {self.rel_l2:g}", self.nonfinite)

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
