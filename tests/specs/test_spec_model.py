"""Presets and deployments: identities that the fields of a model keep, not the same numbers again."""

import dataclasses
import math

import pytest

from specs.errors import SpecError
from specs.model import DEPLOYMENTS, FLASH, PRESETS, PRO, TINY, Deployment, ModelConfig

ALL = list(PRESETS.values())


@pytest.mark.parametrize("config", ALL, ids=lambda c: c.name)
def test_derived_sizes_agree(config: ModelConfig) -> None:
    assert config.hc_dim == config.hidden_size * config.hc_mult
    assert config.mix_hc == 24
    assert config.nope_head_dim + 2 * config.rope_half == config.head_dim
    assert config.o_group_in * config.o_groups == config.num_attention_heads * config.head_dim
    assert config.softmax_scale**2 * config.head_dim == pytest.approx(1.0)
    assert config.index_weights_scale**2 * config.index_head_dim * config.index_n_heads == pytest.approx(1.0)
    assert PRESETS[config.name] is config


def test_flash_layers_are_2_swa_21_csa_20_hca_and_one_draft_layer() -> None:
    layers = FLASH.compress_ratios[: FLASH.num_hidden_layers]
    assert [layers.count(r) for r in (0, 4, 128)] == [2, 21, 20]
    assert FLASH.compress_ratios[43:] == (0,)
    assert FLASH.softmax_scale == 0.04419417382415922
    assert FLASH.index_weights_scale == 0.011048543456039806


def test_pro_layers_are_30_csa_31_hca_and_one_draft_layer() -> None:
    layers = PRO.compress_ratios[: PRO.num_hidden_layers]
    assert [layers.count(r) for r in (0, 4, 128)] == [0, 30, 31]
    assert PRO.compress_ratios[61:] == (0,)


def yarn_range(config: ModelConfig) -> tuple[float, float]:
    """Rotary pairs between which YaRN blends (contracts/dense.md, 1.2), before rounding."""
    low, high = (
        config.qk_rope_head_dim
        * math.log(config.original_max_position_embeddings / (beta * 2 * math.pi))
        / (2 * math.log(config.compress_rope_theta))
        for beta in (config.beta_fast, config.beta_slow)
    )
    return low, high


def test_tiny_keeps_every_structure_alive() -> None:
    assert set(TINY.compress_ratios) == {0, 4, 128}
    assert len(TINY.compress_ratios) == TINY.num_hidden_layers + TINY.num_nextn_predict_layers
    assert 0 < TINY.num_hash_layers < TINY.num_hidden_layers
    assert min(TINY.o_groups, TINY.num_attention_heads, TINY.index_n_heads) >= 2
    low, high = yarn_range(TINY)
    assert 1 < low < high < TINY.rope_half - 1
    assert TINY.original_max_position_embeddings < TINY.max_position_embeddings
    assert yarn_range(FLASH) == (pytest.approx(15.4533, abs=1e-4), pytest.approx(24.7084, abs=1e-4))
    for ranks in (2, 4, 8):
        local = TINY.n_routed_experts // 8
        assert local * ranks % 16 == 0
        assert local >= TINY.num_experts_per_tok


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, "hidden_size is 0, expected a finite number > 0"),
        ({"hidden_size": 256.0}, "hidden_size is 256.0, expected an int"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"hc_eps": math.nan}, "hc_eps is nan"),
        ({"hc_eps": "1"}, "hc_eps is '1', expected a number"),
        ({"swiglu_limit": -1.0}, "expected a finite number >= 0"),
        ({"num_experts_per_tok": 65}, "num_experts_per_tok 65 exceeds n_routed_experts 64"),
        ({"qk_rope_head_dim": 256}, "exceeds a head's width"),
        ({"compress_ratios": (0, 3)}, "compress_ratios must be 0, 4 or 128"),
        ({"hiden_size": 256}, "did you mean 'hidden_size'"),
    ],
)
def test_rejects_configurations(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        TINY.replace(**changes)


def test_accepts_zero_where_it_means_off() -> None:
    config = TINY.replace(swiglu_limit=0.0, num_hash_layers=0, original_max_position_embeddings=0)
    assert config.swiglu_limit == 0.0


def test_deployments_have_the_contracts_tokens() -> None:
    assert {d.name: (d.tokens, d.recv_max) for d in DEPLOYMENTS.values()} == {
        "decode": (8, 64),
        "decode_mtp": (8, 64),
        "prefill": (128, 1024),
    }
    assert DEPLOYMENTS["decode"].local_experts(FLASH) == 32


def test_more_tokens_are_requests_in_decode_and_positions_in_prefill() -> None:
    assert dataclasses.astuple(DEPLOYMENTS["decode_mtp"].with_tokens(16))[1:3] == (8, 2)
    assert dataclasses.astuple(DEPLOYMENTS["prefill"].with_tokens(24))[1:3] == (1, 24)


@pytest.mark.parametrize("tokens", [0, -8, 8.0, True, "8"])
def test_rejects_token_counts(tokens: object) -> None:
    with pytest.raises(SpecError, match=r"tokens is .*, expected an int >= 1"):
        DEPLOYMENTS["decode"].with_tokens(tokens)  # type: ignore[arg-type]


def test_rejects_deployments() -> None:
    with pytest.raises(SpecError, match="tokens 9 is no multiple of 2"):
        DEPLOYMENTS["decode_mtp"].with_tokens(9)
    with pytest.raises(SpecError, match="ep_world_size is 3, expected 2, 4 or 8"):
        Deployment("d", 1, 1, 3)
    with pytest.raises(SpecError, match="tp_size is 1, expected 2, 4 or 8"):
        Deployment("d", 1, 1, tp_size=1)
    with pytest.raises(SpecError, match="batch is 0"):
        Deployment("d", 0, 1)
    with pytest.raises(SpecError, match="n_routed_experts 12 does not divide over ep_world_size 8"):
        DEPLOYMENTS["decode"].local_experts(TINY.replace(n_routed_experts=12))
