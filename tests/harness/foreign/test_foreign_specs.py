"""TensorSpec and ScalarSpec of the stand-in: reference_harness.md sections 2 and 3."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch

from harness.foreign.golden_specs import ScalarSpec, TensorSpec


def made(init: Any, dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (2, 3)) -> torch.Tensor:
    return TensorSpec("x", list(shape), dtype, init_value=init).create_tensor()


def test_none_is_zeros() -> None:
    assert torch.equal(made(None, torch.bfloat16), torch.zeros(2, 3, dtype=torch.bfloat16))


@pytest.mark.parametrize(("init", "value"), [(3, 3.0), (0.5, 0.5), (True, 1.0), (0, 0.0)])
def test_a_number_fills(init: Any, value: float) -> None:
    assert torch.equal(made(init), torch.full((2, 3), value))


def test_a_number_that_does_not_fit_is_torchs_error() -> None:
    with pytest.raises(RuntimeError):
        made(300, torch.int8)


def test_a_tensor_is_converted_without_its_shape_being_looked_at() -> None:
    given = torch.tensor([1.9, -1.9])
    assert made(given) is given
    assert made(given, torch.int8).tolist() == [1, -1]


@pytest.mark.parametrize("name", ["zeros", "ones", "rand", "randn"])
def test_a_factory_gets_shape_and_dtype(name: str) -> None:
    result = made(getattr(torch, name), torch.float16)
    assert result.shape == (2, 3)
    assert result.dtype == torch.float16


def test_randn_of_integers_is_torchs_error() -> None:
    with pytest.raises(NotImplementedError):
        made(torch.randn, torch.int8)


def test_another_callable_is_called_without_arguments() -> None:
    captured = torch.ones(5)
    assert made(lambda: captured) is captured
    assert made(lambda: [1.5, 2.5], torch.int32).tolist() == [1, 2]


def test_rejects_an_unknown_initialiser_when_it_is_used() -> None:
    spec = TensorSpec("x", [2], torch.float32, init_value="randn")
    with pytest.raises(TypeError, match="'x': init_value of type str"):
        spec.create_tensor()


@pytest.mark.parametrize("mode", [None, False])
def test_residency_is_off(mode: Any) -> None:
    assert not TensorSpec("x", [2], torch.float32, resident=mode).is_resident


@pytest.mark.parametrize("mode", [0, 3, "stacked"])
def test_accepts_a_residency(mode: Any) -> None:
    assert TensorSpec("x", [2], torch.float32, resident=mode).is_resident
    assert TensorSpec("x", [2], torch.float32, is_output=True, resident=mode).is_resident  # as HEAD


@pytest.mark.parametrize("mode", [True, -1, "typo", 1.0, [0]])
def test_rejects_a_residency(mode: Any) -> None:
    with pytest.raises(ValueError, match="resident="):
        TensorSpec("x", [2], torch.float32, resident=mode)


def test_a_later_assignment_is_not_checked() -> None:
    spec = TensorSpec("x", [2], torch.float32)
    spec.resident = "typo"
    assert spec.is_resident


@pytest.mark.parametrize(
    ("init", "output", "inout"),
    [(None, True, False), (0, True, True), (None, False, False), (0, False, False)],
)
def test_zero_makes_an_output_inout(init: Any, output: bool, inout: bool) -> None:
    assert TensorSpec("x", [2], torch.float32, init, output).is_inout is inout


LIMITS = {torch.int8: (-128, 127), torch.int32: (-(2**31), 2**31 - 1), torch.int64: (-(2**63), 2**63 - 1),
          torch.uint8: (0, 255)}  # fmt: skip


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
def test_integers_are_accepted_up_to_their_limits(dtype: torch.dtype) -> None:
    for value in LIMITS[dtype]:
        assert ScalarSpec("n", dtype, value).python_value == value
    for value in (LIMITS[dtype][0] - 1, LIMITS[dtype][1] + 1):
        with pytest.raises(ValueError, match="outside"):
            ScalarSpec("n", dtype, value)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(torch.int32, True), (torch.int32, 1.0), (torch.bool, 1), (torch.float32, True), (torch.float16, "1"),
     (torch.float64, 1.0), (torch.int16, 1), (torch.int32, torch.tensor([1], dtype=torch.int32)),
     (torch.int32, torch.tensor(1))],
)  # fmt: skip
def test_rejects_a_scalar(dtype: torch.dtype, value: Any) -> None:
    with pytest.raises(ValueError, match="ScalarSpec 'n'"):
        ScalarSpec("n", dtype, value)


def test_a_tensor_of_the_dtype_is_kept() -> None:
    value = torch.tensor(7, dtype=torch.int32)
    assert ScalarSpec("n", torch.int32, value).value is value


@pytest.mark.parametrize(
    ("dtype", "value", "kind", "bits"),
    [
        (torch.int8, -3, ctypes.c_int8, -3),
        (torch.int32, 7, ctypes.c_int32, 7),
        (torch.int64, 7, ctypes.c_int64, 7),
        (torch.uint8, 200, ctypes.c_uint8, 200),
        (torch.bool, True, ctypes.c_bool, True),
        (torch.float32, 0.5, ctypes.c_float, 0.5),
        (torch.float16, -2.0, ctypes.c_uint16, 0xC000),
        (torch.bfloat16, 0.1, ctypes.c_uint16, 0x3DCD),
    ],
)
def test_c_values(dtype: torch.dtype, value: Any, kind: Any, bits: Any) -> None:
    c_value = ScalarSpec("n", dtype, value).c_value
    assert type(c_value) is kind
    assert c_value.value == bits


def test_the_golden_sees_the_rounded_number() -> None:
    assert ScalarSpec("n", torch.bfloat16, 0.1).python_value == 0.10009765625
