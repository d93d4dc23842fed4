"""Each comparator accepts at its limit and rejects one step past it; what every comparator rejects alike."""

import math

import pytest
import torch
from comparing import CLOSE, CODES, EXACT, ULP, judge

from harness.compare import (
    COMPARATORS,
    EMPTY,
    FAIL,
    PASS,
    Close,
    Codes,
    Comparator,
    Exact,
    Output,
    Ulp,
    budget,
)


def ratio(atol, rtol, fraction):
    """The strict counterpart of ratio_allclose: the budget is rounded down."""
    return Close(rtol=rtol, atol=atol, over_fraction=fraction, over_points=0)


# What every comparator does alike

FLOATING = [EXACT, CLOSE, ULP]


@pytest.mark.parametrize("comparator", [EXACT, CLOSE, ULP, CODES], ids=lambda c: c.kind)
def test_rejects_another_shape_that_would_broadcast(comparator):
    judged = judge(comparator, torch.ones(1, 4), torch.ones(4, 4))
    assert judged.status == FAIL
    assert judged.reason == "shape (1, 4), expected (4, 4)"


@pytest.mark.parametrize("comparator", [EXACT, CLOSE, ULP, CODES], ids=lambda c: c.kind)
def test_rejects_another_dtype_with_equal_values(comparator):
    judged = judge(comparator, torch.ones(4), torch.ones(4, dtype=torch.int8))
    assert judged.reason == "dtype torch.float32, expected torch.int8"


@pytest.mark.parametrize("comparator", FLOATING, ids=lambda c: c.kind)
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("sides", ["actual", "expected", "both"])
def test_rejects_non_finite_values_on_either_side(comparator, value, sides):
    actual, expected = torch.ones(4), torch.ones(4)
    if sides != "expected":
        actual[2] = value
    if sides != "actual":
        expected[2] = value
    judged = judge(comparator, actual, expected)
    assert judged.status == FAIL
    assert "1 of 4 (25.0000%) not finite" in judged.reason
    assert judged.worst.index == (2,)


@pytest.mark.parametrize("kind", [Exact, Close, Ulp])
def test_accepts_the_same_nan_where_declared(kind):
    fields = {
        Exact: {},
        Close: {"rtol": 0, "atol": 0, "over_fraction": 0, "over_points": 0},
        Ulp: {"max_ulp": 0, "atol_rms": 0, "differing_fraction": 0, "differing_points": 0},
    }
    comparator = kind(nonfinite="same", **fields[kind])
    values = torch.tensor([1.0, math.nan, math.inf])
    assert judge(comparator, values, values).status == PASS
    assert judge(comparator, torch.tensor([1.0, math.nan, -math.inf]), values).status == FAIL


@pytest.mark.parametrize("comparator", [EXACT, CLOSE, ULP, CODES], ids=lambda c: c.kind)
def test_an_empty_output_is_not_a_pass(comparator):
    assert judge(comparator, torch.empty(0), torch.empty(0)).status == EMPTY
    nothing = torch.zeros(3, dtype=torch.bool)
    assert judge(comparator, torch.ones(3), torch.zeros(3), valid=nothing).status == EMPTY


@pytest.mark.parametrize("comparator", [EXACT, CLOSE, ULP, CODES], ids=lambda c: c.kind)
def test_rejects_an_element_that_was_never_written_even_if_it_is_right(comparator):
    undefined = torch.tensor([False, True, False])
    judged = judge(comparator, torch.ones(3), torch.ones(3), undefined=undefined)
    assert judged.status == FAIL
    assert "1 of 3 (33.3333%) never written" in judged.reason
    assert judged.worst.index == (1,)


def test_where_all_that_was_written_is_right_the_worst_element_is_one_that_was_not() -> None:
    expected = torch.tensor([1.0, 2.0, 3.0])
    actual = torch.tensor([1.5, 2.0, 3.0])  # 0.5 off, as far as CLOSE allows
    judged = CLOSE.judge(Output(actual, expected, undefined=torch.tensor([False, False, True])))
    assert judged.status == FAIL
    assert judged.worst is not None
    assert judged.worst.index == (2,)
    assert judged.where[0].counts == ((2, 1),)


