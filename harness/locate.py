"""Where the bad elements of an output sit: per axis, how many in which index. Computed only to explain a failure."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_SHOWN = 4


@dataclass(frozen=True)
class Axis:
    """Bad elements along one axis: its extent, and (index, count) of every index that has any, worst first."""

    extent: int
    counts: tuple[tuple[int, int], ...]


def locate(bad: Tensor) -> tuple[Axis, ...]:
    """Per axis of a bool mask, the indices that hold True elements. A scalar has no axis."""
    axes = []
    for axis in range(bad.dim()):
        others = [i for i in range(bad.dim()) if i != axis]
        counts = bad.sum(dim=others) if others else bad.long()
        order = torch.argsort(counts, descending=True, stable=True)[: int((counts > 0).sum())]
        axes.append(Axis(bad.shape[axis], tuple((int(i), int(counts[i])) for i in order)))
    return tuple(axes)


def describe(axes: tuple[Axis, ...], name: str = "axis") -> str:
    """`axis 0: all 8; axis 1: 3 of 4096: 17 (8), 18 (8), 19 (1)`; a run of indices is given as `512..1023`."""
    return "; ".join(f"{name} {number}: {_describe_axis(axis)}" for number, axis in enumerate(axes))


def _describe_axis(axis: Axis) -> str:
    indices = sorted(index for index, _ in axis.counts)
    if not indices:
        return "none"
    if len(indices) == axis.extent:
        return f"all {axis.extent}"
    head = f"{len(indices)} of {axis.extent}"
    if len(indices) > 1 and indices[-1] - indices[0] + 1 == len(indices):
        return f"{head}: {indices[0]}..{indices[-1]}"
    shown = ", ".join(f"{index} ({count})" for index, count in axis.counts[:_SHOWN])
    return f"{head}: {shown}{', …' if len(indices) > _SHOWN else ''}"
