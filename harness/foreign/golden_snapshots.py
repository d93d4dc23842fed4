"""Snapshots of the reference: `in/NAME.pt` and `out/NAME.pt`, one tensor a file (contracts/reference_harness.md 9)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from harness.foreign.golden_specs import ScalarSpec, Spec, TensorSpec
from harness.foreign.session import note


def read_inputs(root: Path, specs: Sequence[Spec]) -> dict[str, Tensor | ScalarSpec]:
    """Values by name from `root`/in: tensors of inputs and in-outs, scalars; pure outputs are zeros of the spec.

    A cached scalar replaces the spec's. Raises ValueError that lists every missing file of the snapshot, or names a
    malformed one. Shapes and dtypes of tensors are not checked, only noted.
    """
    missing = [path for path in _required(root, specs) if not path.is_file()]
    if missing:
        raise ValueError("golden_data lacks " + ", ".join(str(path) for path in missing))
    values: dict[str, Tensor | ScalarSpec] = {}
    for spec in specs:
        if isinstance(spec, ScalarSpec):
            values[spec.name] = _scalar(root, spec)
        elif spec.is_output and not spec.is_inout:
            values[spec.name] = torch.zeros(spec.shape, dtype=spec.dtype)
        else:
            values[spec.name] = _tensor(_path(root, "in", spec), spec)
    return values


def read_outputs(root: Path, specs: Sequence[Spec]) -> dict[str, Tensor]:
    """Expected outputs by name from `root`/out. Raises ValueError for a malformed file."""
    return {s.name: _tensor(_path(root, "out", s), s) for s in specs if isinstance(s, TensorSpec) and s.is_output}


def write(folder: Path, values: Mapping[str, Tensor]) -> None:
    """Write one file a tensor; views are stored without the rest of their storage."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        torch.save(value.detach().cpu().clone(), folder / f"{_plain(name)}.pt")


def _required(root: Path, specs: Sequence[Spec]) -> list[Path]:
    paths = []
    for spec in specs:
        pure_output = isinstance(spec, TensorSpec) and spec.is_output and not spec.is_inout
        if not pure_output:
            paths.append(_path(root, "in", spec))
        if isinstance(spec, TensorSpec) and spec.is_output:
            paths.append(_path(root, "out", spec))
    return paths


def _plain(name: str) -> str:
    if os.sep in name or "/" in name or name in ("", ".", ".."):
        raise ValueError(f"{name!r} is no file name")
    return name


def _path(root: Path, folder: str, spec: Spec) -> Path:
    return root / folder / f"{_plain(spec.name)}.pt"


def _load(path: Path) -> Tensor:
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is no tensor
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(value, Tensor):
        raise ValueError(f"{path} holds a {type(value).__name__}, not a tensor")
    return value


def _tensor(path: Path, spec: TensorSpec) -> Tensor:
    value = _load(path)
    if list(value.shape) != list(spec.shape) or value.dtype != spec.dtype:
        note(
            f"{path} is {value.dtype} {list(value.shape)}, the spec says {spec.dtype} {list(spec.shape)}: "
            "a stale snapshot?"
        )
    return value


def _scalar(root: Path, spec: ScalarSpec) -> ScalarSpec:
    path = _path(root, "in", spec)
    value = _load(path)
    if value.dim() != 0 or value.dtype != spec.dtype:
        raise ValueError(f"{path} is {value.dtype} {list(value.shape)}, expected a 0-dim tensor of {spec.dtype}")
    cached = ScalarSpec(spec.name, spec.dtype, value)
    if cached.python_value != spec.python_value:
        note(
            f"the snapshot's {spec.name} = {cached.python_value} replaces {spec.python_value}; comparators made "
            "from the command line keep the latter"
        )
    return cached
