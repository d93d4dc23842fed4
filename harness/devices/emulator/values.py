"""What names in a kernel stand for: storage with shadow state, GM tensors, on-chip tiles, scalars, arrays.

Storage keeps, beside the elements, a *taint*: per element 0, or the number of the origin that left it undefined
(`Machine.origin`). Undefined floats are NaN, undefined integers a marked pattern, so that a leak is visible in the
numbers too. Taint travels with the data; it is an error where it decides something (a scalar read, an index, a
branch) and where it reaches an output of the entry. The taint tensor exists only while something is undefined, so
fully defined data pays nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import mul

import torch
from torch import Tensor as Torch

from harness.devices.emulator.dtypes import BOOL, FP32, INDEX, DType
from harness.devices.emulator.ledger import Ledger
from harness.devices.emulator.machine import fault, machine

POISON_BYTE = 0xA5


def poison(count: int, dtype: DType) -> Torch:
    """`count` elements of memory that nobody has written: NaN for floats, 0xA5 bytes for the rest."""
    if dtype.storage is None:
        raise fault(f"{dtype} cannot be stored on this device")
    if dtype.is_float:
        return torch.full((count,), float("nan"), dtype=dtype.storage)
    raw = torch.full((count * dtype.storage.itemsize,), POISON_BYTE, dtype=torch.uint8)
    return raw.view(dtype.storage) if dtype.storage is not torch.bool else raw.bool()


class Storage:
    """A flat buffer of one element type with its taint. Its memory is never replaced, so views of it stay valid."""

    __slots__ = (
        "_data", "computed", "dead", "dtype", "ledger", "name", "readers", "readonly", "shadow", "space", "taint",
        "writers",
    )  # fmt: skip

    def __init__(self, data: Torch, dtype: DType, name: str, space: str) -> None:
        self._data = data
        self.taint: Torch | None = None
        self.dtype = dtype
        self.name = name
        self.space = space
        self.dead: str | None = None  # why it may no longer be used (scope ended)
        self.shadow: Torch | None = None  # per element who wrote and read it last (order.Order), None before the first
        self.writers = self.readers = 1  # sites that may stand in the shadow, as bit sets; 1: nobody
        self.readonly = False  # a plain input of the entry: a write to it never reaches the host
        self.ledger: Ledger | None = None  # of the block whose on-chip memory this is
        self.computed = space == "Vec"  # certainly in Vec; what is loaded may lie in L1
        if space != "GM":
            machine().allocated(self)

    def __del__(self) -> None:
        if self.ledger is not None:
            self.ledger.remove(self.space, self._data.nbytes, computed=self.computed)

    def loaded(self) -> None:
        """This tile was filled from global memory: it may serve the cube and never see Vec."""
        if self.computed and self.ledger is not None:
            self.ledger.computed -= self._data.nbytes
        self.computed = False

    @property
    def data(self) -> Torch:
        """The elements, flat. Given in another (dense) shape, they are flattened when somebody first asks."""
        if self._data.dim() != 1:
            self._data = self._data.view(-1)
        return self._data

    @classmethod
    def undefined(cls, count: int, dtype: DType, name: str, space: str) -> Storage:
        """Fresh memory; every element is tainted with an origin at the current source line."""
        storage = cls(poison(count, dtype), dtype, name, space)
        mark = machine().origin(f"never-written element of {name}")
        storage.taint = torch.full((count,), mark, dtype=torch.int32)
        return storage

    def need_taint(self) -> Torch:
        """The taint tensor, created all-defined when there was none."""
        if self.taint is None:
            self.taint = torch.zeros(self.data.numel(), dtype=torch.int32)
        return self.taint


@lru_cache(maxsize=4096)
def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of a dense row-major array."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return tuple(strides)


class View:
    """A strided window of a storage."""

    __slots__ = ("_data", "dtype", "offset", "shape", "storage", "strides")

    def __init__(self, storage: Storage, dtype: DType, shape: Sequence[int], strides: Sequence[int], offset: int = 0):
        self.storage = storage
        self.dtype = dtype
        self.shape = tuple(shape)
        self.strides = tuple(strides)
        self.offset = offset
        self._data: Torch | None = None

    @property
    def name(self) -> str:
        return self.storage.name

    @property
    def data(self) -> Torch:
        """The elements as a torch view that aliases the storage."""
        if self.storage.dead is not None:
            raise fault(f"{self.name} is used after {self.storage.dead}", "GG503")
        if self._data is None:
            flat = self.storage.data
            # as_strided counts from the start of torch's memory, which host data need not start at.
            start = flat.storage_offset() + self.offset
            self._data = torch.as_strided(flat, self.shape, self.strides, start)
        return self._data

    @property
    def taint(self) -> Torch | None:
        """Origins of undefined elements as an aliasing view, None when the whole storage is defined."""
        taint = self.storage.taint
        return None if taint is None else torch.as_strided(taint, self.shape, self.strides, self.offset)

    def check_writable(self) -> None:
        """Raise when this is a plain input of the entry; every op that writes GM calls it first."""
        if self.storage.readonly:
            raise fault(f"write to the plain input {self.name}: declare it pl.Out or pl.InOut", "GG303")

    def check_window(self, offsets: Sequence[int], shape: Sequence[int], what: str) -> None:
        """Raise unless the window lies inside this view; the message names axis and extents."""
        if len(offsets) != len(self.shape) or len(shape) != len(self.shape):
            raise fault(f"{what} of {self.name}{list(self.shape)}: offsets {list(offsets)}, extents {list(shape)}")
        for axis, (start, count, extent) in enumerate(zip(offsets, shape, self.shape, strict=True)):
            if start < 0 or (count > 0 and start + count > extent):
                raise fault(
                    f"{what} of {self.name}{list(self.shape)} is out of bounds: axis {axis}, "
                    f"elements {start}..{start + count - 1} of {extent}",
                    "GG501",
                )

    def _window(self, offsets: Sequence[int]) -> int:
        start: int = self.offset + sum(map(mul, offsets, self.strides))
        return start


class Tensor(View):
    """A tensor in global memory (GM): an argument of the entry, scratch of orchestration, or a view of one."""

    __slots__ = ("manual_dep",)

    def __init__(self, storage: Storage, dtype: DType, shape: Sequence[int], strides: Sequence[int], offset: int = 0):
        super().__init__(storage, dtype, shape, strides, offset)
        self.manual_dep = False

    @classmethod
    def of(cls, data: Torch, dtype: DType, name: str) -> Tensor:
        """Wrap host data (contiguous, fully defined) without a copy."""
        return cls(Storage(data.reshape(-1), dtype, name, "GM"), dtype, data.shape, row_major(tuple(data.shape)))

    @classmethod
    def undefined(cls, shape: Sequence[int], dtype: DType, name: str) -> Tensor:
        return cls(Storage.undefined(math.prod(shape), dtype, name, "GM"), dtype, shape, row_major(tuple(shape)))

    def window(self, offsets: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Aliasing sub-tensor; bounds must have been checked."""
        return Tensor(self.storage, self.dtype, shape, self.strides, self._window(offsets))

    def __repr__(self) -> str:
        return f"Tensor({self.name}, {list(self.shape)}, {self.dtype})"


