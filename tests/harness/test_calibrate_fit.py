"""What one run would have needed, and what follows for a tolerance: observed, fitted, rewritten."""

from __future__ import annotations

import datetime
import difflib
from pathlib import Path

import pytest
import torch

from harness.calibrate.fit import Fit, Need, fits, gathered, looser_than_reference, rare_count, rounded_up
from harness.calibrate.observe import Observation, observe, observing
from harness.calibrate.rewrite import rewritten, write
from harness.compare import Close, Codes, Comparator, Exact, Output, TopK, Ulp
from harness.errors import UsageError
from harness.tolerances import DEFAULT_PATH, load_tolerances

CLOSE = Close(rtol=1e-3, atol=1e-4, over_fraction=0.0, over_points=0)
ULP = Ulp(max_ulp=1, atol_rms=1e-3, differing_fraction=0.1, differing_points=2, bias_z=6)
CODES = Codes(max_step=1, step_fraction=0.1, step_points=2, bias_z=6)
ONES = torch.ones(4, 8)


def observed(comparator: Comparator, actual: torch.Tensor, expected: torch.Tensor) -> Observation:
    output = Output(actual, expected)
    return observe(comparator, output, comparator.judge(output))


def test_close_needs_the_largest_share_of_its_limit() -> None:
    actual = ONES.clone()
    actual[1, 2] += 5.5e-4
    seen = observed(CLOSE, actual, ONES)
    assert seen.need["limit"] == pytest.approx(0.5, rel=1e-3)
    assert (seen.count, seen.compared, seen.status) == (1, 32, "pass")


def test_close_without_a_limit_needs_more_than_any_number() -> None:
    assert observed(Close(rtol=1.0, atol=0.0, over_fraction=0, over_points=0), ONES, 0 * ONES).need["limit"] == 1e300


def test_ulp_needs_the_steps_that_the_rms_does_not_cover() -> None:
    expected = torch.ones(2, 8, dtype=torch.bfloat16)
    expected[0, 0] = 2.0**-20
    actual = expected.clone()
    actual[0, 0] = 2.0**-14  # six binades away, and within 1e-3 of the row's RMS
    seen = observed(ULP, actual, expected)
    assert seen.need["max_ulp"] == 0
    assert seen.need["atol_rms"] == pytest.approx((2.0**-14 - 2.0**-20) / (7 / 8) ** 0.5, rel=1e-6)
    actual[1, 3] = 1 + 3 * 2.0**-7
    assert observed(ULP, actual, expected).need["max_ulp"] == 3


