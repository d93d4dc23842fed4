"""The stand-in comparators give the reference's verdicts: vectors of reference_harness.md section 20, column HEAD."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.foreign.golden_compare import (
    error_distribution,
    mapped_pool_ratio_allclose,
    ratio_allclose,
    ratio_reldiff,
    topk_pair_compare,
)

NAN, INF = math.nan, math.inf


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def bad(count: int, wrong: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` ones, of which `wrong` are 2 on the actual side."""
    actual = torch.ones(count)
    actual[:wrong] = 2
    return actual, torch.ones(count)


RATIO_ALLCLOSE = {
    "A1": ((0, 0, 0), (column(1, 2), column(1, 2)), True),
    "A2": ((0.5, 0, 0), (column(1.5), column(1)), True),
    "A3": ((0, 1 / 128, 0), (column(1.0078125), column(1)), True),
    "A4": ((0, 1 / 128, 0), (column(1), column(0.9921875)), False),
    "A5": ((0, 0, 0.005), bad(100, 1), False),
    "A6": ((0, 0, 0.005), bad(101, 1), True),
    "A7": ((0, 0, 0.005), bad(300, 2), True),
    "A8": ((0, 0, 0.005), bad(500, 3), False),
    "A9": ((1, 1, 1), (column(NAN), column(1)), False),
    "A10": ((0, 0, 0), (column(1), column(NAN)), False),
    "A11": ((0, 0, 0), (column(1), column(INF)), False),
    "A12": ((0, 0, 0), (column(NAN), column(NAN)), False),
    "A13": ((0, 0, 0), (column(), column()), True),
    "A14": ((0, 0, 0), (torch.tensor([2**40 + 1]), torch.tensor([2**40])), True),
    "A15": ((0, 0, 0), (torch.ones(1, 4), torch.ones(4, 4)), True),
}
RATIO_RELDIFF = {
    "B1": ((0.01, 0), (column(0.0099), column(0)), True),
    "B2": ((0.01, 0), (column(0.0101), column(0)), False),
    "B3": ((0.01, 0), (column(1.01), column(1)), True),
    "B4": ((0.01, 0), (column(1.0102), column(1)), False),
    "B5": ((0.01, 0.05), bad(30, 2), True),
    "B6": ((0.01, 0.05), bad(50, 3), False),
    "B7": ((0.01, 1, 1), (column(-1), column(1)), False),
    "B8": ((0.01, 1, 1), (column(0), column(1)), False),
    "B9": ((0.01, 1, 1), (column(0.5), column(1)), True),
    "B10": ((0.01, 1, 2), (column(-1), column(1)), False),
    "B11": ((0.01, 0), (column(1), column(NAN)), False),
    "B12": ((0.01, 0), (column(), column()), True),
}


@pytest.mark.parametrize("vector", RATIO_ALLCLOSE)
def test_ratio_allclose_vectors(vector: str) -> None:
    parameters, sides, passes = RATIO_ALLCLOSE[vector]
    assert ratio_allclose(*parameters)(*sides)[0] is passes


@pytest.mark.parametrize("vector", RATIO_RELDIFF)
def test_ratio_reldiff_vectors(vector: str) -> None:
    parameters, sides, passes = RATIO_RELDIFF[vector]
    assert ratio_reldiff(*parameters)(*sides)[0] is passes


@pytest.mark.parametrize(
    ("ids", "wanted", "values", "descending", "passes"),
    [
        pytest.param([1, 0, 2], [0, 1, 2], [2, 2, 1], True, True, id="C1"),
        pytest.param([1, 0, 2], [0, 1, 2], [3, 2, 1], True, True, id="C2"),
        pytest.param([1, 0, 2], [0, 1, 2], [2, 3, 1], True, False, id="C3"),
        pytest.param([0, 1, 2, 4], [0, 1, 2, 3], [1, 2, 3, 0.5], True, True, id="C4"),
        pytest.param([-9, -9, -9], [0, 1, 2], [3, 2, 1], True, True, id="C5"),
        pytest.param([0, 1, 2], [0, 1, 2], [1, 2, 3], True, True, id="C6"),
        pytest.param([5], [0], [1], True, True, id="C7"),
        pytest.param([1, 0, 2], [0, 1, 2], [NAN, 2, 1], True, False, id="C8"),
        pytest.param([1, 0, 2], [0, 1, 2], [1, 2, 3], False, True, id="C9"),
    ],
)
def test_topk_vectors(ids: list[int], wanted: list[int], values: list[float], descending: bool, passes: bool) -> None:
    compare = topk_pair_compare("values", descending=descending)
    outputs = {"values": torch.tensor(values)}
    assert compare(torch.tensor(ids), torch.tensor(wanted), actual_outputs=outputs)[0] is passes


