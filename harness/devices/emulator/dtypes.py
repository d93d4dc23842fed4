"""Element types of the DSL (contracts/pypto_dsl.md 3.0)."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class DType:
    """One element type. `storage` is the torch dtype that holds its bits; None means the emulator cannot store it."""

    name: str
    kind: str  # "float" | "int" | "uint" | "bool" | "opaque"
    bits: int
    storage: torch.dtype | None

    @property
    def nbytes(self) -> int:
        return max(self.bits // 8, 1)

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_integer(self) -> bool:
        return self.kind in ("int", "uint")

    def __repr__(self) -> str:
        return f"pl.{self.name}"


FP32 = DType("FP32", "float", 32, torch.float32)
FP16 = DType("FP16", "float", 16, torch.float16)
BF16 = DType("BF16", "float", 16, torch.bfloat16)
INT8 = DType("INT8", "int", 8, torch.int8)
INT16 = DType("INT16", "int", 16, torch.int16)
INT32 = DType("INT32", "int", 32, torch.int32)
INT64 = DType("INT64", "int", 64, torch.int64)
UINT8 = DType("UINT8", "uint", 8, torch.uint8)
UINT16 = DType("UINT16", "uint", 16, torch.uint16)
UINT32 = DType("UINT32", "uint", 32, torch.uint32)
UINT64 = DType("UINT64", "uint", 64, torch.uint64)
BOOL = DType("BOOL", "bool", 8, torch.bool)
INDEX = DType("INDEX", "int", 64, torch.int64)
TASK_ID = DType("TASK_ID", "opaque", 64, None)

# Named by the language, not stored by the A2/A3 emulator: using one is refused with its name.
INT4 = DType("INT4", "int", 4, None)
UINT4 = DType("UINT4", "uint", 4, None)
FP4 = DType("FP4", "float", 4, None)
FP8E4M3FN = DType("FP8E4M3FN", "float", 8, None)
FP8E5M2 = DType("FP8E5M2", "float", 8, None)
FP8E8M0 = DType("FP8E8M0", "float", 8, None)
HF4 = DType("HF4", "float", 4, None)
HF8 = DType("HF8", "float", 8, None)

ALL = (
    FP32, FP16, BF16, INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64, BOOL, INDEX, TASK_ID,
    INT4, UINT4, FP4, FP8E4M3FN, FP8E5M2, FP8E8M0, HF4, HF8,
)  # fmt: skip

_FROM_TORCH = {d.storage: d for d in ALL if d.storage is not None and d is not INDEX}


def from_torch(dtype: torch.dtype) -> DType | None:
    """The DSL type of a torch dtype, or None when the DSL has none (float64, complex …)."""
    return _FROM_TORCH.get(dtype)
