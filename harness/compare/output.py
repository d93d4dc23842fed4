"""What is judged, and which of its elements are bad."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from harness.metrics import Array, Point, Points, Rule, measure, point_at


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


def mismatch(actual: Tensor, expected: Tensor) -> str:
    """How shape or dtype differ, "" where they do not."""
    if tuple(actual.shape) != tuple(expected.shape):
        return f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if actual.dtype != expected.dtype:
        return f"dtype {actual.dtype}, expected {expected.dtype}"
    return ""


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


def unwritten(output: Output) -> Tensor:
    """Bool mask of the elements that the contract defines and the device never wrote."""
    mask = torch.zeros(output.expected.shape, dtype=torch.bool) if output.undefined is None else output.undefined
    return mask if output.valid is None else mask & output.valid


def first_bad(output: Output, bad: Tensor) -> Point | None:
    """The first marked element."""
    at = torch.nonzero(bad.reshape(-1))
    return point_at(output.actual, output.expected, int(at[0])) if len(at) else None
