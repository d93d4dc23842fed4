"""How the tensors of a snapshot lie on disk.

    safetensors   in.safetensors  out.safetensors  stages.safetensors
    reference     in/NAME.pt  out/NAME.pt  stages/NAME.pt      (contracts/reference_harness.md 9.1; stages are ours)

Either way every bit of a tensor is kept, and a view is stored without the rest of its storage.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.errors import UsageError

SAFETENSORS, REFERENCE = LAYOUTS = ("safetensors", "reference")


def write_group(directory: Path, layout: str, group: str, tensors: Mapping[str, Tensor]) -> list[str]:
    """Write tensors as one group ("in", "out" or "stages"); the files, relative to the directory.

    Raises OSError when it cannot.
    """
    compact = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
               for name, tensor in tensors.items()}  # fmt: skip
    if layout == SAFETENSORS:
        save_file(compact, directory / f"{group}.safetensors")
        return [f"{group}.safetensors"]
    (directory / group).mkdir()
    for name, tensor in compact.items():
        torch.save(tensor, directory / group / f"{name}.pt")
    return [f"{group}/{name}.pt" for name in compact]


def read_group(directory: Path, layout: str, group: str, names: Iterable[str]) -> dict[str, Tensor]:
    """The named tensors of a group. Raises UsageError that names a file which is missing or no tensor."""
    if layout == SAFETENSORS:
        tensors = _load_safetensors(directory / f"{group}.safetensors")
        missing = [name for name in names if name not in tensors]
        if missing:
            raise UsageError(f"snapshot {directory}: {group}.safetensors lacks {', '.join(missing)}")
        return {name: tensors[name] for name in names}
    return {name: _load_pt(directory / group / f"{name}.pt") for name in names}


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        loaded: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path} cannot be read: {_first_line(error)}") from error
    return loaded


def _load_pt(path: Path) -> Tensor:
    """A tensor that torch.save wrote; nothing in the file is executed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of other protocols, before they are refused
            value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is no tensor
        raise UsageError(f"{path} cannot be read: {_first_line(error)}") from error
    if not isinstance(value, Tensor):
        raise UsageError(f"{path} holds a {type(value).__name__}, not a tensor")
    return value.detach().clone(memory_format=torch.contiguous_format)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
