"""Snapshots of inputs and golden outputs: safetensors files beside a manifest that says what they are.

    DIR/<run id>/in.safetensors  out.safetensors  manifest.json

The manifest holds the run, scalars, versions, and SHA-256 of both files and of the golden's source, so that a stale
snapshot can be told from a fresh one. It is written in a temporary directory and renamed at the end.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from importlib import import_module
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from harness.errors import UsageError
from harness.judging import Prepared
from harness.run import Run
from harness.versions import versions
from specs.tensors import TensorSpec

FORMAT = 1


def save_snapshot(directory: Path, run: Run, prepared: Prepared) -> Path:
    """Write a snapshot below `directory`, replacing one of the same run. Raises UsageError when it cannot."""
    target = directory / run.id
    try:
        directory.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{run.id}-", dir=directory))
        try:
            _write(temporary, run, prepared)
            if target.exists():
                shutil.rmtree(target)
            temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise UsageError(f"cannot write a snapshot below {directory}: {error.strerror or error}") from error
    return target


def _write(directory: Path, run: Run, prepared: Prepared) -> None:
    tensors = {name: value for name, value in prepared.inputs.items() if isinstance(value, Tensor)}
    scalars = {name: value for name, value in prepared.inputs.items() if not isinstance(value, Tensor)}
    files = {"in.safetensors": tensors, "out.safetensors": prepared.golden}
    for name, content in files.items():
        save_file({key: value.contiguous() for key, value in content.items()}, directory / name)
    module = import_module(f"goldens.{run.op}")
    manifest = {
        "format": FORMAT,
        "run": run.as_dict(),
        "scalars": scalars,
        "tensors": {
            spec.name: {"shape": list(spec.shape), "dtype": str(spec.dtype), "role": spec.role}
            for spec in prepared.op.signature
            if isinstance(spec, TensorSpec)
        },
        "sha256": {name: _sha256(directory / name) for name in files},
        "golden_sha256": _sha256(Path(str(module.__file__))),
        "versions": versions(),
    }
    (directory / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
