"""The cases of the dense ops reach the situations that they promise (contracts/dense.md, 7 to 10)."""

from typing import Any

import pytest
import torch

from goldens.numerics.rope import build_rope_tables
from specs.distributions.dense import GROUP, POOL_GROUPS
from specs.errors import SpecError
from specs.registry import load_op


def taps_of(name: str, case: str, preset: str = "tiny", where: str = "decode") -> tuple[dict[str, Any], dict[str, Any]]:
    op = load_op(name, preset, where)
    inputs = op.inputs(case)
    taps: dict[str, Any] = {}
    return inputs, {**op.golden(inputs, taps), **taps}


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("hc_head", {"tokens": 12}, "T = 12 is no multiple of 8"),
        ("hc_head", {"tokens": 24}, "T = 24 is more than 16"),
        ("hc_head", {"hc_mult": 2}, "HC = 2 is outside 4..4"),
        ("mtp_projection", {"tokens": 12}, "T = 12 is no multiple of 8"),
        ("mtp_projection", {"tokens": 24}, "T = 24 is more than 16"),
        ("mtp_projection", {"hidden_size": 320}, "D = 320 is no multiple of 128"),
        ("qkv_proj_rope", {"tokens": 12}, "T = 12 is no multiple of 8"),
        ("qkv_proj_rope", {"tokens": 24}, "T = 24 is more than 16"),
        ("qkv_proj_rope", {"q_lora_rank": 100}, "Q_LORA = 100 is no multiple of 32"),
        ("lm_head", {"tokens": 24}, "T = 24 is more than 16"),
        ("lm_head", {"vocab_size": 1000}, "VOCAB = 1000 is no multiple of 32"),
        ("lm_head", {"tp_size": 16}, "tp_size is 16, expected 2, 4 or 8"),
        ("lm_head", {"hidden_size": 320}, "D = 320 is no multiple of 128"),
        ("hc_head", {"hidden_size": 320}, "HC_DIM = 1280 is no multiple of 512"),
    ],
)
def test_rejects_sizes_that_a_kernel_would_truncate(name: str, overrides: dict[str, int], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load_op(name, **overrides)


# hc_head


def test_hc_head_default_is_ruled_by_one_stream_and_even_gates_by_all() -> None:
    _, seen = taps_of("hc_head", "default", where="prefill")
    assert seen["pre"].mean(dim=0).tolist() == pytest.approx([0.997, 0.030, 0.058, 0.040], abs=0.01)
    _, seen = taps_of("hc_head", "even_gates", where="prefill")
    assert float(seen["pre"].mean(dim=0).min()) > 0.1


def test_hc_head_ties_lie_exactly_between_two_bf16_values() -> None:
    _, seen = taps_of("hc_head", "bf16_ties")
    bits = seen["mixed"].view(torch.int32)
    assert ((bits & 0xFFFF) == 0x8000).all()
    assert 0.4 < float(((bits >> 16) & 1).float().mean()) < 0.6


def test_hc_head_closed_gates_leave_little_but_the_epsilon() -> None:
    _, seen = taps_of("hc_head", "closed_gates")
    assert (seen["pre"] < 1.01e-6).all()
    assert (seen["pre"] >= torch.tensor(1e-6)).all()
    _, seen = taps_of("hc_head", "extreme_logits")
    assert (seen["pre"][:, [0, 2]] == torch.tensor(1e-6)).any(dim=0).all()
    assert (seen["pre"][:, 1] == torch.tensor(1.0) + 1e-6).all()


def test_hc_head_tiny_tokens_reach_mean_squares_where_eps_decides() -> None:
    _, seen = taps_of("hc_head", "tiny_tokens")
    mean = seen["sum_squares"].flatten() / 1024
    for low, high in ((5e-13, 2e-12), (5e-9, 2e-8), (5e-7, 2e-6), (5e-5, 2e-4)):
        assert ((mean > low) & (mean < high)).any()


def test_hc_head_equal_streams_are_equal() -> None:
    inputs, seen = taps_of("hc_head", "equal_streams")
    assert (inputs["x_hc"] == inputs["x_hc"][:, :1]).all()
    assert len(inputs["x_hc"][:, 0].unique(dim=0)) == 8
    wanted = inputs["x_hc"][:, 0].double() * seen["pre"].double().sum(dim=1, keepdim=True)
    assert torch.allclose(seen["y"].double(), wanted, rtol=2.0**-8, atol=0)


# mtp_projection


def test_mtp_projection_default_sees_every_vector() -> None:
    inputs, _ = taps_of("mtp_projection", "default", preset="flash")
    for branch in "eh":
        scale = inputs[f"{branch}_proj_w_scale"]
        assert float(scale.quantile(0.95) / scale.quantile(0.05)) > 10
        assert (inputs[f"{branch}_proj_w"] < 0).float().mean() > 0.4
        smooth = inputs[f"{branch}_proj_smooth"]
        assert float(smooth.max() / smooth.min()) > 4
        assert float(inputs[f"{branch}norm_w"].std()) > 0.25


@pytest.mark.parametrize("where", ["decode", "decode_mtp", "prefill"])
def test_mtp_projection_patterns_go_by_token(where: str) -> None:
    inputs, seen = taps_of("mtp_projection", "zero_rows", where=where)
    rows = inputs["hidden_states"].flatten(0, 1)
    assert not rows[1::2].any()
    assert rows[0::2].any(dim=1).all()
    assert not seen["e_branch"].flatten(0, 1)[1::2].any()


def test_mtp_projection_tiny_tokens_reach_mean_squares_where_eps_decides() -> None:
    _, seen = taps_of("mtp_projection", "tiny_tokens")
    mean = seen["e_sum_squares"].flatten() / 256
    for low, high in ((5e-13, 2e-12), (5e-9, 2e-8), (5e-7, 2e-6), (5e-5, 2e-4)):
        assert ((mean > low) & (mean < high)).any()


def test_mtp_projection_tiny_gamma_is_around_the_floor_of_the_quantiser() -> None:
    _, seen = taps_of("mtp_projection", "tiny_gamma", where="prefill")
    largest = torch.cat([seen["e_i8"], seen["h_i8"]]).abs().amax(dim=2)
    assert (largest == 127).any()
    assert (largest < 100).any()


def test_mtp_projection_large_accumulators_are_rounded_by_fp32() -> None:
    _, seen = taps_of("mtp_projection", "large_accumulators", preset="flash")
    for branch in "eh":
        acc = seen[f"{branch}_acc"]
        assert float(acc.min()) > 2**24
        assert (acc.float().double() != acc.double()).any()


def test_mtp_projection_one_sided_weights_are_the_references() -> None:
    inputs, _ = taps_of("mtp_projection", "one_sided", preset="flash")
    assert int(inputs["e_proj_w"].min()) == 0
    assert float(inputs["e_proj_w_scale"].median()) == pytest.approx(1.2303e-4, rel=1e-4)


# qkv_proj_rope


def test_qkv_proj_rope_default_sees_every_column() -> None:
    inputs, _ = taps_of("qkv_proj_rope", "default")
    assert float(inputs["wq_b_scale"].max() / inputs["wq_b_scale"].min()) > 6
    assert not torch.equal(inputs["rope_cos"][:, :32], inputs["rope_cos"][:, 32:])
    assert (inputs["gamma_ckv"].float().abs() < 0.9).any()


@pytest.mark.parametrize(
    ("case", "ratio", "first"),
    [("attention_base", 0, 508), ("attention_compressed", 4, 1016), ("first_positions", 0, 0)],
)
def test_qkv_proj_rope_rows_are_those_of_the_layers_table(case: str, ratio: int, first: int) -> None:
    op = load_op("qkv_proj_rope")
    cos, sin = build_rope_tables(op.config, ratio)
    inputs = op.inputs(case)
    assert torch.equal(inputs["rope_cos"], cos[first : first + 8])
    assert torch.equal(inputs["rope_sin"], sin[first : first + 8])


def test_qkv_proj_rope_exact_rotations() -> None:
    _, seen = taps_of("qkv_proj_rope", "no_rotation")
    assert torch.equal(seen["q"], (seen["q_heads"] * seen["q_inv_rms"]).bfloat16())
    _, seen = taps_of("qkv_proj_rope", "quarter_turn")
    lanes = seen["kv_norm"][:, -64:].bfloat16()
    assert torch.equal(seen["kv"][:, -64::2], -lanes[:, 1::2])
    assert torch.equal(seen["kv"][:, -63::2], lanes[:, 0::2])


def test_qkv_proj_rope_reaches_the_epsilon_of_every_norm() -> None:
    _, seen = taps_of("qkv_proj_rope", "tiny_tokens")
    for stage in ("low_rank", "kv_raw"):
        mean = seen[stage].double().square().mean(dim=1)
        assert ((mean > 1e-8) & (mean < 1e-4)).any()
        assert (mean < 1e-9).any()
    _, seen = taps_of("qkv_proj_rope", "tiny_scales")
    mean = seen["q_heads"].double().square().mean(dim=2)
    assert ((mean > 1e-7) & (mean < 1e-5)).float().mean() > 0.3


def test_qkv_proj_rope_tiny_gamma_is_around_the_floor_of_the_quantiser() -> None:
    _, seen = taps_of("qkv_proj_rope", "tiny_gamma", where="prefill")
    largest = seen["qr"].abs().amax(dim=1)
    assert (largest == 127).any()
    assert (largest < 120).any()


def test_qkv_proj_rope_attention_codes_are_per_column() -> None:
    inputs, _ = taps_of("qkv_proj_rope", "attention_base")
    assert (inputs["wq_b"].abs().amax(dim=0) == 127).all()
    assert len(inputs["wq_b_scale"].unique()) > 50


def test_qkv_proj_rope_half_read_leaves_the_unread_half_without_a_value() -> None:
    inputs, seen = taps_of("qkv_proj_rope", "half_read")
    assert inputs["rope_cos"][:, 32:].isnan().all()
    assert seen["q"].isfinite().all()


# lm_head


@pytest.mark.parametrize("world", [2, 4, 8])
def test_lm_head_has_a_shard_for_every_rank(world: int) -> None:
    op = load_op("lm_head", tp_size=world)
    inputs = op.inputs()
    assert op.world == world
    assert inputs["lm_head_weight"].shape == (world, 1024 // world, 256)
    assert op.golden(inputs)["logits"].shape == (world, 8, 1024)
    assert len(inputs["hidden_states"].flatten(0, 1).unique(dim=0)) == world * 8


def test_lm_head_silent_ranks_and_shards_are_every_other_one() -> None:
    _, seen = taps_of("lm_head", "silent_ranks")
    assert not seen["logits"][1].any()
    assert seen["logits"][0].all()
    _, seen = taps_of("lm_head", "silent_shards")
    assert not seen["logits"][..., :512].any()
    assert seen["logits"][..., 512:].all()


def test_lm_head_one_hot_rows_read_the_weight() -> None:
    inputs, seen = taps_of("lm_head", "one_hot", where="prefill")
    hidden = inputs["hidden_states"].flatten(0, 1)
    assert (hidden.sum(dim=1) == 1).all()
    columns = hidden.float().argmax(dim=1)
    assert len(columns.unique()) == 256  # every column of the weight is read once
    wanted = inputs["lm_head_weight"].flatten(0, 1).t()[columns].float()
    assert torch.equal(seen["logits"].flatten(0, 1), wanted)


def test_pooled_normals_have_the_moments_of_normal_ones_and_different_rows() -> None:
    op = load_op("lm_head", vocab_size=16384)
    spec = next(s for s in op.inputs_spec if s.name == "lm_head_weight")
    assert spec.shape[0] * spec.shape[1] * spec.shape[2] > POOL_GROUPS * GROUP  # type: ignore[union-attr]
    weight = op.input("lm_head_weight").double() * 16
    flat = weight.flatten()
    n = flat.numel() ** 0.5
    assert abs(float(flat.mean())) < 5 * 2 / n  # twice the deviation: the pool itself has one
    assert float(flat.var()) == pytest.approx(1.0, abs=5 * 2 * 2**0.5 / n + 1e-3)  # BF16 rounds
    assert float((flat**4).mean()) == pytest.approx(3.0, abs=0.05)
    rows = weight.flatten(0, 1)
    assert len(rows.unique(dim=0)) == len(rows)
    together = rows[1:] * rows[:-1]
    assert abs(float(together.mean())) < 5 * 2 / n
    groups = flat.view(-1, GROUP)[:, 0].unique()
    assert len(groups) > 1000
