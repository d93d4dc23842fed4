"""The freedoms of a legal device: each one acts, none touches an exact op, schedule 0 takes the defaults."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ops_testing import kernel, pl, randn, tile

from harness.devices.emulator import dtypes as dt
from harness.devices.emulator.variance import FREEDOMS, RSQRT_BITS, Schedule

SEEDS = range(1, 25)


def test_schedule_zero_takes_every_default():
    schedule = Schedule(0)
    assert {f.name: schedule.pick(f.name) for f in FREEDOMS} == {f.name: f.options[0] for f in FREEDOMS}
    assert list(schedule.order(4)) == [0, 1, 2, 3]


@pytest.mark.parametrize("freedom", FREEDOMS, ids=lambda f: f.name)
def test_every_option_is_drawn_and_explained(freedom):
    drawn = {Schedule(seed).pick(freedom.name) for seed in range(200)}
    assert drawn == set(freedom.options)
    assert freedom.reason
    assert freedom.spread
    assert freedom.section


def test_a_seed_repeats_itself():
    first, second = Schedule(11), Schedule(11)
    assert [first.pick(f.name) for f in FREEDOMS] == [second.pick(f.name) for f in FREEDOMS]
    assert list(first.order(20)) == list(second.order(20))
    assert first.salt == second.salt != Schedule(12).salt


def test_an_order_is_a_permutation():
    order = list(Schedule(3).order(50))
    assert sorted(order) == list(range(50))
    assert order != list(range(50))


def test_rejects_a_negative_seed():
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        Schedule(-1)


def test_rejects_an_unknown_freedom_and_option():
    with pytest.raises(ValueError, match="unknown freedom 'casts'"):
        Schedule(0, {"casts": "free"})
    with pytest.raises(ValueError, match="freedom cube has no option 'random'"):
        Schedule(0, {"cube": "random"})


def outputs(compute: Callable[[], torch.Tensor], freedom: str) -> dict[str, torch.Tensor]:
    """The result under every option of one freedom, the others at their defaults."""
    (row,) = [f for f in FREEDOMS if f.name == freedom]
    result = {}
    for option in row.options:
        with kernel(5, **{**{f.name: f.default for f in FREEDOMS}, freedom: option}):
            result[option] = compute().clone()
    return result


def ulps(a: torch.Tensor, b: torch.Tensor) -> int:
    return int((a.view(torch.int32).to(torch.int64) - b.view(torch.int32).to(torch.int64)).abs().max())


X = randn(16, 512, seed=1)
Y = randn(256, 512, seed=2)


def row_sum() -> torch.Tensor:
    return pl.row_sum(tile(X)).data


def col_sum() -> torch.Tensor:
    return pl.col_sum(tile(X)).data


def cube() -> torch.Tensor:
    return pl.matmul(tile(X), tile(Y), out_dtype=dt.FP32, b_trans=True).data


def exponential() -> torch.Tensor:
    return pl.exp(tile(X)).data


def estimate() -> torch.Tensor:
    return pl.rsqrt(tile(X.abs())).data


def division() -> torch.Tensor:
    return pl.div(tile(X), 3.0).data


def sorted_ties() -> torch.Tensor:
    return pl.sort32(tile(torch.ones(1, 64)), pl.arange(0, [1, 64], dtype=dt.UINT32)).data.view(torch.int32)


def largest_with_nan() -> torch.Tensor:
    return torch.nan_to_num(pl.maximum(tile(torch.full((1, 8), torch.nan)), tile(torch.ones(1, 8))).data, nan=-7.0)


@pytest.mark.parametrize(("freedom", "compute"), [
    ("row_sum", row_sum), ("col_sum", col_sum), ("cube", cube), ("transcendental", exponential), ("rsqrt", estimate),
    ("div_scalar", division), ("sort_ties", sorted_ties), ("max_nan", largest_with_nan),
])  # fmt: skip
def test_every_option_gives_another_result(freedom, compute):
    results = list(outputs(compute, freedom).values())
    for i, left in enumerate(results):
        for right in results[i + 1 :]:
            assert not torch.equal(left, right)


@pytest.mark.parametrize("option", ["lanes", "lanes_in_order", "sequential", "pairwise", "shuffled"])
def test_row_sums_stay_within_the_bound_of_any_order(option):
    got = outputs(row_sum, "row_sum")[option].double()
    exact = X.double().sum(dim=1, keepdim=True)
    bound = 511 * 2.0**-24 * X.double().abs().sum(dim=1, keepdim=True)
    assert bool(((got - exact).abs() <= bound).all())


def test_cube_orders_stay_within_the_bound():
    exact = X.double() @ Y.double().T
    bound = 64 * 2.0**-24 * (X.double().abs() @ Y.double().abs().T)
    for got in outputs(cube, "cube").values():
        assert bool(((got.double() - exact).abs() <= bound).all())


def test_exp_moves_by_one_ulp_at_most_and_stays_a_function():
    both = outputs(exponential, "transcendental")
    assert ulps(both["nearest"], both["one_ulp"]) == 1
    again = outputs(exponential, "transcendental")["one_ulp"]
    assert torch.equal(both["one_ulp"], again)


def test_exp_of_zero_and_infinity_never_moves():
    for seed in SEEDS:
        with kernel(seed, transcendental="one_ulp"):
            got = pl.exp(tile(torch.tensor([[0.0, -0.0, torch.inf, -torch.inf, -200.0, 0, 0, 0]]))).data
        assert got[0, :5].tolist() == [1.0, 1.0, float("inf"), 0.0, 0.0]


@pytest.mark.parametrize("option", ["truncated", "spread"])
def test_rsqrt_error_is_bounded_and_visible(option):
    values = torch.logspace(-30, 30, 4096).reshape(8, 512)
    with kernel(9, rsqrt=option):
        got = pl.rsqrt(tile(values)).data.double()
    error = (got * values.double().sqrt() - 1).abs().max()
    assert 2.0 ** -(RSQRT_BITS + 1) < float(error) < 2.0**-RSQRT_BITS


def test_division_by_reciprocal_is_within_two_ulps():
    both = outputs(division, "div_scalar")
    assert 1 <= ulps(both["divide"], both["reciprocal"]) <= 2


def test_ties_carry_their_payload():
    for seed in SEEDS:
        with kernel(seed):
            pairs = sorted_ties().reshape(-1, 32, 2)
        labels = pairs[..., 1].sort(dim=-1).values
        assert labels.tolist() == [list(range(32)), list(range(32, 64))]


def exact_ops() -> list[torch.Tensor]:
    """Results that no device may change: casts, one-rounding arithmetic, INT8 products, moves."""
    x, y = tile(X), tile(Y[:16])
    codes = torch.arange(16 * 512).reshape(16, 512).to(torch.int8)
    return [
        pl.add(x, y).data,
        pl.mul(x, y).data,
        pl.div(x, y).data,
        pl.sqrt(pl.abs(x)).data,
        pl.recip(x).data,
        pl.cast(x, dt.BF16, mode="rint").data.float(),
        pl.cast(x, dt.INT32, mode="round").data,
        pl.row_max(x).data,
        pl.rsqrt(pl.abs(x), high_precision=True).data,
        pl.matmul(tile(codes), tile(codes), out_dtype=dt.INT32, b_trans=True).data,
    ]


def test_exact_ops_are_the_same_in_every_schedule():
    with kernel(0):
        reference = exact_ops()
    for seed in SEEDS:
        with kernel(seed):
            for got, expected in zip(exact_ops(), reference, strict=True):
                assert torch.equal(got, expected)


def test_schedule_zero_is_stable():
    computations = (row_sum, col_sum, cube, exponential, estimate, division, sorted_ties)
    runs = []
    for _ in range(2):
        with kernel(0):
            runs.append([compute() for compute in computations])
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)