@pytest.mark.parametrize("comparator", [EXACT, CLOSE, ULP, CODES], ids=lambda c: c.kind)
def test_accepts_anything_where_the_contract_defines_nothing(comparator):
    valid = torch.tensor([True, False])
    undefined = torch.tensor([False, True])
    judged = judge(comparator, torch.tensor([1.0, math.nan]), torch.ones(2), valid=valid, undefined=undefined)
    assert judged.status == PASS


@pytest.mark.parametrize("name", sorted(COMPARATORS))
def test_parameters_are_keyword_only_and_without_loosening_defaults(name):
    import dataclasses

    for field in dataclasses.fields(COMPARATORS[name]):
        assert field.kw_only
        assert field.default in (dataclasses.MISSING, None, "refuse")


def test_rejects_parameters_out_of_range():
    with pytest.raises(ValueError, match="atol is -1"):
        Close(rtol=0.0, atol=-1.0, over_fraction=0.0, over_points=0)
    with pytest.raises(ValueError, match=r"over_fraction is 1\.5"):
        Close(rtol=0.0, atol=0.0, over_fraction=1.5, over_points=0)
    with pytest.raises(ValueError, match="nan"):
        Close(rtol=math.nan, atol=0.0, over_fraction=0.0, over_points=0)
    with pytest.raises(ValueError, match="stand together"):
        Ulp(max_ulp=1, atol_rms=0.0, differing_fraction=0.0, differing_points=0, flip_codes="h")


@pytest.mark.parametrize(
    ("fraction", "compared", "allowed"),
    [(0.05, 30, 1), (0.005, 101, 0), (0.005, 300, 1), (0.29, 100, 29), (1e-4, 9999, 0)],
)
def test_budgets_are_rounded_down(fraction, compared, allowed):
    assert budget(fraction, 0, compared) == allowed
    assert budget(fraction, 7, compared) == max(7, allowed)


# exact


def test_exact_accepts_equal_bits_and_rejects_the_other_zero():
    assert judge(EXACT, torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0])).status == PASS
    judged = judge(EXACT, torch.tensor([-0.0, 1.0]), torch.tensor([0.0, 1.0]))
    assert judged.status == FAIL
    assert "over the limit 1 of 2" in judged.reason


# close: the vectors A1 to A15 of reference_harness.md 20, column S


@pytest.mark.parametrize(
    ("comparator", "actual", "expected", "status"),
    [
        (ratio(0, 0, 0), [1.0, 2.0], [1.0, 2.0], PASS),
        (ratio(0.5, 0, 0), [1.5], [1.0], PASS),
        (ratio(0, 1 / 128, 0), [1.0078125], [1.0], PASS),
        (ratio(0, 1 / 128, 0), [1.0], [0.9921875], FAIL),
        (ratio(1, 1, 1), [math.nan], [1.0], FAIL),
        (ratio(0, 0, 0), [1.0], [math.nan], FAIL),
        (ratio(0, 0, 0), [1.0], [math.inf], FAIL),
        (ratio(0, 0, 0), [math.nan], [math.nan], FAIL),
        (ratio(0, 0, 0), [], [], EMPTY),
        (ratio(0, 0, 0), [2**40 + 1], [2**40], FAIL),
    ],
)
def test_close_vectors(comparator, actual, expected, status):
    assert judge(comparator, actual, expected).status == status


@pytest.mark.parametrize(
    ("n", "bad", "status"), [(100, 1, FAIL), (101, 1, FAIL), (200, 1, PASS), (300, 2, FAIL), (500, 3, FAIL)]
)
def test_close_budget_vectors(n, bad, status):
    actual = torch.ones(n)
    actual[:bad] = 2
    assert judge(ratio(0, 0, 0.005), actual, torch.ones(n)).status == status


def test_close_rejects_one_step_past_the_tolerance():
    limit = torch.tensor([1.5])
    assert judge(CLOSE, limit, torch.tensor([1.0])).status == PASS
    judged = judge(CLOSE, torch.nextafter(limit, torch.tensor(2.0)), torch.tensor([1.0]))
    assert judged.status == FAIL
    assert judged.reason == "over the limit 1 of 1 (100.0000%), allowed 0"


def test_close_gives_bf16_and_fp32_copies_one_verdict():
    """W27: the tolerance is not computed in the tensors' dtype."""
    expected = torch.linspace(0.1, 3, 1000).bfloat16()
    actual = expected * 1.01
    close = ratio(0, 0.0123, 0)
    assert judge(close, actual, expected).metrics.over == judge(close, actual.float(), expected.float()).metrics.over


