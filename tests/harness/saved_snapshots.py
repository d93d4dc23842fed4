"""What tests of snapshots share: one of rms_norm in each layout, and the bits of a tensor."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from harness.run import Run
from harness.snapshots.layouts import LAYOUTS
from harness.snapshots.save import save_snapshot
from harness.verify import prepare

RUN = Run("rms_norm")


def save_both(root: Path) -> dict[str, Path]:
    """A snapshot of RUN in each layout, by its name."""
    prepared, _ = prepare(RUN)
    return {layout: save_snapshot(root / layout, RUN, prepared, layout) for layout in LAYOUTS}


def of(path: Path, run: Run = RUN, **changes: object) -> Run:
    """The run, from a snapshot."""
    return dataclasses.replace(run, snapshot=str(path), **changes)  # type: ignore[arg-type]


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
