"""The module that a kernel file imports as `pypto.language`, built from the op table."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

from harness.devices.emulator import annotations as types
from harness.devices.emulator import control as control  # registers its ops
from harness.devices.emulator import dtypes, enums, ops
from harness.devices.emulator.constructs import CONSTRUCTS
from harness.devices.emulator.functions import JitFamily, KernelFunction, Program, function_decorator

_TYPES = {
    "Tensor": types.Tensor,
    "Tile": types.Tile,
    "Out": types.Out,
    "InOut": types.InOut,
    "Scalar": types.Scalar,
    "Array": types.Array,
    "RUNTIME": types.RUNTIME,
    "dynamic": types.DynVar,
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


_DISTRIBUTED = {
    "DistributedTensor": types.DistributedTensor,
    "NotifyOp": enums.NotifyOp,
    "WaitCmp": enums.WaitCmp,
    "ReduceOp": enums.ReduceOp,
}


def build() -> dict[str, ModuleType]:
    """Fresh modules `pypto`, `pypto.language` and `pypto.language.distributed`, by name."""
    language = ModuleType("pypto.language", "The PyPTO tile DSL, executed by the Goldengate emulator.")
    language.__dict__["__goldengate_language__"] = True
    members: dict[str, Any] = {d.name: d for d in dtypes.ALL}
    members |= _TYPES | _ENUMS | {c.name: c for c in CONSTRUCTS}
    members |= {layout.name: layout for layout in enums.TensorLayout}
    members |= {"jit": JitFamily(), "function": function_decorator, "program": Program}
    members["inline"] = lambda python: KernelFunction(python, "template", {})
    members |= _namespaces()
    language.__dict__.update(members)
    language.__path__ = []
    ranks = ModuleType("pypto.language.distributed", "Ranks, windows and signals, executed by the Goldengate emulator.")
    ranks.__dict__["__goldengate_language__"] = True
    ranks.__dict__.update(_DISTRIBUTED | members["pld"].__dict__)
    language.__dict__.pop("pld")
    language.__dict__["distributed"] = ranks
    parent = ModuleType("pypto")
    parent.__dict__["language"] = language
    parent.__path__ = []
    return {"pypto": parent, "pypto.language": language, "pypto.language.distributed": ranks}


def _namespaces() -> dict[str, Any]:
    """Operations by name; dotted ones in namespaces: tensor, tile, array, system, prefetch, and those below pld."""
    root = SimpleNamespace()
    for name, run in ops.namespace().items():
        *path, last = name.split(".")
        place = root
        for part in path:
            if not hasattr(place, part):
                setattr(place, part, SimpleNamespace())
            place = getattr(place, part)
        setattr(place, last, run)
    root.tile.MaskPattern = enums.MaskPattern
    return dict(vars(root))
