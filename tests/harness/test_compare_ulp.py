"""The comparator `ulp`: steps, cancelled elements, rows that one flipped code or a last bit carries away."""

import math

import pytest
import torch
from comparing import ULP, bf16, judge

from harness.compare import FAIL, PASS, Output, Ulp


def test_ulp_accepts_one_step_and_rejects_two():
    assert judge(ULP, bf16(0x3F81, 0x3F80), bf16(0x3F80, 0x3F80)).status == PASS
    judged = judge(ULP, bf16(0x3F82, 0x3F80), bf16(0x3F80, 0x3F80))
    assert judged.status == FAIL
    assert judged.worst.distance == 2


def test_ulp_rejects_one_differing_element_past_the_budget():
    assert judge(ULP, bf16(0x3F81, 0x3F81, 0x3F80, 0x3F80), bf16(*[0x3F80] * 4)).status == PASS
    judged = judge(ULP, bf16(0x3F81, 0x3F81, 0x3F7F, 0x3F80), bf16(*[0x3F80] * 4))
    assert judged.reason == "differing 3 of 4 (75.0000%), allowed 2"
    assert judged.where[0].counts == ((0, 1), (1, 1), (2, 1))


def test_ulp_judges_cancelled_elements_by_the_rms_of_their_row():
    comparator = Ulp(max_ulp=1, atol_rms=0.01, differing_fraction=1, differing_points=0)
    expected = torch.tensor([[1.0, 0.0, 1.0, 0.0], [1e-3, 0.0, 1e-3, 0.0]])
    actual = expected.clone()
    actual[0, 1] = 0.007  # RMS of the row: 0.7071
    assert judge(comparator, actual, expected).status == PASS
    actual[0, 1] = 0.0072
    assert judge(comparator, actual, expected).status == FAIL
    actual[0, 1], actual[1, 1] = 0.0, 0.007
    assert judge(comparator, actual, expected).status == FAIL


def flip_comparator(limit=1.5, rows=0.25):
    return Ulp(
        max_ulp=1,
        atol_rms=0.0,
        differing_fraction=1e-3,
        differing_points=0,
        flip_codes="h_i8",
        flip_limit=limit,
        flip_rows=rows,
    )


def flipped_output(rows, steps=1):
    """Rows codes @ weight with one code of each of `rows` off by `steps`, as BF16."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-127, 128, (8, 256), generator=generator)
    weight = torch.randn(512, 256, generator=generator)
    wrong = codes.clone()
    for row in rows:
        wrong[row, 3] += steps
    outputs = [(c.float() @ weight.T).bfloat16() for c in (wrong, codes)]
    return Output(*outputs, stages={"h_i8": codes.to(torch.int8)})


def test_ulp_accepts_rows_that_one_flipped_code_explains():
    assert flip_comparator().judge(flipped_output([])).status == PASS
    assert flip_comparator().judge(flipped_output([2])).status == PASS
    assert flip_comparator().judge(flipped_output([2, 5])).status == PASS


def test_ulp_rejects_more_flipped_rows_than_budgeted_and_larger_errors():
    assert flip_comparator().judge(flipped_output([1, 2, 5])).status == FAIL
    assert flip_comparator().judge(flipped_output([2], steps=5)).status == FAIL
    nan = flipped_output([2])
    nan.actual[2, 0] = math.nan
    assert flip_comparator().judge(nan).status == FAIL


def test_the_label_tells_of_flips():
    assert "1.5 flips of h_i8" in flip_comparator().label


def boundary_case(rows: int):
    """32 rows of 64 equal elements just below a BF16 boundary; the device carries the first `rows` across it."""
    stage = torch.full((32, 64), 1.00390625 * (1 - 2.0**-22), dtype=torch.float32)
    expected = stage.to(torch.bfloat16)
    actual = expected.clone()
    actual[:rows] = torch.tensor(1.0078125, dtype=torch.bfloat16)
    return actual, expected, {"scaled": stage}


def near(limit: float = 1.3e-6) -> Ulp:
    return Ulp(
        max_ulp=1, atol_rms=0.0, differing_fraction=0.0, differing_points=0,
        near_stage="scaled", near=limit, near_rows=0.0625,
    )  # fmt: skip


def test_accepts_whole_rows_that_a_last_bit_carries_across_a_boundary():
    actual, expected, stages = boundary_case(2)
    assert near().judge(Output(actual, expected, stages=stages)).status == PASS


def test_rejects_such_rows_beyond_their_budget():
    """A wrong rounding mode looks the same in one row, but does it to all."""
    actual, expected, stages = boundary_case(3)
    judged = near().judge(Output(actual, expected, stages=stages))
    assert judged.status == FAIL
    assert "differing 192 of 2048" in judged.reason


def test_rejects_a_step_whose_stage_is_not_near_the_boundary():
    actual, expected, stages = boundary_case(2)
    assert near(1e-7).judge(Output(actual, expected, stages=stages)).status == FAIL


def test_rejects_a_near_stage_without_its_limits():
    with pytest.raises(ValueError, match="stand together"):
        Ulp(max_ulp=1, atol_rms=0.0, differing_fraction=0.0, differing_points=0, near_stage="scaled")
