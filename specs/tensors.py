"""`TensorSpec` and `ScalarSpec`: one parameter of a kernel each. Frozen, checked when made and when replaced.

They answer weaknesses of the reference harness (contracts/reference_harness.md, 2, 3, 18.1): direction is
explicit, residency is checked on every path, scalars hold the value that the device sees.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor

from specs.errors import SpecError

if TYPE_CHECKING:
    from specs.streams import DrawContext

Role = Literal["in", "out", "inout"]
Number = int | float | bool

ROLES: tuple[Role, ...] = ("in", "out", "inout")

TENSOR_DTYPES: tuple[torch.dtype, ...] = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.bool,
)
"""The element types of contracts/pypto_dsl.md that torch can store."""

SCALAR_DTYPES: tuple[torch.dtype, ...] = (
    torch.int8,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.float32,
    torch.float16,
    torch.bfloat16,
)
"""contracts/reference_harness.md, section 3."""


class Distribution(Protocol):
    """Something that fills a tensor. Implementations are frozen values (`specs.distributions`)."""

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """A fresh contiguous tensor of `spec.shape` and `spec.dtype`."""
        ...


@dataclass(frozen=True)
class TensorSpec:
    """A tensor parameter.

    name      an identifier: parameter name, dictionary key, file name in a snapshot
    shape     at least one axis, every extent at least 1 (an empty tensor would be "compared" without looking)
    dtype     one of TENSOR_DTYPES
    init      the Distribution that fills it; required for "in" and "inout", None for "out"
    role      "in", "out" or "inout"
    resident  None (moved for every dispatch), a worker number >= 0 that keeps the whole tensor, or "stacked":
              slice i of the leading axis lives on device i. Not allowed for "out".

    Raises SpecError when a rule is broken, from the constructor and from `replace`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    init: Distribution | None
    role: Role
    resident: int | Literal["stacked"] | None = None

    def __post_init__(self) -> None:
        _check_name("tensor", self.name)
        object.__setattr__(self, "shape", _checked_shape(self.name, self.shape))
        if self.dtype not in TENSOR_DTYPES:
            raise SpecError(f"tensor {self.name}: dtype {self.dtype} is not one of {_dtype_names(TENSOR_DTYPES)}")
        if self.role not in ROLES:
            raise SpecError(f"tensor {self.name}: role {self.role!r} is not one of {', '.join(ROLES)}")
        self._check_init()
        self._check_resident()

    def replace(self, **changes: Any) -> TensorSpec:
        """A copy with some fields changed, checked again as a whole."""
        fields = {f.name for f in dataclasses.fields(self)}
        for field in changes:
            if field not in fields:
                raise SpecError(f"tensor {self.name}: no field {field!r} to replace: {', '.join(sorted(fields))}")
        return dataclasses.replace(self, **changes)

    @property
    def is_input(self) -> bool:
        """Whether the kernel reads its initial contents."""
        return self.role != "out"

    @property
    def is_output(self) -> bool:
        """Whether it is compared with the golden."""
        return self.role != "in"

    def _check_init(self) -> None:
        if self.role == "out" and self.init is not None:
            raise SpecError(f"tensor {self.name}: an output has no initial contents; use role 'inout' or init=None")
        if self.role == "out":
            return
        if self.init is None:
            raise SpecError(f"tensor {self.name}: role {self.role!r} needs a distribution as init")
        if not callable(getattr(self.init, "draw", None)):
            raise SpecError(f"tensor {self.name}: init is {type(self.init).__name__}, expected a Distribution")

    def _check_resident(self) -> None:
        mode = self.resident
        if mode is None:
            return
        if isinstance(mode, bool):
            meant = (
                "0 (on worker 0) or 'stacked' (slice i on device i)"
                if mode
                else "None (not resident) or 0 (on worker 0)"
            )
            raise SpecError(f"tensor {self.name}: resident={mode} is ambiguous: write {meant}")
        if not (isinstance(mode, int) and mode >= 0) and mode != "stacked":
            raise SpecError(f"tensor {self.name}: resident={mode!r} is not None, a worker number >= 0 or 'stacked'")
        if self.role == "out":
            raise SpecError(f"tensor {self.name}: an output cannot be resident: nothing is uploaded for it")
        if mode == "stacked" and len(self.shape) < 2:
            raise SpecError(
                f"tensor {self.name}: resident='stacked' needs a rank and a data axis, shape is {self.shape}"
            )


