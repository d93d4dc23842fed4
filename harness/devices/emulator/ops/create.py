"""Creation (contracts/pypto_dsl.md 3.4). What nobody has written is undefined: poisoned and tainted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from harness.devices.emulator.dtypes import BOOL, FP32, INT16, INT32, TASK_ID, UINT16, UINT32, DType
from harness.devices.emulator.enums import MemorySpace
from harness.devices.emulator.machine import fault, machine
from harness.devices.emulator.ops import rounding_rules
from harness.devices.emulator.ops.common import check_space, check_vector
from harness.devices.emulator.optable import ANY, op
from harness.devices.emulator.values import (
    Array,
    Scalar,
    Storage,
    Tensor,
    Tile,
    as_int,
    as_ints,
    describe,
    row_major,
)


def _dtype(value: object, name: str) -> DType:
    if not isinstance(value, DType):
        raise fault(f"pl.{name}: dtype must be a pl dtype, not {describe(value)}")
    if value.storage is None:
        raise fault(f"pl.{name}: {value} cannot be stored on this device")
    return value


def _extents(shape: object, name: str) -> tuple[int, ...]:
    extents = as_ints(shape, f"pl.{name} shape")
    if any(e < 0 for e in extents):
        raise fault(f"pl.{name}: shape {list(extents)} has a negative extent")
    return extents


def literal_fill(value: object, dtype: DType, name: str) -> int | float | bool:
    """A literal as the number that is stored. Raises for anything else (3.4)."""
    if not isinstance(value, (int, float)):
        raise fault(f"pl.{name}: the value must be a literal, not {describe(value)}")
    return rounding_rules.number_in(value, dtype)


def filled(shape: Sequence[int], dtype: DType, number: int | float | bool) -> torch.Tensor:
    """A tensor of one number; unsigned types by way of INT64, which torch can fill."""
    if dtype.kind == "uint" and dtype.bits > 8:
        return torch.full(tuple(shape), number, dtype=torch.int64).to(dtype.storage)
    return torch.full(tuple(shape), number, dtype=dtype.storage)


@op("create_tensor", "tensor.create", "tensor.create_tensor", where=ANY)
def create_tensor(
    shape: object, dtype: object, layout: object = None, manual_dep: bool = False, init_value: object = None
) -> Tensor | Tile:
    """Undefined memory: GM scratch in orchestration, a Vec tile in a kernel; `init_value` fills the former (3.4)."""
    extents, kind = _extents(shape, "create_tensor"), _dtype(dtype, "create_tensor")
    if machine().region is not None:
        if init_value is not None:
            raise fault("pl.create_tensor: init_value belongs to orchestration; use pl.full in a kernel")
        check_vector(extents, kind)
        return Tile.undefined(extents, kind, "create_tensor")
    if init_value is None:
        tensor = Tensor.undefined(extents, kind, "create_tensor")
    else:
        number = literal_fill(init_value, kind, "create_tensor")
        if number and kind.is_float and kind is not FP32:
            raise fault(f"pl.create_tensor: init_value {init_value} in {kind}: only 0, integers and FP32 can be filled")
        data = filled((math.prod(extents),), kind, number)
        tensor = Tensor(Storage(data, kind, "create_tensor", "GM"), kind, extents, row_major(extents))
    tensor.manual_dep = bool(manual_dep)
    machine().born(tensor.storage)
    return tensor


@op("create_tile", "tile.create", "tile.create_tile")
def create_tile(shape: object, dtype: object, target_memory: MemorySpace = MemorySpace.Vec, **_: Any) -> Tile:
    """An undefined tile in an on-chip space (3.4)."""
    extents, kind = _extents(shape, "create_tile"), _dtype(dtype, "create_tile")
    check_space(extents, kind, target_memory.value)
    return Tile.undefined(extents, kind, "create_tile", space=target_memory.value)


@op("create_l1", "tile.create_l1", "tensor.create_l1")
def create_l1(shape: object, dtype: object, transpose: bool = False) -> Tile:
    """An undefined L1 buffer, the target of `gather_row` and `assemble` (3.4). `transpose` is a layout, no value."""
    extents, kind = _extents(shape, "create_l1"), _dtype(dtype, "create_l1")
    check_space(extents, kind, "Mat")
    return Tile.undefined(extents, kind, "create_l1", space="Mat")


@op("full", "tensor.full", "tile.full")
def full(shape: object, dtype: object, value: object) -> Tile:
    """A tile of one literal, cast to dtype (3.4)."""
    extents, kind = _extents(shape, "full"), _dtype(dtype, "full")
    check_vector(extents, kind)
    return Tile.of(filled(extents, kind, literal_fill(value, kind, "full")), kind, name="full")


@op("arange", "tensor.arange", "tile.arange", "ci", "tensor.ci", "tile.ci")
def arange(start: object, shape: object, dtype: DType = INT32, descending: bool = False) -> Tile:
    """start + k (or start − k) along the last axis; leading extents 1, last above 1 (3.4). Wraps in dtype."""
    extents = _extents(shape, "arange")
    if dtype not in (INT16, INT32, UINT16, UINT32):
        raise fault(f"pl.arange: dtype must be INT16, INT32, UINT16 or UINT32, not {dtype}")
    if not extents or extents[-1] <= 1 or math.prod(extents[:-1]) != 1:
        raise fault(f"pl.arange: shape {list(extents)} must have leading extents 1 and a last extent above 1")
    if isinstance(start, Scalar) and start.dtype is not dtype:
        raise fault(f"pl.arange: start is {start.dtype}, the result {dtype}; they must be equal")
    first = as_int(start, "pl.arange start")
    steps = torch.arange(extents[-1], dtype=torch.int64)
    values = first - steps if descending else first + steps
    check_vector(extents, dtype)
    return Tile.of(values.to(dtype.storage).reshape(extents), dtype, name="arange")


@op("tri", "tensor.tri", "tile.tri")
def tri(diagonal: object, shape: object, valid_shape: object = None, dtype: DType = INT32, upper: bool = False) -> Tile:
    """A 0/1 mask: ones where column − row ≤ diagonal, `upper`: ≥ (3.4)."""
    extents, kind = _extents(shape, "tri"), _dtype(dtype, "tri")
    if len(extents) != 2:
        raise fault(f"pl.tri: shape {list(extents)} must have rank 2")
    k = as_int(diagonal, "pl.tri diagonal")
    distance = torch.arange(extents[1])[None, :] - torch.arange(extents[0])[:, None]
    mask = distance >= k if upper else distance <= k
    valid = extents if valid_shape is None else as_ints(valid_shape, "pl.tri valid_shape")
    return Tile.of(mask.to(kind.storage), kind, valid=valid, name="tri")


@op("array.create", where=ANY)
def array_create(count: object, dtype: DType) -> Array:
    """A stack array: zeros (TASK_ID: invalid ids) in orchestration, undefined in a kernel (3.4)."""
    length = as_int(count, "pl.array.create length")
    if dtype is not TASK_ID and dtype is not BOOL and not dtype.is_integer:
        raise fault(f"pl.array.create: elements must be integers, BOOL or TASK_ID, not {dtype}")
    if dtype is TASK_ID:
        return Array([None] * length, dtype)
    if machine().region is not None:
        return Array([Scalar(_marked(dtype), dtype)] * length, dtype)
    return Array([False if dtype is BOOL else Scalar(0, dtype)] * length, dtype)


def _marked(dtype: DType) -> int:
    pattern = int.from_bytes(b"\xa5" * dtype.nbytes, "little")
    return pattern - (1 << dtype.bits) if dtype.kind == "int" else pattern