class Tile(View):
    """An on-chip buffer. Elements outside `valid` (a top-left box, one extent per axis) are undefined."""

    __slots__ = ("space", "valid")

    def __init__(
        self,
        storage: Storage,
        dtype: DType,
        shape: Sequence[int],
        strides: Sequence[int],
        offset: int = 0,
        valid: Sequence[int] | None = None,
        space: str = "Vec",
    ) -> None:
        super().__init__(storage, dtype, shape, strides, offset)
        self.valid = self.shape if valid is None else tuple(valid)
        self.space = space

    @classmethod
    def of(
        cls,
        data: Torch,
        dtype: DType,
        *,
        valid: Sequence[int] | None = None,
        taint: Torch | None = None,
        space: str = "Vec",
        name: str = "tile",
    ) -> Tile:
        """A tile that owns `data`, a fresh tensor of the physical shape. `taint`, if any, has the same shape."""
        data = data.contiguous()
        storage = Storage(data, dtype, name, space)
        if taint is not None and bool(taint.any()):
            storage.taint = taint.to(torch.int32).contiguous().reshape(-1)
        shape = tuple(data.shape)
        tile = cls(storage, dtype, shape, row_major(shape), 0, valid, space)
        tile._data = data
        return tile

    @classmethod
    def undefined(cls, shape: Sequence[int], dtype: DType, name: str, *, space: str = "Vec") -> Tile:
        storage = Storage.undefined(math.prod(shape), dtype, name, space)
        return cls(storage, dtype, shape, row_major(tuple(shape)), space=space)

    @property
    def full(self) -> bool:
        """Whether every element of the physical shape is valid."""
        return self.valid == self.shape

    @property
    def valid_data(self) -> Torch:
        """The valid box as an aliasing view."""
        return self.data if self.full else self.data[tuple(slice(v) for v in self.valid)]

    @property
    def valid_taint(self) -> Torch | None:
        taint = self.taint
        if taint is None or self.full:
            return taint
        return taint[tuple(slice(v) for v in self.valid)]

    def window(self, offsets: Sequence[int], shape: Sequence[int], valid: Sequence[int]) -> Tile:
        """Aliasing sub-tile; bounds must have been checked."""
        return Tile(self.storage, self.dtype, shape, self.strides, self._window(offsets), valid, self.space)

    def __repr__(self) -> str:
        valid = "" if self.full else f", valid {list(self.valid)}"
        return f"Tile({self.name}, {list(self.shape)}, {self.dtype}{valid}, {self.space})"