@dataclass(frozen=True)
class ScalarSpec:
    """A scalar parameter.

    value   checked against the dtype and stored as the Python number that the device sees: floats are rounded
            to nearest even in `dtype` (BF16 0.1 is 0.10009765625). Integers must be ints in range, bool takes
            only bools, floats take ints and floats; NaN, infinity and overflow to infinity are refused.

    Raises SpecError.
    """

    name: str
    dtype: torch.dtype
    value: Number

    def __post_init__(self) -> None:
        _check_name("scalar", self.name)
        if self.dtype not in SCALAR_DTYPES:
            raise SpecError(f"scalar {self.name}: dtype {self.dtype} is not one of {_dtype_names(SCALAR_DTYPES)}")
        object.__setattr__(self, "value", _device_value(self.name, self.dtype, self.value))

    def replace(self, **changes: Any) -> ScalarSpec:
        """A copy with some fields changed, checked again as a whole."""
        for field in changes:
            if field not in ("name", "dtype", "value"):
                raise SpecError(f"scalar {self.name}: no field {field!r} to replace: name, dtype, value")
        return dataclasses.replace(self, **changes)

    def tensor(self) -> Tensor:
        """The value as a fresh 0-dimensional tensor."""
        return torch.tensor(self.value, dtype=self.dtype)

    def encoded(self) -> Number:
        """What the device is passed: the number, or for FP16 and BF16 its 16 bits as an unsigned integer."""
        if self.dtype in (torch.float16, torch.bfloat16):
            return int(self.tensor().view(torch.int16).item()) & 0xFFFF
        return self.value


def _check_name(kind: str, name: object) -> None:
    if not isinstance(name, str) or not name.isidentifier():
        raise SpecError(f"{kind} name {name!r} is not an identifier")


def _checked_shape(name: str, shape: object) -> tuple[int, ...]:
    if not isinstance(shape, (tuple, list)) or not shape:
        raise SpecError(f"tensor {name}: shape {shape!r} is not a non-empty tuple of ints")
    for extent in shape:
        if isinstance(extent, bool) or not isinstance(extent, int) or extent < 1:
            raise SpecError(f"tensor {name}: shape {tuple(shape)} has the extent {extent!r}, expected an int >= 1")
    return tuple(shape)


def _device_value(name: str, dtype: torch.dtype, value: object) -> Number:
    where = f"scalar {name}: value {value!r}"
    if dtype is torch.bool:
        if not isinstance(value, bool):
            raise SpecError(f"{where} is {type(value).__name__}, expected True or False for bool")
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SpecError(f"{where} is {type(value).__name__}, expected a number for {_dtype_name(dtype)}")
    if not dtype.is_floating_point:
        limits = torch.iinfo(dtype)
        if not isinstance(value, int):
            raise SpecError(f"{where} is a float, expected an int for {_dtype_name(dtype)}")
        if not limits.min <= value <= limits.max:
            raise SpecError(f"{where} is outside {limits.min}..{limits.max} of {_dtype_name(dtype)}")
        return value
    return _device_float(where, dtype, value)


def _device_float(where: str, dtype: torch.dtype, value: int | float) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isnan(number) or (math.isinf(number) and isinstance(value, float)):
        raise SpecError(f"{where} is not finite")
    rounded = float(torch.tensor(number, dtype=torch.float64).to(dtype).item())
    if math.isinf(rounded):
        raise SpecError(f"{where} overflows {_dtype_name(dtype)}, whose largest value is {torch.finfo(dtype).max}")
    return rounded


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype_names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(_dtype_name(d) for d in dtypes)