@pytest.mark.parametrize(
    ("ids", "values", "text"),
    [([0, 1], [2, 1], ""), ([0, 1], [1, 2], "out of order"), ([-9, -9], [2, 1], "2 indices differ")],
)
def test_topk_notes_what_it_does_not_judge(ids: list[int], values: list[float], text: str) -> None:
    outputs = {"v": torch.tensor(values)}
    passed, note = topk_pair_compare("v")(torch.tensor(ids), torch.tensor([0, 1]), actual_outputs=outputs)
    assert passed
    assert note.startswith("note: ") if text else note == ""
    assert text in note


def test_topk_rows_do_not_mix_and_dim_chooses_the_axis() -> None:
    ids = torch.tensor([[0, 1], [1, 0]])
    wanted = torch.tensor([[0, 1], [0, 1]])
    values = torch.tensor([[1.0, 5.0], [3.0, 3.0]])
    assert topk_pair_compare("v")(ids, wanted, actual_outputs={"v": values})[0]
    assert not topk_pair_compare("v", dim=0)(ids, wanted, actual_outputs={"v": values})[0]
    assert not topk_pair_compare("v")(ids.flip(0), wanted, actual_outputs={"v": values})[0]


@pytest.mark.parametrize(
    ("compare", "shape", "text"),
    [
        (topk_pair_compare("w"), (2, 2), "no output 'w'"),
        (topk_pair_compare("v"), (2, 3), "index shapes differ"),
        (topk_pair_compare("v", dim=2), (2, 2), "dim 2 is out of range"),
    ],
)
def test_topk_rejects_what_does_not_fit(compare: Any, shape: tuple[int, int], text: str) -> None:
    ids = torch.zeros(2, 2, dtype=torch.int32)
    passed, message = compare(ids, torch.zeros(shape, dtype=torch.int32), actual_outputs={"v": torch.zeros(2, 2)})
    assert not passed
    assert text in message


@pytest.mark.parametrize(
    ("actual", "expected", "rows", "zero_tail", "passes"),
    [
        pytest.param([1, 1, 9], [1, 1, 1], 2, False, True, id="D1"),
        pytest.param([1, 1, 9], [1, 1, 0], 2, True, False, id="D2"),
        pytest.param([1, 1, -0.0], [1, 1, 5], 2, True, True, id="D3"),
        pytest.param([1, 1, NAN], [1, 1, 0], 2, True, False, id="D4"),
        pytest.param([1, 1, 9], [5, 5, 5], 0, False, True, id="D5"),
        pytest.param([1, 1, 1], [1, 1, 1], 4, False, False, id="D6"),
    ],
)
@pytest.mark.parametrize("make", [lambda **o: ratio_allclose(0, 0, 0, **o), lambda **o: ratio_reldiff(0.01, 0, **o)],
                         ids=["allclose", "reldiff"])  # fmt: skip
def test_prefix_vectors(make: Any, actual: list, expected: list, rows: int, zero_tail: bool, passes: bool) -> None:
    compare = make(valid_rows=rows, zero_tail=zero_tail)
    assert compare(column(*actual), column(*expected))[0] is passes


def test_the_prefix_may_lie_behind_a_rank_axis() -> None:
    actual = torch.ones(2, 3)
    actual[:, 2] = 9
    compare = ratio_allclose(0, 0, 0, valid_rows=2, valid_axis=1)
    assert compare(actual, torch.ones(2, 3))[0]
    assert not ratio_allclose(0, 0, 0, valid_rows=1)(actual, torch.ones(2, 3))[0]


def pool(row: int | None = None, value: float = 1.0) -> torch.Tensor:
    """Two blocks of two rows of one element, zero but for one row."""
    made = torch.zeros(2, 2, 1)
    if row is not None:
        made.view(-1)[row] = value
    return made


@pytest.mark.parametrize(
    ("actual", "expected", "mapping", "passes"),
    [
        pytest.param(pool(), pool(), [0, -1], True, id="E1"),
        pytest.param(pool(2), pool(), [0, 1], False, id="E2"),
        pytest.param(pool(2), pool(), [2, 1], False, id="E3"),
        pytest.param(pool(), pool(), [0, 0], False, id="E4"),
        pytest.param(pool(), pool(), [0, -2], False, id="E5"),
        pytest.param(pool(), pool(), [0, 4], False, id="E6"),
        pytest.param(pool(), pool(), [-1, -1], True, id="E7"),
        pytest.param(pool(3, NAN), pool(3, NAN), [0, 1], False, id="E8"),
        pytest.param(pool(3, INF), pool(3, INF), [0, 1], True, id="E9"),
        pytest.param(pool(3, INF), pool(3, INF), [3, 1], False, id="E10"),
        pytest.param(pool(3, -0.0), pool(), [0, 1], True, id="E13"),
    ],
)
def test_mapped_pool_vectors(actual: torch.Tensor, expected: torch.Tensor, mapping: list[int], passes: bool) -> None:
    compare = mapped_pool_ratio_allclose("slots", [2], 2, atol=0, rtol=0, max_error_ratio=0)
    assert compare(actual, expected, inputs={"slots": torch.tensor(mapping)})[0] is passes