@dataclass(frozen=True)
class Scalar:
    """A typed runtime scalar. Untyped ones are Python numbers: int = INDEX, float = an FP32 literal not yet rounded,
    bool = Bool."""

    value: int | float
    dtype: DType

    def __index__(self) -> int:
        if not self.dtype.is_integer:
            raise fault(f"a {self.dtype} scalar cannot be used as an index or extent; cast it to pl.INDEX")
        return int(self.value)

    def __bool__(self) -> bool:
        raise fault(f"a condition must be Bool, not {self.dtype}: compare it with something")


class Array:
    """`pl.Array`: a fixed-length on-stack array of scalars or task ids."""

    __slots__ = ("cells", "dtype")

    def __init__(self, cells: list[object], dtype: DType) -> None:
        self.cells = cells
        self.dtype = dtype

    def __getitem__(self, index: object) -> object:
        return self.cells[self._position(index)]

    def __setitem__(self, index: object, value: object) -> None:
        self.cells[self._position(index)] = value

    def __len__(self) -> int:
        return len(self.cells)

    def _position(self, index: object) -> int:
        position = as_int(index, "array index")
        if not 0 <= position < len(self.cells):
            raise fault(f"array index {position} is outside 0..{len(self.cells) - 1}", "GG501")
        return position


def as_int(value: object, what: str) -> int:
    """An INDEX from a Python int or an integer Scalar. Raises for floats, Bools, tensors and tiles."""
    if type(value) is int:
        return value
    if isinstance(value, Scalar) and value.dtype.is_integer:
        return int(value.value)
    raise fault(f"{what} must be an integer scalar, not {describe(value)}")


def as_ints(values: object, what: str) -> tuple[int, ...]:
    """A shape or offset list as Python ints."""
    if not isinstance(values, (list, tuple)):
        raise fault(f"{what} must be a list of integers, not {describe(values)}")
    return tuple([v if type(v) is int else as_int(v, what) for v in values])


def scalar_dtype(value: int | float | bool | Scalar) -> DType:
    """The DSL type of a scalar operand."""
    if isinstance(value, Scalar):
        return value.dtype
    if isinstance(value, bool):
        return BOOL
    return FP32 if isinstance(value, float) else INDEX


def describe(value: object) -> str:
    """A value in the words of an error message."""
    if isinstance(value, (Tensor, Tile)):
        return f"a {'tensor' if isinstance(value, Tensor) else 'tile'} {list(value.shape)} {value.dtype}"
    if isinstance(value, Scalar):
        return f"a {value.dtype} scalar"
    if isinstance(value, bool):
        return "a Bool"
    if isinstance(value, (int, float)):
        return f"the number {value!r}"
    return f"a {type(value).__name__}"
