"""Receive depth as a value: legal depths, the historical formula, refusals by spec and golden alike."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from goldens.errors import CapacityError, GoldenInputError
from goldens.numerics.routes import expect_capacity, lane_loads
from specs.capacity import formula_depth, legal_depth, routed_ids, smallest_depth, worst_case_depth
from specs.errors import SpecError
from specs.model import DEPLOYMENTS, FLASH, Deployment
from specs.registry import load_op


@pytest.mark.parametrize(("rows", "depth"), [(0, 16), (1, 16), (15.5, 16), (16, 16), (16.1, 32), (768, 768)])
def test_legal_depths_are_whole_tiles(rows: float, depth: int) -> None:
    assert legal_depth(rows) == depth


@pytest.mark.parametrize(("ranks", "rows"), [(2, 256), (4, 512), (8, 1024)])
def test_the_worst_case_is_the_contracts_table(ranks: int, rows: int) -> None:
    deployment = Deployment("prefill", 1, 128, ep_world_size=ranks)
    assert worst_case_depth(deployment) == deployment.recv_max == rows
    assert deployment.max_per_src == 128


def test_the_formula_is_the_historical_one() -> None:
    """8.2: four times the uniform load, 96 in prefill and 16 in decode at EP = 8."""
    assert formula_depth(FLASH, DEPLOYMENTS["prefill"], 4.0) == 96
    assert formula_depth(FLASH, DEPLOYMENTS["decode"], 4.0) == 16
    assert formula_depth(FLASH, DEPLOYMENTS["prefill"], 1.0) == 32  # 24 rows


@pytest.mark.parametrize("depth", [0, -16, 8, 24.0, True, "16"])
def test_rejects_depths_that_are_no_whole_tiles(depth: object) -> None:
    with pytest.raises(SpecError, match=r"recv_depth is .*, expected a multiple of 16"):
        load_op("moe", recv_depth=depth)


@pytest.mark.parametrize("name", ["moe_dispatch", "moe_combine", "moe", "expert_routed"])
def test_a_depth_gives_the_sizes(name: str) -> None:
    op = load_op(name, ep_world_size=4, recv_depth=48)
    assert (op.sizes["RECV_MAX"], op.sizes["MAX_PER_SRC"]) == (48, 12)
    assert op.deployment.recv_max == 48


def test_two_depths_live_side_by_side() -> None:
    shallow, deep = load_op("moe_dispatch", recv_depth=32), load_op("moe_dispatch")
    assert (shallow.sizes["MAX_PER_SRC"], deep.sizes["MAX_PER_SRC"]) == (4, 8)


OVER = "rank 0 sends 8 rows to expert 0 on rank 0, expected at most the 4 of its lane there"


def test_spec_and_golden_refuse_an_overflow_alike() -> None:
    op = load_op("moe_dispatch", recv_depth=32)
    inputs = op.inputs("ties_all")
    for refuse in (op.check_inputs, op.golden):
        with pytest.raises(CapacityError, match=f"^moe_dispatch: {OVER}$"):
            refuse(inputs)
    op.golden(op.inputs("round_robin"))


@pytest.mark.parametrize("case", ["score_ties_all", "hash_same_token"])
def test_moe_refuses_an_overflow_before_anything_runs(case: str) -> None:
    op = load_op("moe", recv_depth=32)
    with pytest.raises(CapacityError, match=r"^moe: rank 0 sends 8 rows to expert \d+ on rank \d") as caught:
        op.check_inputs(op.inputs(case))
    assert (caught.value.source, caught.value.load, caught.value.depth) == (0, 8, 4)


def test_the_worst_case_is_never_too_shallow_for_a_router() -> None:
    """Distinct ids per token: no lane load exceeds T, so the router's own choice needs no look."""
    op = load_op("moe", ep_world_size=2)
    op.check_inputs(op.inputs("score_ties_all"))


def test_routed_ids_are_those_of_the_golden() -> None:
    op = load_op("moe", ep_world_size=4)
    for case in ("hash_zipf", "score_zipf", "score_tokens_5"):
        inputs, taps = op.inputs(case), {}
        op.golden(inputs, taps)
        assert torch.equal(routed_ids(inputs, op.config), taps["indices"])


ROUTINGS = st.integers(1, 4).flatmap(
    lambda ranks: st.tuples(
        st.just(ranks), st.integers(1, 6), st.integers(1, 3), st.integers(1, 4), st.integers(0, 2**32 - 1)
    )
)


@settings(deadline=None, max_examples=60, derandomize=True, database=None)
@given(ROUTINGS, st.integers(0, 20), st.booleans())
def test_the_guard_fires_exactly_when_a_lane_is_too_shallow(
    routing: tuple[int, int, int, int, int], depth: int, distinct: bool
) -> None:
    """Section 8.4: for any routing, with and without repeats; distinct ids never exceed T."""
    ranks, tokens, width, local, seed = routing
    generator = torch.Generator().manual_seed(seed)
    experts = max(ranks * local, width + (-width) % ranks)
    if distinct:
        rows = [torch.randperm(experts, generator=generator)[:width] for _ in range(ranks * tokens)]
        ids = torch.stack(rows).view(ranks, tokens, width)
    else:
        ids = torch.randint(0, experts, (ranks, tokens, width), generator=generator)
    loads = lane_loads(ids.int(), torch.full((ranks, 1), tokens), experts)
    most = max(int((ids[source] == expert).sum()) for source in range(ranks) for expert in range(experts))
    assert int(loads.max()) == most
    assert not distinct or most <= tokens
    if most > depth:
        with pytest.raises(CapacityError) as caught:
            expect_capacity("moe", loads, depth)
        error = caught.value
        assert int((ids[error.source] == error.expert).sum()) == error.load > error.depth == depth
        assert error.destination == error.expert // (experts // ranks)
    else:
        expect_capacity("moe", loads, depth)
    assert smallest_depth(loads) // ranks >= most
    assert smallest_depth(loads) == 16 or (smallest_depth(loads) - 16) < ranks * most


def test_a_capacity_error_is_an_input_error() -> None:
    assert issubclass(CapacityError, GoldenInputError)
