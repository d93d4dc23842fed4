"""`golden.TensorSpec` and `golden.ScalarSpec` (contracts/reference_harness.md, sections 2 and 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.devices.c_scalars import c_scalar

_FACTORIES = ("randn", "rand", "zeros", "ones")  # called with shape and dtype, by identity
_RANGES = {torch.int8: (-(2**7), 2**7 - 1), torch.int32: (-(2**31), 2**31 - 1), torch.int64: (-(2**63), 2**63 - 1),
           torch.uint8: (0, 2**8 - 1)}  # fmt: skip
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def is_residency(mode: object) -> bool:
    """Whether `mode` is a residency: a worker number (an int >= 0, no bool) or "stacked"."""
    return mode == "stacked" or (isinstance(mode, int) and not isinstance(mode, bool) and mode >= 0)


@dataclass
class TensorSpec:
    """One tensor argument of a program, in the order of its parameters.

    `init_value`: None (zeros), a number, a tensor, one of torch's factories randn, rand, zeros, ones, or a function
    without arguments. `is_output`: compared with the golden; with an `init_value` it is in-out. `resident`: None or
    False (off), the number of the worker that keeps it, or "stacked". Raises ValueError for any other residency at
    construction; like the reference, later assignments are not checked.
    """

    name: str
    shape: list[int]
    dtype: torch.dtype
    init_value: Any = None
    is_output: bool = False
    resident: Any = None

    def __post_init__(self) -> None:
        if self.resident is True:
            raise ValueError(f"TensorSpec {self.name!r}: resident=True is ambiguous; give a worker number or 'stacked'")
        if self.is_resident and not is_residency(self.resident):
            raise ValueError(
                f"TensorSpec {self.name!r}: resident={self.resident!r}; "
                "expected None, False, a worker number or 'stacked'"
            )

    @property
    def is_resident(self) -> bool:
        return self.resident is not None and self.resident is not False

    @property
    def is_inout(self) -> bool:
        """An output with initial contents; the number 0 counts."""
        return self.is_output and self.init_value is not None

    def create_tensor(self) -> Tensor:
        """The initial tensor, by the reference's rules: a tensor of the right dtype is handed out as it is, and the
        shape of a tensor or of a function's result is not looked at. Raises TypeError for an unknown initialiser."""
        init = self.init_value
        if init is None:
            return torch.zeros(self.shape, dtype=self.dtype)
        if isinstance(init, (int, float)):
            return torch.full(self.shape, init, dtype=self.dtype)
        if isinstance(init, Tensor):
            return init.to(self.dtype)
        if any(init is getattr(torch, name) for name in _FACTORIES):
            made: Tensor = init(self.shape, dtype=self.dtype)
            return made
        if callable(init):
            return torch.as_tensor(init(), dtype=self.dtype)
        raise TypeError(f"TensorSpec {self.name!r}: init_value of type {type(init).__name__} is not supported")


class ScalarSpec:
    """One scalar argument. `value` is kept as a 0-dim tensor of `dtype`, so that everyone sees what the device sees.

    Accepts an int in range for integer dtypes, a bool for bool, an int or float for floats (rounded to nearest even),
    or a 0-dim tensor of exactly the dtype. Raises ValueError for anything else.
    """

    def __init__(self, name: str, dtype: torch.dtype, value: int | float | bool | Tensor) -> None:
        self.name = name
        self.dtype = dtype
        if dtype not in _RANGES and dtype not in _FLOATS and dtype is not torch.bool:
            raise ValueError(f"ScalarSpec {name!r}: unsupported dtype {dtype}")
        self.value = value if isinstance(value, Tensor) else torch.tensor(_checked(name, dtype, value), dtype=dtype)
        if self.value.dim() != 0:
            raise ValueError(f"ScalarSpec {name!r}: expected a 0-dim tensor, got shape {list(self.value.shape)}")
        if self.value.dtype != dtype:
            raise ValueError(f"ScalarSpec {name!r}: expected {dtype}, got a tensor of {self.value.dtype}")

    def __repr__(self) -> str:
        return f"ScalarSpec(name={self.name!r}, dtype={self.dtype}, value={self.python_value!r})"

    @property
    def python_value(self) -> int | float | bool:
        """What the golden gets: the number after rounding to the dtype."""
        number: int | float | bool = self.value.item()
        return number

    @property
    def c_value(self) -> Any:
        """What a single-chip program gets: a ctypes scalar; 16-bit floats as the unsigned integer of their bits."""
        return c_scalar(self.python_value, self.dtype)


def _checked(name: str, dtype: torch.dtype, value: object) -> int | float | bool:
    if dtype is torch.bool:
        if isinstance(value, bool):
            return value
        raise ValueError(f"ScalarSpec {name!r}: {dtype} takes a bool, got {value!r}")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"ScalarSpec {name!r}: {dtype} takes a number, got {value!r}")
    if dtype in _FLOATS:
        return value
    low, high = _RANGES[dtype]
    if not isinstance(value, int):
        raise ValueError(f"ScalarSpec {name!r}: {dtype} takes an int, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"ScalarSpec {name!r}: {value} is outside {low}..{high} of {dtype}")
    return value


Spec = TensorSpec | ScalarSpec
