"""Parameter annotations: `pl.Tensor[[…], dtype]`, `pl.Out`, `pl.InOut`, `pl.Scalar`, `pl.RUNTIME`, `pl.Array`,
`pl.dynamic`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from harness.devices.emulator.dtypes import DType


@dataclass(frozen=True)
class DynVar:
    """A dimension that stays symbolic: `pl.dynamic("T")`. In a body it is the runtime size of the bound axis."""

    name: str


@dataclass(frozen=True)
class TensorType:
    """A tensor parameter. `direction` is "in", "out" or "inout"; shape entries are ints or DynVars."""

    shape: tuple[int | DynVar, ...]
    dtype: DType
    direction: str = "in"
    kind: str = "tensor"  # "tensor" | "tile" | "window"


@dataclass(frozen=True)
class ScalarType:
    """A scalar parameter. `runtime`: at an entry a typed runtime value and no compile-time constant (H)."""

    dtype: DType
    runtime: bool = False


@dataclass(frozen=True)
class ArrayType:
    length: int
    dtype: DType


Annotation = TensorType | ScalarType | ArrayType


def _shaped(item: Any, kind: str) -> TensorType:
    if not (isinstance(item, tuple) and len(item) >= 2 and isinstance(item[0], (list, tuple))):
        raise TypeError(f"expected pl.{kind.capitalize()}[[dims], dtype], got {item!r}")
    shape, dtype = item[0], item[1]
    for dim in shape:
        if isinstance(dim, bool) or not isinstance(dim, (int, DynVar)):
            raise TypeError(f"dimension {dim!r} is neither an integer nor a pl.dynamic variable")
    if not isinstance(dtype, DType):
        raise TypeError(f"{dtype!r} is not a dtype of pypto.language")
    return TensorType(tuple(shape), dtype, kind=kind)


class Tensor:
    """`pl.Tensor[[d0, d1, …], dtype]`."""

    def __class_getitem__(cls, item: Any) -> TensorType:
        return _shaped(item, "tensor")


class Tile:
    """`pl.Tile[[d0, d1], dtype]`, for in-core functions."""

    def __class_getitem__(cls, item: Any) -> TensorType:
        return _shaped(item, "tile")


class DistributedTensor:
    """`pld.DistributedTensor[[…], dtype]`: window memory visible to other ranks."""

    def __class_getitem__(cls, item: Any) -> TensorType:
        return _shaped(item, "window")


def _directed(item: Any, direction: str) -> TensorType:
    if not isinstance(item, TensorType):
        raise TypeError(f"pl.{'Out' if direction == 'out' else 'InOut'} wraps a tensor annotation, got {item!r}")
    return replace(item, direction=direction)


class Out:
    """`pl.Out[pl.Tensor[…]]`: written by the callee, undefined before."""

    def __class_getitem__(cls, item: Any) -> TensorType:
        return _directed(item, "out")


class InOut:
    """`pl.InOut[pl.Tensor[…]]`: read and written."""

    def __class_getitem__(cls, item: Any) -> TensorType:
        return _directed(item, "inout")


class Scalar:
    """`pl.Scalar[dtype]`, or `pl.Scalar[dtype, pl.RUNTIME]`."""

    def __class_getitem__(cls, item: Any) -> ScalarType:
        runtime = isinstance(item, tuple) and len(item) == 2 and item[1] is RUNTIME
        if runtime:
            item = item[0]
        if not isinstance(item, DType):
            raise TypeError(f"pl.Scalar takes one dtype, got {item!r}")
        return ScalarType(item, runtime)


class RUNTIME:
    """Marks an entry scalar as a runtime value: `pl.Scalar[dtype, pl.RUNTIME]` or `pl.RUNTIME[pl.Scalar[dtype]]`."""

    def __class_getitem__(cls, item: Any) -> ScalarType:
        if isinstance(item, DType):
            return ScalarType(item, runtime=True)
        if not isinstance(item, ScalarType):
            raise TypeError(f"pl.RUNTIME marks a scalar, got {item!r}")
        return replace(item, runtime=True)


class Array:
    """`pl.Array[N, dtype]`."""

    def __class_getitem__(cls, item: Any) -> ArrayType:
        length, dtype = item
        return ArrayType(int(length), dtype)
