"""The module that a kernel file imports as `pypto.language`, built from the op table."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

from harness.devices.emulator import annotations, dtypes, enums, ops
from harness.devices.emulator import control as control  # registers its ops
from harness.devices.emulator.functions import JitFamily
from harness.devices.emulator.optable import OPS
from harness.devices.emulator.runtime import CONSTRUCTS

_TYPES = {
    "Tensor": annotations.Tensor,
    "Tile": annotations.Tile,
    "Out": annotations.Out,
    "InOut": annotations.InOut,
    "Scalar": annotations.Scalar,
    "Array": annotations.Array,
    "dynamic": annotations.DynVar,
}
_ENUMS = {
    "Level": enums.Level,
    "MemorySpace": enums.MemorySpace,
    "Mem": enums.MemorySpace,
    "ScopeMode": enums.ScopeMode,
    "SplitMode": enums.SplitMode,
    "AtomicType": enums.AtomicType,
    "PadValue": enums.PadValue,
    "TensorLayout": enums.TensorLayout,
    "FunctionType": enums.FunctionType,
}


def build() -> dict[str, ModuleType]:
    """Fresh modules `pypto` and `pypto.language`, by name."""
    language = ModuleType("pypto.language", "The PyPTO tile DSL, executed by the Goldengate emulator.")
    language.__dict__["__goldengate_language__"] = True
    members: dict[str, Any] = {d.name: d for d in dtypes.ALL}
    members |= _TYPES | _ENUMS | {c.name: c for c in CONSTRUCTS}
    members |= {layout.name: layout for layout in enums.TensorLayout}
    members["jit"] = JitFamily()
    members |= _namespaces()
    language.__dict__.update(members)
    parent = ModuleType("pypto")
    parent.__dict__["language"] = language
    parent.__path__ = []
    return {"pypto": parent, "pypto.language": language}


def _namespaces() -> dict[str, Any]:
    """Operations by name; dotted ones in a namespace each: tensor, tile, array, system, prefetch."""
    assert ops is not None  # importing it filled the table
    members: dict[str, Any] = {}
    groups: dict[str, SimpleNamespace] = {}
    for name, entry in OPS.items():
        head, _, tail = name.partition(".")
        if tail:
            setattr(groups.setdefault(head, SimpleNamespace()), tail, entry.run)
        else:
            members[name] = entry.run
    if "tile" in groups:
        groups["tile"].MaskPattern = enums.MaskPattern
    return members | groups
