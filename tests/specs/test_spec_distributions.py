"""Every distribution is seen to reach what its name promises, and to refuse what it cannot do."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from goldens.numerics.quant import quantize_rows
from specs import distributions as d
from specs.distributions.basic import PIECE, normals
from specs.distributions.routing import distinct_rows, rank_block, zipf
from specs.errors import SpecError
from specs.model import DEPLOYMENTS, TINY, Deployment, ModelConfig
from specs.streams import DrawContext
from specs.tensors import Distribution, TensorSpec


def context(*specs: TensorSpec, config: ModelConfig = TINY, deployment: Deployment | None = None) -> DrawContext:
    tensors = {spec.name: spec for spec in specs}
    return DrawContext("gate", "default", 0, config, deployment or DEPLOYMENTS["decode"], tensors, {})


def draw(init: Distribution, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, **kwargs: Any) -> torch.Tensor:
    spec = TensorSpec("t", shape, dtype, init, "in")
    return context(spec, **kwargs).tensor("t")


def test_normal_has_its_mean_and_deviation() -> None:
    x = draw(d.Normal(std=3.0, mean=-2.0), (400, 500))
    assert abs(float(x.mean()) + 2.0) < 5 * 3.0 / 447
    assert abs(float(x.std()) - 3.0) < 5 * 3.0 / 632
    assert abs(float(((x + 2) / 3).pow(4).mean()) - 3.0) < 0.1


def test_uniform_fills_its_range() -> None:
    x = draw(d.Uniform(-1.0, 3.0), (200, 500))
    assert -1.0 <= float(x.min()) < -0.999
    assert 2.999 < float(x.max()) <= 3.0
    assert abs(float(x.mean()) - 1.0) < 0.02


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64, torch.uint8])
def test_integers_reach_both_ends(dtype: torch.dtype) -> None:
    x = draw(d.Integers(3, 6), (1000,), dtype)
    assert x.dtype == dtype
    assert sorted(x.unique().tolist()) == [3, 4, 5, 6]


def test_long_tensors_are_drawn_piece_by_piece_with_the_same_bits() -> None:
    long = normals(context(), "x", (2 * PIECE + 5,))
    assert torch.equal(long[:7], normals(context(), "x", (7,)))
    assert len(long[::PIECE].unique()) == 3
    assert abs(float(long.mean())) < 5 / 1448


@pytest.mark.parametrize(
    ("init", "dtype", "message"),
    [
        (d.Normal(), torch.int8, "Normal cannot fill torch.int8"),
        (d.Uniform(), torch.int32, "Uniform cannot fill torch.int32"),
        (d.Integers(0, 1), torch.float32, "Integers cannot fill torch.float32"),
        (d.Integers(0, 200), torch.int8, "0..200 is not a range of torch.int8"),
        (d.Integers(2, 1), torch.int8, "2..1 is not a range"),
        (d.Constant(0.5), torch.int8, "0.5 is not an integer of torch.int8"),
        (d.Constant(300), torch.int8, "300 is not an integer of torch.int8"),
        (d.Constant(1), torch.bool, "1 is not a bool"),
        (d.Values((1, 2, 3)), torch.int8, r"3 values given for the shape \(8,\)"),
        (d.Values((1,) * 7 + (1.5,)), torch.int8, "1.5 is not an integer"),
        (d.Rows(d.Normal(), (None,) * 9), torch.float32, "a pattern of 9 rows needs as many"),
    ],
)
def test_rejects_contents_that_a_tensor_cannot_hold(init: Distribution, dtype: torch.dtype, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        draw(init, (8,), dtype)


def test_rows_follow_the_pattern_and_leave_the_others_alone() -> None:
    base = draw(d.Normal(), (9, 4))
    mixed = draw(d.Rows(d.Normal(), (None, d.Constant(0.0), d.Constant(2.0))), (9, 4))
    assert torch.equal(mixed[0::3], base[0::3])
    assert torch.equal(mixed[1::3], torch.zeros(3, 4))
    assert torch.equal(mixed[2::3], torch.full((3, 4), 2.0))


def test_q8_codes_and_scale_belong_together() -> None:
    codes = TensorSpec("c", (6, 64), torch.int8, d.Q8(d.Rows(d.Normal(), (None, d.Constant(0.0)))), "in")
    scale = TensorSpec("s", (6, 1), torch.float32, d.MatchingScale("c"), "in")
    for order in (("c", "s"), ("s", "c")):
        ctx = context(codes, scale)
        drawn = {name: ctx.tensor(name) for name in order}
        assert (drawn["c"][0::2].abs().amax(dim=1) == 127).all()
        assert not drawn["c"][1::2].any()
        assert drawn["s"][1].item() == pytest.approx(1e-4 / 127)
        again, scales = quantize_rows(drawn["c"].float() * drawn["s"])
        assert torch.equal(again, drawn["c"])
        assert torch.allclose(scales, drawn["s"], rtol=3e-7)


def test_rejects_a_scale_of_something_that_is_no_code() -> None:
    ctx = context(
        TensorSpec("c", (4, 4), torch.int8, d.Integers(0, 1), "in"),
        TensorSpec("s", (4,), torch.float32, d.MatchingScale("c"), "in"),
    )
    with pytest.raises(SpecError, match=r"gate.s: c is drawn from Integers, without scales"):
        ctx.tensor("s")
    with pytest.raises(SpecError, match="unknown input of gate 'd'"):
        ctx.tensor("d")


def test_received_rows_keep_to_the_count() -> None:
    count = TensorSpec("n", (3, 1), torch.int32, d.Values((0, 5, 16)), "in")
    x = TensorSpec("x", (3, 16, 32), torch.int8, d.ReceivedQ8("n", tail=d.Constant(99)), "in")
    w = TensorSpec("w", (3, 16), torch.float32, d.ReceivedRows("n", d.Constant(1.0), d.Constant(float("nan"))), "in")
    s = TensorSpec("s", (3, 16), torch.float32, d.MatchingScale("x"), "in")
    ctx = context(count, x, w, s)
    used = torch.arange(16) < torch.tensor([[0], [5], [16]])
    assert torch.equal((ctx.tensor("x") == 99).all(dim=-1), ~used)
    assert torch.equal(ctx.tensor("w") == 1.0, used)
    assert torch.equal(ctx.tensor("w").isnan(), ~used)
    assert torch.equal(ctx.tensor("s") > 0, used)


def rows_are_distinct(table: torch.Tensor) -> bool:
    ordered = table.sort(dim=1).values
    return bool((ordered[:, 1:] != ordered[:, :-1]).all())


TABLES = [
    d.DistinctTable(),
    d.RoundRobinTable(),
    d.ZipfTable(),
    d.ZipfTable(alpha=2.0),
    d.HotTable(0.75),
    d.OneRankTable(3),
]


@pytest.mark.parametrize("init", TABLES, ids=str)
@pytest.mark.parametrize("experts", [16, 64])
def test_tables_hold_distinct_ids_in_range(init: Distribution, experts: int) -> None:
    table = draw(init, (1024, 6), torch.int32, config=TINY.replace(n_routed_experts=experts))
    assert rows_are_distinct(table)
    assert int(table.min()) >= 0
    assert int(table.max()) < experts


def test_distinct_rows_reach_every_ordered_choice_equally() -> None:
    ids = distinct_rows(context().rng("x"), 24000, 3, 4)
    seen = Counter(map(tuple, ids.tolist()))
    assert len(seen) == 24
    assert max(abs(n - 1000) for n in seen.values()) < 5 * 31
    with pytest.raises(SpecError, match="5 distinct ids cannot be drawn from 4 experts"):
        distinct_rows(context().rng("x"), 1, 5, 4)


def load(table: torch.Tensor, experts: int = 64) -> torch.Tensor:
    return table.flatten().bincount(minlength=experts)


def test_round_robin_loads_every_expert_equally() -> None:
    loads = load(draw(d.RoundRobinTable(), (1024, 6), torch.int32))
    assert loads.tolist() == [96] * 64


def test_zipf_tables_follow_their_exponent() -> None:
    first = draw(d.ZipfTable(1.0), (8192, 6), torch.int32)[:, 0]
    ranked = load(first).sort(descending=True).values / 8192
    expected = torch.tensor(zipf(context().rng("any"), 64, 1.0)).sort(descending=True).values
    assert torch.allclose(ranked[:8].double(), expected[:8], rtol=0.15)


def test_hot_tables_name_the_hot_expert_at_its_share_in_every_place() -> None:
    table = draw(d.HotTable(0.75), (8192, 6), torch.int32)
    loads = load(table)
    hot = int(loads.argmax())
    assert abs(int(loads[hot]) / 8192 - 0.75) < 0.03
    assert {int(c) for c in (table == hot).nonzero()[:, 1]} == set(range(6))
    assert int(loads.sort().values[-2]) < int(loads[hot]) // 4


def test_one_rank_tables_stay_on_the_rank() -> None:
    table = draw(d.OneRankTable(3), (1024, 6), torch.int32)
    assert sorted(table.unique().tolist()) == list(range(24, 32))
    few = context(config=TINY.replace(n_routed_experts=32))
    assert rank_block(few, 7).tolist() == [28, 29, 30, 31, 0, 1, 2, 3]


def test_duplicate_tables_repeat_an_expert_in_every_row() -> None:
    table = draw(d.DuplicateTable(), (1024, 6), torch.int32)
    assert torch.equal(table[:, 0], table[:, -1])
    assert rows_are_distinct(table[:, :-1])
    beyond = draw(d.OutOfRangeTable(), (1024, 6), torch.int32)
    assert int(beyond.min(dim=1).values.max()) < 64 <= int(beyond.max(dim=1).values.min())


def test_token_ids_reach_both_ends_of_the_vocabulary() -> None:
    ids = draw(d.TokenIds(), (128,), torch.int64)
    assert (int(ids.min()), int(ids.max())) == (0, 1023)
    assert len(ids.unique()) > 100


def test_tied_rows_occur_as_often_as_asked() -> None:
    some = draw(d.Tied(d.Normal(), 4), (64, 3))
    assert len(some.unique(dim=0)) == 16
    assert torch.equal(some[:16], some[48:])
    assert len(draw(d.Tied(d.Normal(), 0), (64, 3)).unique(dim=0)) == 1
    with pytest.raises(SpecError, match="64 rows are not 5 copies"):
        draw(d.Tied(d.Normal(), 5), (64, 3))


def counts(init: Distribution, experts: int = 8, **kwargs: Any) -> list[int]:
    return [int(n) for n in draw(init, (experts, 1), torch.int32, **kwargs)]


def test_histogram_counts_hold_all_routes() -> None:
    assert sum(counts(d.HistogramCounts(), experts=32)) == 48
    assert 0 in counts(d.HistogramCounts(), experts=32)
    skewed = sorted(counts(d.HistogramCounts(alpha=2.0), deployment=DEPLOYMENTS["prefill"]), reverse=True)
    assert sum(skewed) == 768
    assert skewed[0] > 2.5 * skewed[1]


def test_hot_counts_put_the_share_on_one_expert() -> None:
    drawn = sorted(counts(d.HotCounts(0.75)))
    assert drawn[-1] == 36
    assert sum(drawn) == 48


def test_listed_counts_stop_at_the_buffer() -> None:
    assert counts(d.ListedCounts((d.FULL, 0, -1, 33), rest=2)) == [64, 0, 63, 33, 2, 2, 2, 2]
    small = Deployment("small", 8, 1, 2)
    assert counts(d.ListedCounts((d.FULL, 0, -1, 33)), deployment=small)[:4] == [16, 0, 15, 16]
    with pytest.raises(SpecError, match="4 counts listed for 2 local experts"):
        counts(d.ListedCounts((0, 1, 2, 3)), experts=2)


def below_diagonal(comb: torch.Tensor) -> torch.Tensor:
    rows, columns = torch.tril_indices(4, 4, -1)
    return comb.reshape(-1, 4, 4)[:, rows, columns]


@pytest.mark.parametrize(
    ("init", "check"),
    [
        (d.SigmoidGate(), lambda x: 0 < x.min() < 0.5 and 1.5 < x.max() < 2),
        (d.RowStochasticComb(), lambda x: torch.allclose(x.view(-1, 4, 4).sum(-1), torch.ones(1), atol=1e-6)),
        (d.OneSidedComb(), lambda x: (below_diagonal(x) > 1.999 * below_diagonal(x.view(-1, 4, 4).mT)).all()),
        (d.IdentityComb(), lambda x: torch.equal(x.view(-1, 4, 4), torch.eye(4).expand(64, 4, 4))),
    ],
    ids=["sigmoid", "row_stochastic", "one_sided", "identity"],
)
def test_gates_have_their_shape(init: Distribution, check: Callable[[torch.Tensor], bool]) -> None:
    assert check(draw(init, (64, 16)))