def test_mapped_pool_rejects_a_floating_mapping_e11() -> None:
    compare = mapped_pool_ratio_allclose("slots", [2], 2, atol=0, rtol=0)
    passed, text = compare(pool(), pool(), inputs={"slots": torch.tensor([0.0, 1.0])})
    assert not passed
    assert "torch.float32" in text


@pytest.mark.parametrize(("mapping", "passes"), [([[3], [3]], True), ([[3], [2]], False)])
def test_mapped_pool_keeps_ranks_apart_e12(mapping: list[list[int]], passes: bool) -> None:
    """Row 3 differs within the tolerance on both ranks: mapped there it passes, unmapped it must be equal."""
    compare = mapped_pool_ratio_allclose("slots", [2, 1], 2, leading_rank_axis=True, atol=0.1, rtol=0)
    actual, expected = torch.stack([pool(3, 1.05)] * 2), torch.stack([pool(3)] * 2)
    assert compare(actual, expected, inputs={"slots": torch.tensor(mapping)})[0] is passes


@pytest.mark.parametrize(
    "make",
    [
        lambda: ratio_allclose(max_error_ratio=1.5),
        lambda: ratio_allclose(max_error_ratio=-0.1),
        lambda: ratio_reldiff(diff_thd=0),
        lambda: ratio_reldiff(pct_thd=1.01),
        lambda: ratio_reldiff(max_diff_hd=0),
        lambda: mapped_pool_ratio_allclose("m", [0], 2),
        lambda: mapped_pool_ratio_allclose("m", [2], 2, leading_rank_axis=True),
        lambda: mapped_pool_ratio_allclose("m", [2], 0),
    ],
)
def test_rejects_parameters_out_of_range(make: Any) -> None:
    with pytest.raises(ValueError, match=r"must be|needs"):
        make()


def test_ratio_allclose_takes_the_tolerances_of_the_run() -> None:
    compare = ratio_allclose(max_error_ratio=0)
    assert compare(column(1.5), column(1), atol=0.5, rtol=0)[0]
    assert not compare(column(1.5), column(1), atol=0.4, rtol=0)[0]


def test_a_failure_shows_the_first_bad_points() -> None:
    _, text = ratio_allclose(0, 0, 0, max_show=2)(column(1, 5, 6, 7), column(1, 1, 1, 1))
    assert "3 of 4 points" in text
    assert "[1] actual=5 expected=1" in text
    assert "[2]" in text
    assert "[3]" not in text.split("largest")[1].split("\n", 1)[1]


@pytest.mark.parametrize(
    ("compare", "sides"),
    [(ratio_allclose(0, 0, 0.005), bad(101, 1)), (ratio_reldiff(0.01, 0.05), bad(30, 2))],
)
def test_a_budget_that_was_rounded_up_is_noted(compare: Any, sides: Any) -> None:
    passed, text = compare(*sides)
    assert passed
    assert text.startswith("note: ")
    assert "more than the stated fraction" in text


@pytest.mark.parametrize(
    ("compare", "sides"),
    [(ratio_allclose(0, 0, 0.01), bad(100, 1)), (ratio_reldiff(0.01, 0.1), bad(30, 3))],
)
def test_a_budget_that_is_kept_is_not_noted(compare: Any, sides: Any) -> None:
    assert compare(*sides) == (True, "")


numbers = st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=20)


@given(numbers, numbers, st.sampled_from([1e-3, 1e-2, 0.3]), st.floats(0, 1))
def test_ratio_reldiff_is_the_formula_and_symmetric(a: list, e: list, threshold: float, fraction: float) -> None:
    """Section 12.2 in plain FP32 scalars, one point after another."""
    size = min(len(a), len(e))
    actual, expected = column(*a[:size]), column(*e[:size])
    count = 0
    for x, y in zip(actual, expected, strict=True):
        distance = (x - y).abs()
        base = max(x.abs(), y.abs(), torch.tensor(2.0**-14 / threshold)) + 1e-9
        count += bool((distance if distance < threshold else distance / base) > threshold)
    compare = ratio_reldiff(threshold, fraction)
    assert compare(actual, expected)[0] is (count <= round(fraction * size))
    assert compare(expected, actual)[0] is compare(actual, expected)[0]


def test_error_distribution_measures_any_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert error_distribution()(column(1, 2), column(1, 2.5))[0]
    printed = capsys.readouterr().out
    assert "rel-L2 18.5695%" in printed  # 0.5 / sqrt(1 + 6.25)
    assert "r > 0.001: 50.0000%  worst 0.2" in printed  # 0.5 / 2.5
    assert "p50=0.25" in printed  # of the absolute differences 0 and 0.5
    assert error_distribution()(column(), column())[0]
    assert error_distribution()(column(NAN), column(1))[0]
    assert not error_distribution(always_pass=False)(column(NAN), column(1))[0]
