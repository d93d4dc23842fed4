"""`close` with a magnitude: the tolerance grows with the sum of absolute terms, not with the result."""

from __future__ import annotations

import re

import pytest
import torch

from harness.compare import FAIL, PASS, Close, Output

RULE = Close(rtol=0.0, atol=0.0, over_fraction=0.0, over_points=0, magnitude="terms", magnitude_tol=2.0**-10)


def judged(error: float, terms: torch.Tensor) -> str:
    expected = torch.tensor([[0.0, 1.0], [-2.0, 3.0]])
    actual = expected.clone()
    actual[1, 0] += error
    return RULE.judge(Output(actual, expected, stages={"terms": terms})).status


@pytest.mark.parametrize("terms", [torch.tensor([[1.0, 1.0], [64.0, 1.0]]), torch.tensor([[1.0], [64.0]])])
def test_accepts_at_the_limit_and_rejects_beyond(terms: torch.Tensor) -> None:
    assert judged(2.0**-4, terms) == PASS
    assert judged(2.0**-4 + 2.0**-12, terms) == FAIL


def test_rejects_by_the_magnitude_of_the_element_itself() -> None:
    assert judged(2.0**-4, torch.tensor([[64.0, 64.0], [1.0, 64.0]])) == FAIL


def test_a_sum_that_cancels_to_zero_is_judged_by_its_terms() -> None:
    terms = torch.tensor([[1024.0]])
    assert RULE.judge(Output(torch.tensor([[0.5]]), torch.zeros(1, 1), stages={"terms": terms})).status == PASS
    assert RULE.judge(Output(torch.tensor([[1.5]]), torch.zeros(1, 1), stages={"terms": terms})).status == FAIL


def test_rejects_nan_whatever_the_magnitude() -> None:
    expected = torch.zeros(1, 1)
    stages = {"terms": torch.full((1, 1), 1e30)}
    assert RULE.judge(Output(torch.full((1, 1), torch.nan), expected, stages=stages)).status == FAIL


def test_the_label_and_the_stage_say_so() -> None:
    assert "0.000976562 terms" in RULE.label
    assert RULE.stages == ("terms",)
    assert Close(rtol=0.0, atol=0.0, over_fraction=0.0, over_points=0).stages == ()


@pytest.mark.parametrize("half", [{"magnitude": "terms"}, {"magnitude_tol": 0.1}])
def test_both_parameters_stand_together(half: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=re.escape("magnitude and magnitude_tol stand together")):
        Close(rtol=0.0, atol=0.0, over_fraction=0.0, over_points=0, **half)  # type: ignore[arg-type]
