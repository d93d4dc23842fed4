"""Each comparator accepts at its limit and rejects one step past it; what every comparator rejects alike."""

import math

import pytest
import torch

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
    RowL2,
    TopK,
    Ulp,
    budget,
)

EXACT = Exact()
CLOSE = Close(rtol=0.0, atol=0.5, over_fraction=0.0, over_points=0)
ULP = Ulp(max_ulp=1, atol_rms=0.0, differing_fraction=0.5, differing_points=0)
CODES = Codes(max_step=1, step_fraction=0.5, step_points=0, bias_z=6.0)


def judge(comparator, actual, expected, dtype=None, **known):
    tensors = [torch.as_tensor(t) if dtype is None else torch.as_tensor(t).to(dtype) for t in (actual, expected)]
    return comparator.judge(Output(*tensors, **known))


def bf16(*bits):
    return torch.tensor(bits, dtype=torch.int16).view(torch.bfloat16)


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


# ulp


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


# topk: the vectors C1 to C9, column S: decided by the golden's keys


KEYS = torch.tensor([[5.0, 5.0, 3.0, 2.0, 1.0]])
TOPK = TopK(keys="keys", band=0.1)


def judge_ids(actual, expected, keys=KEYS, comparator=TOPK):
    tensors = [torch.tensor([ids], dtype=torch.int32) for ids in (actual, expected)]
    return comparator.judge(Output(*tensors, stages={"keys": keys}))


@pytest.mark.parametrize(
    ("ids", "status"),
    [
        ([0, 1, 2], PASS),
        ([1, 0, 2], PASS),  # C1: a tie
        ([0, 2, 1], FAIL),  # out of order
        ([0, 1, 3], FAIL),  # C4: a worse candidate
        ([0, 0, 2], FAIL),  # repeated, although its key is as good
        ([1, 1, 2], FAIL),
        ([-9, -9, -9], FAIL),  # C5
        ([0, 1, 5], FAIL),  # out of range
    ],
)
def test_topk_vectors(ids, status):
    assert judge_ids(ids, [0, 1, 2]).status == status


@pytest.mark.parametrize(("ids", "status"), [([0], PASS), ([1], PASS), ([4], FAIL)])
def test_topk_of_one(ids, status):
    """C7: k = 1 is decided by the reference scores."""
    assert judge_ids(ids, [0]).status == status


def test_topk_band_accepts_at_the_limit_and_rejects_past_it():
    keys = torch.tensor([[1.0, 0.75, 0.5]])
    at = TopK(keys="keys", band=0.25)
    assert judge_ids([1, 0], [0, 1], keys, at).status == PASS
    assert judge_ids([1, 0], [0, 1], keys, TopK(keys="keys", band=0.2499)).status == FAIL


def test_topk_rows_that_are_no_selection_must_be_equal():
    """A hash layer's table order and an inactive token's zeros leave no freedom, whatever the keys."""
    tied = torch.zeros(1, 5)
    assert judge_ids([4, 2], [4, 2], KEYS).status == PASS
    assert judge_ids([2, 4], [4, 2], KEYS).status == FAIL
    assert judge_ids([0, 0], [0, 0], tied).status == PASS
    assert judge_ids([0, 1], [0, 0], tied).status == FAIL


def test_topk_padding_must_be_equal():
    assert judge_ids([1, 0, -1], [0, 1, -1]).status == PASS
    assert judge_ids([0, 1, 2], [0, 1, -1]).status == FAIL
    assert judge_ids([0, 1, -1], [0, 1, 2]).status == FAIL


def test_labels_spell_the_whole_rule():
    assert CLOSE.label == "|a-e| <= 0.5 + 0|e|, over 0"
    assert ULP.label == "1 ULP, differing <= 50.0000%"
    assert CODES.label == "1 step, differing <= 50.0000%, |z| <= 6"
    assert EXACT.label == "bit-equal"
    assert TOPK.label == "top-k by keys, band 0.1; other rows equal"
    assert "1.5 flips of h_i8" in flip_comparator().label


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


def test_row_l2_judges_every_token_by_itself():
    comparator = RowL2(rel_l2=0.01, row_axes=1)
    expected = torch.ones(3, 2, 50)
    actual = expected.clone()
    actual[1] += 0.0099
    assert judge(comparator, actual, expected).status == PASS
    actual[1, 0, 0] = 1.5
    judged = judge(comparator, actual, expected)
    assert judged.status == FAIL
    assert judged.worst is not None
    assert judged.worst.index[0] == 1
    zeros = torch.zeros(2, 4)
    assert judge(comparator, zeros, zeros).status == PASS
    assert judge(comparator, zeros + 1e-30, zeros).status == FAIL


def test_row_l2_leaves_out_what_is_not_valid():
    comparator = RowL2(rel_l2=0.01, row_axes=1)
    expected, valid = torch.ones(2, 4), torch.ones(2, 4, dtype=torch.bool)
    actual = expected.clone()
    actual[0, 0], valid[0, 0] = 9.0, False
    assert judge(comparator, actual, expected, valid=valid).status == PASS
    assert judge(comparator, actual, expected).status == FAIL