def test_what_a_flip_explains_says_nothing_about_the_budget() -> None:
    rule = {"max_ulp": 1, "atol_rms": 0.0, "differing_fraction": 0.0, "differing_points": 0}
    comparator = Ulp(**rule, flip_codes="h", flip_limit=1.5, flip_rows=0.5)  # type: ignore[arg-type]
    expected = torch.randn(2, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    actual = expected.clone()
    actual[0] = (expected[0].float() * (1 + 2.0**-8)).bfloat16()
    output = Output(actual, expected, stages={"h": torch.full((2, 64), 8, dtype=torch.int8)})
    seen = observe(comparator, output, comparator.judge(output))
    assert (seen.status, seen.spared, dict(seen.need)) == ("pass", True, {})


def test_codes_and_exact_count() -> None:
    expected = torch.zeros(4, 8, dtype=torch.int8)
    actual = expected.clone()
    actual[0, :3] = torch.tensor([1, -2, 1], dtype=torch.int8)
    assert observed(CODES, actual, expected).need == {"max_step": 2}
    assert observed(CODES, actual, expected).count == 3
    assert observed(Exact(), -0.0 * ONES, 0.0 * ONES).count == 32


def test_another_shape_is_a_failure_without_figures() -> None:
    assert observed(CLOSE, ONES[:2], ONES) == Observation("fail", 0, 0)


def test_an_observer_judges_as_its_comparator() -> None:
    watched, observers = observing(load_tolerances())
    entry, observer = watched["gate"]["x_norm_scale"], observers["gate"]["x_norm_scale"]
    own = load_tolerances()["gate"]["x_norm_scale"].comparator
    output = Output(ONES * 1.1, ONES)
    assert entry.comparator.judge(output) == own.judge(output)
    assert (entry.comparator.label, entry.comparator.stages) == (own.label, own.stages)
    assert observer.seen is not None
    assert observer.seen.status == "fail"


def need(differing: int = 0, elements: int = 100_000, most: dict[int, int] | None = None, **least: float) -> Need:
    return Need(100, 0, elements, differing, {1000: 0} if most is None else most, least, differing / max(elements, 1))


def fitted(comparator: Comparator, found: Need, margin: float = 2.0) -> dict[str, float]:
    return {fit.parameter: fit.fitted for fit in fits("op", "y", comparator, found, margin)}


def test_close_is_scaled_by_the_maximum_times_the_margin() -> None:
    assert fitted(CLOSE, need(limit=0.25)) == {"rtol": 5e-4, "atol": 5e-5}
    assert fitted(CLOSE, need(limit=0.25), margin=3) == {"rtol": 7.5e-4, "atol": 7.5e-5}


def test_close_is_never_below_a_step_of_fp32() -> None:
    assert fitted(CLOSE, need(limit=0.0))["rtol"] == 1.2e-7


def test_a_share_is_that_of_the_ensemble_times_the_margin() -> None:
    found = fitted(ULP, need(differing=50, max_ulp=1))
    assert found == {"max_ulp": 1, "differing_fraction": 1e-3, "differing_points": 6}


def test_where_nothing_differed_the_share_is_three_in_all() -> None:
    assert fitted(CODES, need(max_step=0))["step_fraction"] == 3e-5
    assert fitted(CODES, need(max_step=0, elements=10)) == {"max_step": 1, "step_fraction": 0.1, "step_points": 2}


def test_points_are_never_below_what_an_honest_run_had() -> None:
    assert fitted(CODES, need(differing=9, most={1000: 9}, max_step=1))["step_points"] == 9


def test_the_share_leaves_room_for_chance_in_larger_outputs() -> None:
    found = fitted(ULP, need(differing=2, most={100: 0, 10_000: 1}, max_ulp=1))
    assert found["differing_points"] == rare_count(2e-5 * 100) == 1
    assert found["differing_fraction"] == rare_count(2e-5 * 10_000) / 10_000 == 4e-4


def test_nothing_is_fitted_where_nothing_was_seen() -> None:
    assert not fits("op", "y", CLOSE, need(elements=0))
    assert not fits("op", "y", TopK(keys="k", band=1e-5), need())
    assert not fits("op", "y", Exact(), need())
    assert "atol_rms" not in fitted(ULP, need(atol_rms=0.0))


def test_gathers_maxima_and_leaves_out_what_is_spared() -> None:
    runs = [
        {"status": "pass", "compared": 10, "count": 1, "need": {"limit": 0.5}, "case": "quiet"},
        {"status": "fail", "compared": 20, "count": 7, "need": {"limit": 3.0}},
        {"status": "pass", "compared": 20, "count": 20, "need": {}, "spared": True},
        {"status": "empty", "compared": 0, "count": 0, "need": {"limit": 0.0}},
    ]
    assert gathered(runs) == Need(3, 1, 30, 8, {10: 1, 20: 7}, {"limit": 3.0}, 0.35)


def test_rare_counts_of_outputs_that_differ_everywhere_end() -> None:
    """e^-745 is zero in FP64: a sum that starts from it never reaches 1."""
    below, above, far = rare_count(499.9), rare_count(500.1), rare_count(1e7)
    assert abs(above - below) <= 1
    assert 1e7 + 4.2 * 1e7**0.5 < far < 1e7 + 4.4 * 1e7**0.5


@pytest.mark.parametrize("mean", [0.0, 1e-4, 0.02, 1.0, 30.0])
def test_rare_count_is_exceeded_once_in_a_hundred_thousand(mean: float) -> None:
    draws = torch.distributions.Poisson(torch.tensor(max(mean, 1e-30), dtype=torch.float64))
    terms = torch.exp(draws.log_prob(torch.arange(200, dtype=torch.float64)))
    count = rare_count(mean)
    assert float(terms[count + 1 :].sum()) <= 1.0001e-5
    assert count == 0 or float(terms[count:].sum()) > 1e-5


@pytest.mark.parametrize(
    ("value", "rounded"), [(0.0, 0.0), (1.0, 1.0), (1.01e-5, 1.1e-5), (0.0999, 0.1), (2e-6, 2e-6), (0.3 * 3, 0.9)]
)
def test_rounds_up_to_two_digits(value: float, rounded: float) -> None:
    assert rounded_up(value) == rounded


@pytest.mark.parametrize(
    ("comparator", "rule", "looser"),
    [
        (CLOSE, "allclose(atol 1e-3, rtol 1e-3)", False),
        (CLOSE, "allclose(atol 1e-4, rtol 9e-4)", True),
        (CLOSE, "ratio_allclose(atol 1e-5, rtol 1, ratio 0.5)", True),
        (ULP, "ratio_allclose(atol 0, rtol 1/128, ratio 0.005)", False),
        (ULP, "ratio_reldiff(diff_thd 2e-3, pct_thd 0.01)", True),
        (ULP, "ratio_reldiff(diff_thd 2e-3, pct_thd 0.2)", False),
        (CODES, "ratio_allclose(atol 1, rtol 0, ratio 0)", False),
        (CODES, "ratio_allclose(atol 0, rtol 0, ratio 0)", True),
        (CODES, "topk_pair_compare(weights)", False),
        (CODES, "measured by eye", False),
    ],
)
def test_looser_than_the_reference(comparator: Comparator, rule: str, looser: bool) -> None:
    assert looser_than_reference(comparator, rule) is looser


DATE = datetime.date(2027, 3, 4)
CHANGES = [
    Fit("gate", "x_norm_scale", "rtol", 1e-7, 2.5e-7, 5e-7),
    Fit("gate", "x_norm_i8", "step_points", 0, 3, 2),
    Fit("gate", "x_norm_i8", "step_fraction", 0, 0.00012, 5e-4),
]


def changed_lines(before: str, after: str) -> list[str]:
    return [d for d in difflib.ndiff(before.splitlines(), after.splitlines()) if d[0] in "+-"]


def test_only_the_lines_of_the_numbers_change() -> None:
    before = DEFAULT_PATH.read_text(encoding="utf-8")
    after = rewritten(before, CHANGES, {"calibrated": "100 runs: a colon"}, DATE)
    lines = [line.strip("+- ") for line in changed_lines(before, after) if line[0] == "+"]
    assert sorted(lines) == sorted(
        ["rtol: 2.5e-7", "step_points: 3", "step_fraction: 1.2e-4"]
        + ["date: 2027-03-04", "calibrated: '100 runs: a colon'"] * 2
    )


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "tolerances.yaml"
    path.write_text(DEFAULT_PATH.read_text(encoding="utf-8"), encoding="utf-8")
    text = path.read_text(encoding="utf-8")
    for words in ("first " * 60, "it's second # and no comment"):
        text = rewritten(text, CHANGES, {"calibrated": words.strip(), "looser": "why not"}, DATE)
        write(path, text, [("gate", "x_norm_i8")], looser_allowed=False)
        entry = load_tolerances(path)["gate"]["x_norm_i8"]
        assert entry.comparator.step_points == 3  # type: ignore[attr-defined]
        assert entry.provenance["calibrated"] == words.strip()
        assert entry.provenance["date"] == "2027-03-04"
    assert text.count("why not") == 2
    assert not list(tmp_path.glob(".*"))


def test_a_comment_behind_a_number_stays(tmp_path: Path) -> None:
    before = DEFAULT_PATH.read_text(encoding="utf-8").replace("rtol: 5.0e-7", "rtol: 5.0e-7  # tight")
    assert "rtol: 2.5e-7  # tight" in rewritten(before, CHANGES, {}, DATE)


def test_refuses_what_the_reference_would_reject(tmp_path: Path) -> None:
    path = tmp_path / "tolerances.yaml"
    before = DEFAULT_PATH.read_text(encoding="utf-8")
    path.write_text(before, encoding="utf-8")
    loose = rewritten(before, [Fit("gate", "x_norm_scale", "rtol", 0.1, 0.2, 5e-7)], {}, DATE)
    with pytest.raises(UsageError, match=r"gate.x_norm_scale would be looser than the reference's allclose"):
        write(path, loose, [("gate", "x_norm_scale")], looser_allowed=False)
    assert path.read_text(encoding="utf-8") == before
    write(path, loose, [("gate", "x_norm_scale")], looser_allowed=True)
    assert path.read_text(encoding="utf-8") == loose
