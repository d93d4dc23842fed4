"""Rotary tables and the rows made of them: properties of contracts/dense.md, 5.8 and 6.8.

Host routines, so there is no kernel to hold to them. Every property is seen to fail with a fault in what it judges.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from property_testing import assert_near, assert_same

from goldens.numerics import rope
from specs import strategies
from specs.model import PRESETS, ModelConfig

CONFIGS = st.builds(
    ModelConfig.replace,
    st.sampled_from(list(PRESETS.values())),
    qk_rope_head_dim=st.sampled_from((64, 32, 128)),
    rope_theta=st.sampled_from((10000.0, 500.0)),
    compress_rope_theta=st.sampled_from((160000.0, 40000.0)),
    rope_factor=st.sampled_from((16.0, 40.0, 1.5)),
)
"""Models of every preset, with other rotary widths and frequencies."""
RATIOS = st.sampled_from((0, 4, 128))
LENGTHS = st.integers(1, 300)
NAMES = st.sampled_from(("bf16", "fp32"))


def positions_of(length: int, seed: int, tokens: int = 16) -> torch.Tensor:
    """INT32 positions in no order, some of them repeated."""
    return torch.randint(0, length, (tokens,), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)


def tables(config: ModelConfig, ratio: int, length: int, dtype: str = "bf16") -> tuple[torch.Tensor, torch.Tensor]:
    return rope.build_rope_tables(config, ratio, max_seq_len=length, dtype=dtype)


@given(CONFIGS, RATIOS, LENGTHS, NAMES)
def test_both_halves_are_equal(config, ratio, length, dtype):
    for table in tables(config, ratio, length, dtype):
        half = config.rope_half
        assert_same(table[:, :half], table[:, half:])


@given(CONFIGS, RATIOS, LENGTHS, NAMES)
def test_the_first_row_turns_nothing(config, ratio, length, dtype):
    cos, sin = tables(config, ratio, length, dtype)
    assert_same(cos[0], torch.ones_like(cos[0]))
    assert_same(sin[0], torch.zeros_like(sin[0]))


@given(CONFIGS, RATIOS, LENGTHS, st.integers(1, 300), NAMES)
def test_a_shorter_table_is_the_beginning_of_a_longer_one(config, ratio, length, more, dtype):
    for short, long in zip(
        tables(config, ratio, length, dtype), tables(config, ratio, length + more, dtype), strict=True
    ):
        assert_same(short, long[:length])


@given(CONFIGS, RATIOS, LENGTHS)
def test_an_fp32_table_rounds_to_the_bf16_table(config, ratio, length):
    for wide, narrow in zip(tables(config, ratio, length, "fp32"), tables(config, ratio, length), strict=True):
        assert_same(wide.to(torch.bfloat16), narrow)


@given(CONFIGS, RATIOS)
def test_frequencies_fall_from_one(config, ratio):
    inv = rope.rope_frequencies(config, ratio)
    assert inv[0].item() == 1.0
    assert bool((inv.diff() < 0).all())
    assert bool((inv > 0).all())


@given(CONFIGS, RATIOS, LENGTHS, NAMES)
def test_no_entry_exceeds_one(config, ratio, length, dtype):
    assert all(bool((table.abs() <= 1).all()) for table in tables(config, ratio, length, dtype))


@given(CONFIGS, st.sampled_from((4, 128)))
def test_yarn_keeps_the_fast_pairs_and_divides_the_slow_ones(config, ratio):
    length, base = config.original_max_position_embeddings, config.compress_rope_theta
    assume(length > 0)
    dim = config.qk_rope_head_dim

    def pair_that_turns(times: float) -> float:
        return dim * math.log(length / (times * 2 * math.pi)) / (2 * math.log(base))

    first = max(math.floor(pair_that_turns(config.beta_fast)), 0)
    last = min(math.ceil(pair_that_turns(config.beta_slow)), dim - 1)
    plain = rope.rope_frequencies(config.replace(rope_theta=base), 0)
    found = rope.rope_frequencies(config, ratio)
    assert_same(found[: first + 1], plain[: first + 1])
    assert_same(found[last:], (plain / torch.full_like(plain, config.rope_factor))[last:])
    assert bool((found[first + 1 : last] < plain[first + 1 : last]).all())


@given(CONFIGS, RATIOS, st.integers(1, 150), st.integers(1, 149))
def test_angles_add(config, ratio, first, second):
    """Each of the three angles is off by half a unit of at most 2^8: 2^-17, and its cosine by no more."""
    cos, sin = (table.double() for table in tables(config, ratio, 300, "fp32"))
    added = cos[first] * cos[second] - sin[first] * sin[second]
    assert_near(added, cos[first + second], atol=3 * 2.0**-17 + 2.0**-22)


@given(CONFIGS, RATIOS, LENGTHS, strategies.seeds())
def test_rows_of_tokens_move_with_their_positions(config, ratio, length, seed):
    cos, sin = tables(config, ratio, length)
    positions, order = positions_of(length, seed), torch.randperm(16, generator=torch.Generator().manual_seed(seed))
    for table, found in zip((cos, sin), rope.token_rows(cos, sin, positions[order].reshape(4, 4)), strict=True):
        assert_same(found, table[positions.long()][order])


@given(CONFIGS, RATIOS, LENGTHS, strategies.seeds())
def test_half_rows_are_the_first_halves_in_fp32(config, ratio, length, seed):
    cos, sin = tables(config, ratio, length)
    positions, half = positions_of(length, seed), config.rope_half
    for table, found in zip((cos, sin), rope.half_rows(cos, sin, positions), strict=True):
        assert_same(found, table[positions.long(), :half].float())


@given(CONFIGS, RATIOS, LENGTHS, strategies.seeds())
def test_materialised_rows_move_with_their_tokens(config, ratio, length, seed):
    cos, sin = tables(config, ratio, length)
    positions, order = positions_of(length, seed), torch.randperm(16, generator=torch.Generator().manual_seed(seed))
    plain = rope.materialize_rope_rows(cos, sin, positions, 16)
    for moved, rows in zip(rope.materialize_rope_rows(cos, sin, positions[order], 16), plain, strict=True):
        assert_same(moved, rows[order])


@given(CONFIGS, RATIOS, LENGTHS, strategies.seeds())
def test_all_materialised_rows_are_the_host_s_token_rows(config, ratio, length, seed):
    cos, sin = tables(config, ratio, length)
    positions = positions_of(length, seed)
    wanted = rope.token_rows(cos, sin, positions)
    for found, rows in zip(rope.materialize_rope_rows(cos, sin, positions, 16), wanted, strict=True):
        assert_same(found, rows)


@given(CONFIGS, RATIOS, LENGTHS, strategies.seeds(), st.integers(0, 15))
def test_positions_of_padding_count_for_nothing(config, ratio, length, seed, active):
    cos, sin = tables(config, ratio, length)
    positions = positions_of(length, seed)
    elsewhere = positions.clone()
    elsewhere[active:] = length + 7
    plain = rope.materialize_rope_rows(cos, sin, positions, active)
    for found, rows in zip(rope.materialize_rope_rows(cos, sin, elsewhere, active), plain, strict=True):
        assert_same(found[:active], rows[:active])


def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> tuple[str, Callable[..., object]]:
    """A routine of `rope` whose results, one or a pair, are changed."""
    honest = getattr(rope, name)

    def faulty(*args: object, **kwargs: object) -> object:
        result = honest(*args, **kwargs)
        return tuple(map(change, result)) if isinstance(result, tuple) else change(result)

    return name, faulty


def by_column(x: torch.Tensor) -> torch.Tensor:
    return x + torch.arange(x.shape[-1])


def by_row(x: torch.Tensor) -> torch.Tensor:
    return x + torch.arange(x.shape[0]).unsqueeze(1)


def by_length(x: torch.Tensor) -> torch.Tensor:
    return x + len(x)


def finer(x: torch.Tensor) -> torch.Tensor:
    return x * (1 + 2.0**-12) if x.dtype == torch.float32 else x


FAULTS = {
    test_both_halves_are_equal: changed("rope_rows_at", by_column),
    test_the_first_row_turns_nothing: changed("rope_rows_at", by_column),
    test_a_shorter_table_is_the_beginning_of_a_longer_one: changed("rope_rows_at", by_length),
    test_an_fp32_table_rounds_to_the_bf16_table: changed("rope_rows_at", finer),
    test_frequencies_fall_from_one: changed("inverse_frequencies", lambda inv: inv.flip(0)),
    test_no_entry_exceeds_one: changed("rope_rows_at", by_column),
    test_yarn_keeps_the_fast_pairs_and_divides_the_slow_ones: (
        "rope_profile",
        lambda config, ratio: rope.Profile(config.compress_rope_theta if ratio else config.rope_theta, 0),
    ),
    test_angles_add: changed("rope_rows_at", by_row),
    test_rows_of_tokens_move_with_their_positions: changed("token_rows", by_row),
    test_half_rows_are_the_first_halves_in_fp32: changed("half_rows", by_column),
    test_materialised_rows_move_with_their_tokens: changed("materialize_rope_rows", by_row),
    test_all_materialised_rows_are_the_host_s_token_rows: changed("materialize_rope_rows", by_row),
    test_positions_of_padding_count_for_nothing: (
        "materialize_rope_rows",
        lambda cos, sin, positions, active: (cos[:1].expand(16, -1) + positions.sum(), sin[:1].expand(16, -1)),
    ),
}


@pytest.mark.parametrize("holds", FAULTS, ids=lambda test: test.__name__)
def test_rejects_a_fault(holds: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rope, *FAULTS[holds])
    with pytest.raises(AssertionError):
        holds()


def test_every_property_has_a_fault() -> None:
    own = {value for name, value in globals().items() if name.startswith("test_") and hasattr(value, "hypothesis")}
    assert own == set(FAULTS)
