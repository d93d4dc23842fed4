"""Writing a snapshot: in a temporary directory that gets its name when all of it is there."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from harness.errors import UsageError
from harness.judging import Prepared
from harness.run import Run
from harness.snapshots.layouts import REFERENCE, SAFETENSORS, write_group
from harness.snapshots.manifest import PARTIAL, scalars_of, write_manifest


def save_snapshot(directory: Path, run: Run, prepared: Prepared, layout: str = SAFETENSORS) -> Path:
    """Write a snapshot below `directory`, replacing one of the same run; its path. Raises UsageError when it cannot.

    A kill at any moment leaves the snapshot that was there, or none, beside a directory that is refused.
    """
    target = directory / run.inputs_id
    try:
        directory.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{run.inputs_id}-", suffix=PARTIAL, dir=directory))
        old = temporary.with_name(f"{temporary.name.removesuffix(PARTIAL)}-old{PARTIAL}")
        try:
            _write(temporary, run, prepared, layout)
            if target.exists():
                os.rename(target, old)
            os.rename(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise UsageError(f"cannot write a snapshot below {directory}: {error.strerror or error}") from error
    return target


def _write(directory: Path, run: Run, prepared: Prepared, layout: str) -> None:
    tensors = {name: value for name, value in prepared.inputs.items() if isinstance(value, Tensor)}
    scalars = {name: value for name, value in prepared.inputs.items() if not isinstance(value, Tensor)}
    if layout == REFERENCE:
        tensors |= {spec.name: torch.tensor(scalars[spec.name], dtype=spec.dtype) for spec in scalars_of(prepared.op)}
    groups = (("in", tensors), ("out", prepared.golden), ("stages", prepared.stages))
    files = [name for group, held in groups for name in write_group(directory, layout, group, held)]
    write_manifest(directory, layout, run, prepared.op, scalars, list(prepared.stages), files)
