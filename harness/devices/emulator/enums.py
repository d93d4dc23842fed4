"""Enumerations, under their names in `pypto.language` (contracts/pypto_dsl.md 2.2, 2.5, 3.0, 3.8, 3.11)."""

from __future__ import annotations

from enum import Enum, IntEnum


class Level(Enum):
    HOST = "host"
    CHIP = "chip"
    CORE_GROUP = "core_group"
    CORE = "core"


class MemorySpace(Enum):
    """Where a tile lives; the values are the names used in messages and in `Tile.space`."""

    DDR = "GM"
    Vec = "Vec"
    Mat = "Mat"
    Left = "Left"
    Right = "Right"
    Acc = "Acc"
    Bias = "Bias"


class ScopeMode(Enum):
    AUTO = "auto"
    MANUAL = "manual"


class SplitMode(Enum):
    NONE = 0
    UP_DOWN = 1
    LEFT_RIGHT = 2


class AtomicType(IntEnum):
    None_ = 0
    Add = 1


class PadValue(Enum):
    zero = "zero"
    min = "min"
    max = "max"


class MaskPattern(IntEnum):
    P0101 = 1
    P1010 = 2
    P0001 = 3
    P0010 = 4
    P0100 = 5
    P1000 = 6
    P1111 = 7


class TensorLayout(Enum):
    ND = "ND"
    DN = "DN"
    NZ = "NZ"


class FunctionType(Enum):
    Opaque = "opaque"
    InCore = "incore"
    Orchestration = "orchestration"
    Inline = "inline"
    AIC = "aic"
    AIV = "aiv"
    Group = "group"


class NotifyOp(IntEnum):
    AtomicAdd = 0
    Set = 1


class WaitCmp(IntEnum):
    Eq = 0
    Ge = 1


class ReduceOp(IntEnum):
    Sum = 0
