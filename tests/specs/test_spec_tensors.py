"""TensorSpec and ScalarSpec: what they accept and refuse, from the constructor and from replace."""

import dataclasses
import math

import pytest
import torch

from specs.distributions import Constant, Normal
from specs.errors import SpecError
from specs.tensors import SCALAR_DTYPES, TENSOR_DTYPES, ScalarSpec, TensorSpec

X = TensorSpec("x", (4, 8), torch.float32, Normal(), "in")
Y = TensorSpec("y", (4, 8), torch.float32, None, "out")


@pytest.mark.parametrize("dtype", TENSOR_DTYPES, ids=str)
def test_accepts_every_dtype_of_the_dsl(dtype: torch.dtype) -> None:
    assert X.replace(dtype=dtype).dtype is dtype


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.float8_e4m3fn, "float32"], ids=str)
def test_rejects_other_dtypes(dtype: object) -> None:
    with pytest.raises(SpecError, match=r"tensor x: dtype .* is not one of float32"):
        X.replace(dtype=dtype)


@pytest.mark.parametrize("resident", [None, 0, 3, "stacked"])
def test_accepts_resident_inputs(resident: object) -> None:
    assert X.replace(resident=resident).resident == resident
    assert X.replace(role="inout", resident=resident).is_output


@pytest.mark.parametrize(
    ("resident", "message"),
    [
        (True, "resident=True is ambiguous: write 0 .on worker 0. or 'stacked'"),
        (False, "resident=False is ambiguous: write None .not resident. or 0"),
        (-1, "resident=-1 is not None, a worker number >= 0 or 'stacked'"),
        ("typo", "resident='typo' is not"),
        (1.0, "resident=1.0 is not"),
    ],
)
def test_rejects_other_residencies(resident: object, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        X.replace(resident=resident)


def test_rejects_a_resident_output_also_when_replaced() -> None:
    with pytest.raises(SpecError, match="y: an output cannot be resident"):
        TensorSpec("y", (4,), torch.float32, None, "out", resident=0)
    with pytest.raises(SpecError, match="y: an output cannot be resident"):
        Y.replace(resident="stacked")
    with pytest.raises(SpecError, match="x: an output cannot be resident"):
        X.replace(resident=0).replace(role="out", init=None)


def test_rejects_stacking_a_tensor_without_a_rank_axis() -> None:
    with pytest.raises(SpecError, match="needs a rank and a data axis"):
        X.replace(shape=(8,), resident="stacked")


@pytest.mark.parametrize("shape", [(), (0,), (4, 0), (-1,), (2.0,), (True, 2), "48", None, 4], ids=str)
def test_rejects_shapes_without_elements_or_with_other_things(shape: object) -> None:
    with pytest.raises(SpecError, match="tensor x: shape"):
        X.replace(shape=shape)


def test_accepts_a_list_as_shape_and_keeps_a_tuple() -> None:
    assert X.replace(shape=[2, 3]).shape == (2, 3)


@pytest.mark.parametrize("name", ["", "1x", "a b", "a.b", None, 3])
def test_rejects_names_that_are_no_identifiers(name: object) -> None:
    with pytest.raises(SpecError, match="is not an identifier"):
        X.replace(name=name)
    with pytest.raises(SpecError, match="is not an identifier"):
        ScalarSpec(name, torch.int32, 1)  # type: ignore[arg-type]


def test_rejects_contents_that_do_not_fit_the_role() -> None:
    with pytest.raises(SpecError, match="x: role 'in' needs a distribution"):
        X.replace(init=None)
    with pytest.raises(SpecError, match="x: role 'inout' needs a distribution"):
        X.replace(role="inout", init=None)
    with pytest.raises(SpecError, match="y: an output has no initial contents"):
        Y.replace(init=Constant(0.0))
    with pytest.raises(SpecError, match="init is float, expected a Distribution"):
        X.replace(init=0.5)
    with pytest.raises(SpecError, match="role 'output' is not one of in, out, inout"):
        X.replace(role="output")


def test_rejects_unknown_fields_and_assignment() -> None:
    with pytest.raises(SpecError, match="no field 'is_output' to replace"):
        X.replace(is_output=True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        X.resident = "typo"  # type: ignore[misc, assignment]


def test_roles_say_who_reads_and_who_is_compared() -> None:
    assert [(s.is_input, s.is_output) for s in (X, Y, X.replace(role="inout"))] == [
        (True, False),
        (False, True),
        (True, True),
    ]


ACCEPTED = [
    (torch.int8, -128, -128, -128),
    (torch.int8, 127, 127, 127),
    (torch.uint8, 255, 255, 255),
    (torch.int32, -(2**31), -(2**31), -(2**31)),
    (torch.int64, 2**63 - 1, 2**63 - 1, 2**63 - 1),
    (torch.bool, True, True, True),
    (torch.float32, 1, 1.0, 1.0),
    (torch.float32, 0.1, 0.10000000149011612, 0.10000000149011612),
    (torch.bfloat16, 0.1, 0.10009765625, 0x3DCD),
    (torch.float16, 0.1, 0.0999755859375, 0x2E66),
    (torch.bfloat16, -1.0, -1.0, 0xBF80),
    (torch.float16, 65519.0, 65504.0, 0x7BFF),
]


@pytest.mark.parametrize(("dtype", "value", "stored", "encoded"), ACCEPTED)
def test_accepts_scalars_and_keeps_the_device_value(
    dtype: torch.dtype, value: float, stored: float, encoded: float
) -> None:
    scalar = ScalarSpec("n", dtype, value)
    assert scalar.value == stored
    assert type(scalar.value) is type(stored)
    assert scalar.encoded() == encoded
    assert scalar.tensor().dtype == dtype
    assert scalar.tensor().item() == stored


def test_every_scalar_dtype_is_tried() -> None:
    assert {row[0] for row in ACCEPTED} == set(SCALAR_DTYPES)


@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        (torch.int8, 128, "outside -128..127"),
        (torch.uint8, -1, "outside 0..255"),
        (torch.int32, 2**31, "outside"),
        (torch.int32, 1.0, "is a float, expected an int"),
        (torch.int32, True, "is bool"),
        (torch.bool, 1, "is int, expected True or False"),
        (torch.float32, True, "is bool"),
        (torch.float32, "1", "is str"),
        (torch.float32, None, "is NoneType"),
        (torch.float32, math.nan, "is not finite"),
        (torch.bfloat16, -math.inf, "is not finite"),
        (torch.float16, 65520.0, "overflows float16, whose largest value is 65504"),
        (torch.float16, 1e6, "overflows float16"),
        (torch.float32, 3.5e38, "overflows float32"),
        (torch.float32, 10**400, "overflows float32"),
        (torch.float64, 1.0, "dtype torch.float64 is not one of"),
        (torch.int16, 1, "dtype torch.int16 is not one of"),
    ],
)
def test_rejects_scalars(dtype: torch.dtype, value: object, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ScalarSpec("n", dtype, value)  # type: ignore[arg-type]


def test_rejects_scalars_also_when_replaced() -> None:
    scalar = ScalarSpec("n", torch.int32, 1)
    assert scalar.replace(value=7).value == 7
    with pytest.raises(SpecError, match="is a float"):
        scalar.replace(value=1.5)
    with pytest.raises(SpecError, match="no field 'role'"):
        scalar.replace(role="in")
