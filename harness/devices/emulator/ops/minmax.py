"""`pl.min`, `pl.max`, `pl.sum`: of two scalars, or (J) of a tile along an axis (contracts/pypto_dsl.md 1.6, 3.10)."""

from __future__ import annotations

import math

from harness.devices.emulator import rounding
from harness.devices.emulator.dtypes import BOOL, DType
from harness.devices.emulator.machine import fault
from harness.devices.emulator.ops import reduce
from harness.devices.emulator.optable import ANY, op
from harness.devices.emulator.values import Scalar, Tensor, Tile, as_int, describe, scalar_dtype

Number = int | float | Scalar


def _extremum(name: str, a: Number, b: Number) -> int | float | Scalar:
    """The smaller or larger of two scalars of one category; NaN propagates. The wider dtype wins, then the left."""
    for value in (a, b):
        if not isinstance(value, (int, float, Scalar)) or isinstance(value, bool):
            raise fault(f"pl.{name}: operands must be two scalars, not {describe(value)}")
    left, right = scalar_dtype(a), scalar_dtype(b)
    if left is BOOL or right is BOOL or left.is_float != right.is_float:
        raise fault(f"pl.{name}: {left} and {right} are of different categories; cast one")
    literal = not isinstance(a, Scalar) and not isinstance(b, Scalar)
    x, y = _number(a, literal), _number(b, literal)
    if math.isnan(x) or math.isnan(y):
        best: int | float = math.nan
    else:
        best = min(x, y) if name == "min" else max(x, y)
    if literal:
        return best
    dtype: DType = right if right.bits > left.bits else left
    return best if dtype.name == "INDEX" else Scalar(best, dtype)


def _number(value: Number, literal: bool) -> int | float:
    if isinstance(value, Scalar):
        return value.value
    return rounding.fp32(value) if isinstance(value, float) and not literal else value


def _along(name: str, x: Tile | Tensor, axis: object) -> Tile:
    """The row or column reduction that an axis names (J, tile level)."""
    rank = len(x.shape)
    position = as_int(axis, f"pl.{name} axis") % rank
    if position not in (rank - 1, rank - 2):
        raise fault(f"pl.{name}: axis {axis} of {list(x.shape)} is neither the last nor the one before it")
    kind = "row" if position == rank - 1 else "col"
    result: Tile = getattr(reduce, f"{kind}_{name}")(x)
    return result


@op("min", "tile.min", where=ANY)
def minimum_of(a: object, b: object = None, *, axis: object = None, keepdim: bool = True) -> object:
    """The smaller of two scalars, or a tile's minimum along an axis (1.6)."""
    return _either("min", a, b, axis)


@op("max", "tile.max", where=ANY)
def maximum_of(a: object, b: object = None, *, axis: object = None, keepdim: bool = True) -> object:
    """The larger of two scalars, or a tile's maximum along an axis (1.6)."""
    return _either("max", a, b, axis)


@op("sum", "tile.sum")
def sum_of(a: object, axis: object = -1, keepdim: bool = True) -> object:
    """A tile's sum along an axis (3.10, J)."""
    return _either("sum", a, None, axis)


def _either(name: str, a: object, b: object, axis: object) -> object:
    if isinstance(a, (Tile, Tensor)):
        along = b if axis is None else axis
        return _along(name, a, -1 if along is None else along)
    return _extremum(name, a, b)  # type: ignore[arg-type]
