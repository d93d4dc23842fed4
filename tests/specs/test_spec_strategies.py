"""Every strategy is seen to reach what it promises, and to stay inside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specs import distributions as d
from specs import strategies, variations
from specs.errors import SpecError
from specs.model import TINY
from specs.registry import Case, all_ops, load_op
from specs.tensors import Distribution

OPS = (
    "expert_routed", "expert_shared", "gate", "hc_head", "hc_post", "hc_pre", "lm_head", "mtp_projection",
    "qkv_proj_rope", "rms_norm",
)  # fmt: skip
DEPLOYED = {"ep_world_size": 8, "tp_size": 2}
"""The plainest values of the axes that are no fields of the model."""


def drawn(strategy: st.SearchStrategy[Any], count: int = 200) -> list[Any]:
    """`count` draws, the same in every run."""
    found: list[Any] = []

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(strategy)
    def collect(value: Any) -> None:
        found.append(value)

    collect()
    return found


def reaches(found: Iterable[Any], **kinds: Callable[[Any], bool]) -> None:
    """Every kind occurs."""
    values = list(found)
    missing = [name for name, holds in kinds.items() if not any(map(holds, values))]
    assert not missing, f"never drawn: {', '.join(missing)}"


def test_seeds_reach_0_and_large_ones() -> None:
    found = drawn(strategies.seeds())
    reaches(found, zero=lambda s: s == 0, large=lambda s: s > 2**30, odd=lambda s: s % 2 == 1)
    assert all(0 <= s <= strategies.LARGEST_SEED for s in found)


def test_schedules_reach_program_order_and_others() -> None:
    found = drawn(strategies.schedules())
    reaches(found, program_order=lambda s: s == 0, large=lambda s: s > 2**30)


@pytest.mark.parametrize(("multiple", "most"), [(1, 128), (8, 128), (8, 8), (16, 40)])
def test_token_counts_reach_both_ends_and_only_multiples(multiple: int, most: int) -> None:
    found = drawn(strategies.token_counts(multiple, most), 400)
    assert min(found) == multiple
    assert max(found) == most // multiple * multiple
    assert all(t % multiple == 0 for t in found)
    if multiple == 1:
        reaches(found, odd=lambda t: t % 2 == 1, no_tile=lambda t: t % 8 != 0, tile=lambda t: t % 16 == 0)


@pytest.mark.parametrize(("multiple", "most"), [(16, 8), (0, 8)])
def test_rejects_token_counts_that_there_are_not(multiple: int, most: int) -> None:
    with pytest.raises(ValueError, match=rf"no multiple of {multiple} lies in 1\.\.{most}"):
        strategies.token_counts(multiple, most)


def test_deployments_reach_every_kind_every_world_and_more_than_one_box() -> None:
    found = drawn(strategies.deployments())
    assert {deployment.name for deployment in found} == {"decode", "decode_mtp", "prefill"}
    assert {deployment.ep_world_size for deployment in found} == {2, 4, 8}
    reaches(found, one_tile=lambda x: x.tokens == 8, boxes=lambda x: x.tokens > 16, prefill=lambda x: x.tokens == 128)
    assert all(deployment.tokens % 8 == 0 for deployment in found)
    reaches(drawn(strategies.deployments(multiple=1)), odd=lambda x: x.tokens % 2 == 1, one=lambda x: x.tokens == 1)


def test_model_configs_reach_every_value_of_every_axis_and_tiny_itself() -> None:
    found = drawn(strategies.model_configs(), 300)
    for name, values in variations.AXES.items():
        if name not in DEPLOYED:
            assert {getattr(config, name) for config in found} == set(values), name
    assert TINY in found
    for config in found:
        assert config.hidden_size % 128 == config.moe_intermediate_size % 128 == config.n_routed_experts % 16 == 0
        assert config.head_dim % config.qk_rope_head_dim == config.q_lora_rank % 32 == 0


def test_axes_start_with_tiny() -> None:
    for name, values in variations.AXES.items():
        assert values[0] == (DEPLOYED[name] if name in DEPLOYED else getattr(TINY, name))
        assert len(set(values)) == len(values) > 1


def test_cases_reach_all_valid_ones_and_no_invalid_one() -> None:
    op = load_op("gate")
    found = {case.name for case in drawn(strategies.cases(op), 600)}
    assert found == {case.name for case in op.cases if not case.invalid}
    hashed = drawn(strategies.cases(op, tags=("hash",), without=("extreme",)), 100)
    assert all("hash" in case.tags and "extreme" not in case.tags for case in hashed)
    with pytest.raises(ValueError, match="gate has no such case"):
        strategies.cases(op, tags=("none",))


@pytest.mark.parametrize("op", OPS)
def test_situations_reach_sizes_tokens_cases_and_are_all_possible(op: str) -> None:
    found = drawn(strategies.situations(op), 120)
    reaches(
        found,
        plain=lambda s: not s.overrides,
        sized=lambda s: len(s.overrides) > 2,
        decode=lambda s: s.deployment == "decode",
        prefill=lambda s: s.deployment == "prefill",
        default=lambda s: s.case == "default",
        other_case=lambda s: s.case != "default",
        seed=lambda s: s.seed > 0,
    )
    tokens = Counter(s.load().deployment.tokens for s in found)
    assert len(tokens) >= 4
    assert len({s.case for s in found}) >= min(6, len(load_op(op).cases) - 1)
    if op in ("qkv_proj_rope", "lm_head"):
        varied = {name for s in found for name, _ in s.overrides}
        assert {"num_attention_heads", "head_dim", "qk_rope_head_dim", "q_lora_rank", "vocab_size", "tp_size"} <= varied
    for situation in found:
        assert not situation.load().case(situation.case).invalid


@pytest.mark.parametrize("op", OPS)
def test_every_case_can_be_drawn_at_every_end_of_the_axes(op: str) -> None:
    plainest = {name: values[0] for name, values in variations.AXES.items()}
    for name, values in variations.AXES.items():
        for value in values[1:]:
            try:
                loaded = load_op(op, **{**plainest, name: value})
            except SpecError as error:
                raise AssertionError(f"{op} refuses {name}={value}: {error}") from error
            for case in loaded.cases:
                if {"counts", "skew", "ties"} & set(case.tags):  # what depends on sizes
                    for tensor in case.overrides:
                        loaded.input(tensor, case.name)


def test_situations_keep_to_their_cases_whatever_the_sizes() -> None:
    found = drawn(strategies.situations("gate", tags=("hash",)), 80)
    assert all("hash" in s.load().case(s.case).tags for s in found)
    assert {s.case for s in drawn(strategies.situations("gate", names=("ties_all",)), 20)} == {"ties_all"}
    with pytest.raises(ValueError, match="gate has no such case"):
        drawn(strategies.situations("gate", names=("none",)), 1)


def test_situations_keep_the_axes_that_they_are_told_to() -> None:
    found = drawn(strategies.situations("hc_pre", keep=("hc_eps", "hidden_size")), 100)
    varied = {name for situation in found for name, _ in situation.overrides}
    assert not varied & {"hc_eps", "hidden_size"}
    assert {"rms_norm_eps", "hc_sinkhorn_iters", "tokens"} <= varied


def test_a_situation_names_its_inputs() -> None:
    situation = variations.Situation("rms_norm", overrides=(("hidden_size", 512), ("tokens", 16)), case="tiny", seed=3)
    first, second = situation.inputs(), situation.inputs()
    assert first["x"].shape == (16, 512)
    assert torch.equal(first["x"], second["x"])
    assert not torch.equal(first["x"], replace(situation, seed=4).inputs()["x"])


def test_every_op_has_situations() -> None:
    for op in all_ops():
        assert drawn(strategies.situations(op), 5)


def measured(strategy: st.SearchStrategy[Distribution], op: str, tensor: str, count: int = 60) -> list[torch.Tensor]:
    """The tensor that each drawn distribution gives in the default case of an op."""
    loaded = load_op(op, tokens=16)
    result = []
    for number, distribution in enumerate(drawn(strategy, count)):
        changed = replace(loaded, cases=(Case("default", {tensor: distribution}),))
        result.append(changed.input(tensor, seed=number))
    return result


def test_float_distributions_reach_magnitudes_signs_zero_and_mixed_rows() -> None:
    found = [x.float() for x in measured(strategies.float_distributions(), "rms_norm", "x", 200)]
    reaches(
        found,
        large=lambda x: bool(x.abs().max() > 1e3),
        small=lambda x: 0 < float(x.abs().max()) < 1e-2,
        zero=lambda x: bool((x == 0).all()),
        zero_rows=lambda x: bool((x[1::2] == 0).all()) and bool((x[::2] != 0).any()),
        negative=lambda x: bool((x < 0).all()),
        constant=lambda x: bool((x == 1).all()),
    )
    assert all(bool(x.isfinite().all()) for x in found)


def test_routing_tables_reach_balance_and_every_skew_with_distinct_ids() -> None:
    tables = measured(strategies.routing_tables(), "gate", "tid2eid")
    shares = []
    for table in tables:
        ordered = table.sort(dim=1).values
        assert bool((ordered[:, 1:] > ordered[:, :-1]).all())
        shares.append(float(torch.bincount(table.flatten(), minlength=64).max()) / table.shape[0])
    reaches(shares, even=lambda s: s < 0.2, hot=lambda s: 0.6 < s < 0.95, always=lambda s: s == 1.0)
    reaches(tables, one_rank=lambda t: len(t.unique()) <= 8, all_experts=lambda t: len(t.unique()) == 64)


def test_routing_biases_reach_every_skew() -> None:
    found = measured(strategies.routing_biases(), "gate", "gate_bias")
    reaches(
        found,
        none=lambda b: bool((b == 0).all()),
        large=lambda b: bool(b.abs().max() > 4),
        falling=lambda b: float(b.max()) == 0.0 and float(b.min()) < -0.1,
        one_rank=lambda b: int((b > 6).sum()) == 8,
    )


def test_receive_counts_reach_both_sides_of_the_row_tile_none_and_all() -> None:
    found = torch.cat(
        [c.flatten() for c in measured(strategies.receive_counts(), "expert_routed", "recv_expert_count", 120)]
    )
    reaches(found.tolist(), **{f"count_{n}": (lambda c, n=n: c == n) for n in (0, 1, 15, 16, 17, 31, 32, 33, 127, 128)})
    assert int(found.min()) >= 0
    assert int(found.max()) == 128


def test_simpler_neighbours_are_plainer_and_lead_to_the_plain_default() -> None:
    start = variations.Situation(
        "gate", deployment="prefill", overrides=(("hidden_size", 768), ("rms_norm_eps", 1e-3), ("tokens", 40)),
        case="ties_all", seed=9,
    )  # fmt: skip
    assert start not in list(variations.simpler(start))
    found, steps = start, 0
    while following := next(variations.simpler(found), None):
        found, steps = following, steps + 1
        assert steps < 20
    assert found == variations.Situation("gate")
    widths = {dict(s.overrides).get("hidden_size", 256) for s in variations.simpler(start)}
    assert widths == {256, 512, 768}
    assert {dict(s.overrides).get("tokens") for s in variations.simpler(start)} >= {None, 8, 16, 24, 32, 40}


def test_distributions_of_strategies_are_the_public_ones() -> None:
    for strategy in (strategies.float_distributions(), strategies.routing_tables(), strategies.routing_biases()):
        assert {type(value).__name__ for value in drawn(strategy)} <= set(d.__all__)
