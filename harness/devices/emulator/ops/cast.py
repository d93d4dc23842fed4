"""`pl.cast` of tensors, tiles and scalars (contracts/pypto_dsl.md 3.6, 1.6)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from torch import Tensor as Torch

from harness.devices.emulator import rounding
from harness.devices.emulator.dtypes import BOOL, INDEX, INT64, DType
from harness.devices.emulator.machine import fault, machine
from harness.devices.emulator.ops import rounding_rules
from harness.devices.emulator.ops.common import apply, as_tile
from harness.devices.emulator.optable import ANY, op
from harness.devices.emulator.values import Scalar, Tensor, Tile, describe, scalar_dtype


@op("cast", "tensor.cast", "tile.cast", where=ANY)
def cast(x: Tensor | Tile | Scalar | int | float, target_type: DType, mode: str | int | None = None) -> object:
    """x in another dtype. The default mode is `round`: nearest, ties away from zero (3.6). Scalars: 1.6.

    Raises for an unknown mode, for a cast to the own dtype and for a pair that not even a chain of casts reaches.
    """
    if not isinstance(target_type, DType):
        raise fault(f"pl.cast: target_type must be a pl dtype, not {describe(target_type)}")
    if isinstance(x, (int, float, Scalar)):
        if mode is not None:
            raise fault("pl.cast: a mode does not apply to a scalar")
        return scalar_cast(x, target_type)
    if machine().region is None:
        raise fault("misplaced operation: pl.cast of a tensor must stand inside pl.at, pl.spmd or an incore function")
    tile = as_tile(x, "cast")
    name = mode_name(mode)
    if mode is None and (tile.dtype, target_type) in rounding_rules.INEXACT:
        machine().lint("GG204", f"pl.cast {tile.dtype} to {target_type} without a mode rounds ties away from zero")
    return apply("cast", conversion(tile.dtype, target_type, name), (tile,), target_type)


def mode_name(mode: str | int | None) -> str:
    """The name of a rounding mode given by name or number; the default is `round`."""
    if mode is None:
        return "round"
    if isinstance(mode, str) and mode in rounding.MODES:
        return mode
    if type(mode) is int and 0 <= mode < len(rounding.MODES):
        return rounding.MODES[mode]
    raise fault(f"pl.cast: unknown mode {mode!r}, expected one of {', '.join(rounding.MODES)} or 0..6")


@lru_cache(maxsize=512)
def _native(source: DType, target: DType, mode: str) -> Callable[[Torch], Torch] | None:
    return rounding_rules.native(source, target, mode) if (source, target) in rounding_rules.NATIVE else None


def conversion(source: DType, target: DType, mode: str) -> Callable[[Torch], Torch]:
    """What a tile cast computes; a pair that only H reaches is recorded, any other raises (3.6)."""
    direct = _native(source, target, mode)
    if direct is not None:
        return direct
    if source is target:
        raise fault(f"pl.cast: the operand already is {source}")
    chain = rounding_rules.chained(source, target, mode)
    if chain is None:
        raise fault(f"pl.cast: no conversion from {source} to {target}, not even through a chain of casts", "GG203")
    machine().lint("GG203", f"pl.cast {source} to {target}: no native conversion, cast step by step")
    return chain


def scalar_cast(value: Scalar | int | float, target: DType) -> Scalar | int | bool:
    """Scalar conversion: float to int truncates, int to float is nearest even, int to int wraps (1.6)."""
    source = scalar_dtype(value)
    if source.storage is None or target.storage is None:
        raise fault(f"pl.cast: no conversion from {source} to {target}")
    number = value.value if isinstance(value, Scalar) else value
    if isinstance(number, float) and source.is_float and not isinstance(value, Scalar):
        number = rounding.fp32(number)
    converted = rounding_rules.number_in(number, INT64 if target is INDEX else target)
    if target is INDEX:
        return int(converted)
    if target is BOOL:
        return bool(converted)
    return Scalar(converted, target)