def test_close_row_budget_finds_what_the_whole_budget_hides():
    comparator = Close(rtol=0, atol=0, over_fraction=0.1, over_points=0, row_fraction=0.2)
    actual = torch.ones(10, 10)
    actual[:2, 0] = 2
    actual[1, 1] = 2
    assert judge(comparator, actual, torch.ones(10, 10)).status == PASS
    actual[1, 2] = 2
    judged = judge(comparator, actual, torch.ones(10, 10))
    assert judged.status == FAIL
    assert judged.reason.startswith("row 1: over the limit 3 of 10")


def test_close_rejects_a_bias_that_no_threshold_sees():
    comparator = Close(rtol=0, atol=1, over_fraction=0, over_points=0, bias_z=6)
    expected = torch.ones(100)
    fair = expected + 0.1 * torch.tensor([1.0, -1.0]).repeat(50)
    assert judge(comparator, fair, expected).status == PASS
    judged = judge(comparator, expected - 0.1, expected)
    assert "errors have one sign: 0 up, 100 down (z -10.0, 6)" in judged.reason


# codes


def test_codes_accepts_one_step_and_rejects_two():
    expected = torch.zeros(4, dtype=torch.int8)
    assert judge(CODES, torch.tensor([1, -1, 0, 0], dtype=torch.int8), expected).status == PASS
    judged = judge(CODES, torch.tensor([2, 0, 0, 0], dtype=torch.int8), expected)
    assert "over the limit 1 of 4" in judged.reason
    judged = judge(CODES, torch.tensor([1, -1, 1, 0], dtype=torch.int8), expected)
    assert judged.reason == "differing 3 of 4 (75.0000%), allowed 2"


def test_codes_rejects_truncation_for_rounding_although_every_step_is_allowed():
    comparator = Codes(max_step=1, step_fraction=1.0, step_points=0, bias_z=6)
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 100
    judged = judge(comparator, values.trunc().to(torch.int8), values.round().to(torch.int8))
    assert judged.reason.startswith("errors have one sign: 0 up")


def test_labels_spell_the_whole_rule():
    assert CLOSE.label == "|a-e| <= 0.5 + 0|e|, over 0"
    assert ULP.label == "1 ULP, differing <= 50.0000%"
    assert CODES.label == "1 step, differing <= 50.0000%, |z| <= 6"
    assert EXACT.label == "bit-equal"


def test_names_the_bad_elements_of_a_transposed_output():
    """A device may hand back a view; the explanation of a failure must cope with its strides."""
    expected = torch.arange(12.0).reshape(3, 4).t()
    actual = expected.clone()
    actual[2, 1] += 1
    judged = Exact().judge(Output(actual, expected))
    assert judged.status == FAIL
    assert judged.worst is not None
    assert judged.worst.index == (2, 1)
    assert judged.where


@pytest.mark.parametrize(
    ("comparator", "actual", "used"),
    [
        (Exact(), [1.0, 2.0], 0.0),
        (Close(rtol=0.0, atol=0.5, over_fraction=0.0, over_points=0), [1.25, 2.0], 0.5),
        (Close(rtol=0.0, atol=0.5, over_fraction=0.0, over_points=4), [1.75, 2.0], 0.25),
        (Ulp(max_ulp=4, atol_rms=0.0, differing_fraction=0.0, differing_points=2), [1.0 + 2**-23, 2.0], 0.5),
        (Ulp(max_ulp=4, atol_rms=0.0, differing_fraction=0.0, differing_points=4), [1.0 + 3 * 2**-23, 2.0], 0.75),
    ],
)
def test_used_is_the_largest_share_of_a_limit(comparator: Comparator, actual: list[float], used: float):
    judged = judge(comparator, torch.tensor(actual), torch.tensor([1.0, 2.0]))
    assert judged.status == PASS
    assert judged.used == pytest.approx(used)


def test_used_beyond_a_limit_of_nothing_is_infinite():
    strict = Close(rtol=0.0, atol=0.0, over_fraction=0.0, over_points=0)
    judged = judge(strict, torch.tensor([1.0, 3.0]), torch.tensor([1.0, 2.0]))
    assert judged.status == FAIL
    assert judged.used == math.inf
