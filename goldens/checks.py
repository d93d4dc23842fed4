"""Checks of what a golden is given, worded in one place.

`name` is "op: tensor", so that a message reads "gate: x_mixed has dtype float32, expected bfloat16". NaN and
Inf are not rejected: they flow to the outputs, where the harness reports them.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from goldens.errors import GoldenInputError


def expect(name: str, tensor: Tensor, shape: Sequence[int | None], dtype: torch.dtype) -> tuple[int, ...]:
    """The shape of `tensor`, once it has the dtype and shape expected.

    A None in `shape` takes any size; only the leading axis may be empty. Raises GoldenInputError.
    """
    if not isinstance(tensor, Tensor):
        raise GoldenInputError(f"{name} is a {type(tensor).__name__}, expected a tensor")
    if tensor.dtype != dtype:
        raise GoldenInputError(f"{name} has dtype {_plain(tensor.dtype)}, expected {_plain(dtype)}")
    found = tuple(tensor.shape)
    if len(found) != len(shape) or any(want not in (None, have) for want, have in zip(shape, found, strict=True)):
        raise GoldenInputError(f"{name} has shape {_extents(found)}, expected {_extents(shape)}")
    if 0 in found[1:]:
        raise GoldenInputError(f"{name} has shape {_extents(found)}, expected no empty axis but the first")
    return found


def expect_integer(name: str, value: int) -> int:
    """`value`, once it is an int that fits INT32. Raises GoldenInputError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise GoldenInputError(f"{name} is {value!r}, expected an int")
    if not -(2**31) <= value < 2**31:
        raise GoldenInputError(f"{name} is {value}, expected an INT32 value")
    return value


def expect_range(name: str, tensor: Tensor, low: int, high: int, at: tuple[int, ...] = ()) -> None:
    """Every element of an integer tensor lies in low..high. Raises GoldenInputError for the first outside.

    `at` is where `tensor` lies in the tensor that `name` names, for a part of it.
    """
    outside = (tensor < low) | (tensor > high)
    if bool(outside.any()):
        index = tuple(int(i) for i in outside.nonzero()[0])
        raise GoldenInputError(f"{name}{[*at, *index]} is {int(tensor[index])}, expected {low}..{high}")


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _extents(shape: Sequence[int | None]) -> str:
    return "[" + ", ".join("any" if n is None else str(n) for n in shape) + "]"


class Given(dict[str, Tensor]):
    """Stages of a device that a golden goes on from, with `computed`: what the golden itself had in their places.

    So one evaluation tells of every stage what it must be, given the device's own stages before it.
    """

    def __init__(self, stages: Mapping[str, Tensor]) -> None:
        super().__init__(stages)
        self.computed: dict[str, Tensor] = {}

    def record(self, name: str, computed: Tensor) -> None:
        """Note what was computed for a stage. The first note stands: it is from the part that the stage belongs to."""
        self.computed.setdefault(name, computed)


class _Part(Given):
    """What a part of a golden is given, under the names that it has for the stages; its notes reach the whole."""

    def __init__(self, whole: Given, names: Mapping[str, str]) -> None:
        super().__init__({there: whole[here] for here, there in names.items() if here in whole})
        self._whole = whole
        self._here = {there: here for here, there in names.items()}

    def record(self, name: str, computed: Tensor) -> None:
        if name in self._here:
            self._whole.record(self._here[name], computed)


def part_of(given: Mapping[str, Tensor] | None, names: Mapping[str, str]) -> Mapping[str, Tensor]:
    """What is given of the stages `names` (name here -> name there), for the golden of a part."""
    if isinstance(given, Given):
        return _Part(given, names)
    return {there: given[here] for here, there in names.items() if here in given} if given is not None else {}


def continued(given: Mapping[str, Tensor] | None, op: str, name: str, computed: Tensor) -> Tensor:
    """The stage `name` from which a golden goes on: `given[name]` where there is one, else what it computed.

    A device may legally differ in the last bit of a stage. Judged against the golden continued from the device's own
    stage, what follows is not failed for that. Raises GoldenInputError for another shape or dtype.
    """
    if isinstance(given, Given):
        given.record(name, computed)
    if given is None or name not in given:
        return computed
    expect(f"{op}: given {name}", given[name], tuple(computed.shape), computed.dtype)
    return given[name]
