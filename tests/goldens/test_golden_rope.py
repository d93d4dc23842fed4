"""Rotary tables, rows and rotation: the facts and check points of contracts/dense.md 5 and 6."""

import math

import pytest
import torch
from golden_testing import F32, assert_same_bits

from goldens.errors import GoldenInputError
from goldens.numerics.rope import (
    build_rope_tables,
    half_rows,
    inverse_frequencies,
    materialize_rope_rows,
    rope_frequencies,
    rope_profile,
    rope_rows_at,
    rope_table,
    rotate_pairs,
    token_rows,
)
from specs.model import DEMO, FLASH, PRESETS, PRO, TINY

BETAS = {"factor": 16.0, "beta_fast": 32.0, "beta_slow": 1.0}


def test_check_points_of_flash():
    base, compressed = build_rope_tables(FLASH, 0), build_rope_tables(FLASH, 4)
    assert base[0][1, :4].tolist() == [0.5390625, 0.73046875, 0.84765625, 0.9140625]
    assert base[1][1, :4].tolist() == [0.83984375, 0.6796875, 0.53125, 0.41015625]
    assert compressed[0][1, :4].tolist() == [0.5390625, 0.7734375, 0.890625, 0.94921875]
    assert compressed[1][1, :4].tolist() == [0.83984375, 0.6328125, 0.455078125, 0.3203125]
    assert base[0][8192, :4].tolist() == [0.29296875, -0.248046875, 0.431640625, 0.349609375]
    assert compressed[0][8192, :4].tolist() == [0.29296875, -0.921875, -0.984375, 0.96875]
    assert compressed[0][8192, 28:32].tolist() == [1.0] * 4
    assert compressed[1][8192, 28:32].tolist() == [0.0142822265625, 0.00982666015625, 0.00677490234375, 0.004638671875]


@pytest.mark.parametrize("ratio", [0, 4, 128])
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_the_profile_follows_the_ratio(preset, ratio):
    config = PRESETS[preset]
    base, original = rope_profile(config, ratio)
    assert base == (config.rope_theta if ratio == 0 else config.compress_rope_theta)
    assert original == (0 if ratio == 0 else config.original_max_position_embeddings)


def test_compressed_frequencies_of_flash_keep_blend_and_divide():
    plain = inverse_frequencies(64, 0, 160000.0, **BETAS)
    found = rope_frequencies(FLASH, 4)
    assert_same_bits(found[:16], plain[:16])
    assert_same_bits(found[25:], plain[25:] / 16)
    for pair in range(16, 25):
        kept = 1 - (pair - 15) / 10
        assert float(found[pair]) == pytest.approx(float(plain[pair]) * (kept + (1 - kept) / 16), rel=3e-7)
    assert torch.equal(rope_frequencies(PRO, 128), found)


def test_yarn_is_off_without_an_original_length_whatever_the_factor():
    assert DEMO.rope_factor == 40
    assert_same_bits(rope_frequencies(DEMO, 4), inverse_frequencies(64, 0, 40000.0, **BETAS))


def test_one_blended_pair_where_both_ends_of_the_range_meet():
    """low = high: 0.001 is added, so that pair `low` is kept and the next one divided."""
    plain = inverse_frequencies(8, 0, 1e4, **BETAS)
    found = inverse_frequencies(8, 64, 1e4, 16.0, 10.0, 10.0)
    low = 8 * math.log(64 / (20 * math.pi)) / (2 * math.log(1e4))
    assert math.floor(low) == 0
    assert math.ceil(low) == 1
    assert_same_bits(found, torch.cat([plain[:1], plain[1:] / 16]))
    meeting = inverse_frequencies(8, 6, 1e4, 16.0, 1.0, 1.0)  # floor below 0 is held at 0, and so is the ceiling
    assert_same_bits(meeting, torch.cat([plain[:1], plain[1:] / 16]))


@pytest.mark.parametrize("ratio", [0, 4])
@pytest.mark.parametrize("config", [TINY, FLASH], ids=lambda c: c.name)
def test_tables_equal_the_formula(config, ratio):
    """FP32 angle, cosine and sine of that angle in FP64, one rounding to FP32 and one to BF16."""
    inv = rope_frequencies(config, ratio)
    assert float(inv[0]) == 1.0
    assert (inv.diff() < 0).all()
    cos, sin = build_rope_tables(config, ratio, max_seq_len=300, dtype="fp32")
    for position in (0, 1, 17, 299):
        angles = [float(F32(position) * F32(value)) for value in inv.tolist()]
        assert cos[position].tolist() == [float(F32(math.cos(a))) for a in angles] * 2
        assert sin[position].tolist() == [float(F32(math.sin(a))) for a in angles] * 2
    for whole, half in zip((cos, sin), build_rope_tables(config, ratio, max_seq_len=300), strict=True):
        assert_same_bits(whole.bfloat16(), half)


def test_table_properties():
    cos, sin = build_rope_tables(TINY, 4)
    assert cos.shape == sin.shape == (1024, 64)
    assert torch.equal(cos[:, :32], cos[:, 32:])
    assert torch.equal(sin[:, :32], sin[:, 32:])
    assert (cos[0] == 1).all()
    assert (sin[0] == 0).all()
    assert cos.abs().max() <= 1
    assert float((cos.double() ** 2 + sin.double() ** 2 - 1).abs().max()) < 0.0055
    short = build_rope_tables(TINY, 4, max_seq_len=10)
    assert_same_bits(short[0], cos[:10])
    at = rope_rows_at(torch.tensor([900, 3]), rope_frequencies(TINY, 4))
    assert_same_bits(at[1], sin[[900, 3]])


def test_rejects_a_table_of_fp64_angles_and_one_table_for_all_ratios():
    """1 % of FLASH's BF16 entries differ with FP64 angles; the profiles differ in most."""
    inv = rope_frequencies(FLASH, 0)
    cos, _ = build_rope_tables(FLASH, 0)
    exact = (torch.arange(16384).double().unsqueeze(1) * inv.double()).cos().bfloat16()
    assert 0.005 < float((exact != cos[:, :32]).float().mean()) < 0.02
    other, _ = build_rope_tables(FLASH, 4)
    assert float((other != cos).float().mean()) > 0.5


def test_angle_addition():
    cos, sin = (table.double()[:, :32] for table in build_rope_tables(FLASH, 0, max_seq_len=200, dtype="fp32"))
    added = cos[120] * cos[79] - sin[120] * sin[79]
    assert (added - cos[199]).abs().max() < 200 * 2.0**-23  # an angle is off by half a ULP


@pytest.mark.parametrize("name", ["bf16", "bfloat16", "torch.bfloat16"])
def test_accepts_names_of_dtypes(name):
    assert rope_table(8, 3, 0, 1e4, **BETAS, dtype=name)[0].dtype == torch.bfloat16
    assert rope_table(8, 3, 0, 1e4, **BETAS, dtype=torch.float16)[0].dtype == torch.float16


@pytest.mark.parametrize(
    ("dim", "seqlen", "dtype", "message"),
    [
        (7, 3, "bf16", "dim is 7, expected an even number above 0"),
        (0, 3, "bf16", "dim is 0"),
        (8, 0, "bf16", "seqlen is 0, expected a number above 0"),
        (8, 3, "int8", "dtype is 'int8', expected one of bf16, fp32"),
        (8, 3, torch.float64, "dtype is torch.float64"),
    ],
)
def test_rejects_tables(dim, seqlen, dtype, message):
    with pytest.raises(GoldenInputError, match=message):
        rope_table(dim, seqlen, 0, 1e4, **BETAS, dtype=dtype)


def test_rows_of_tokens_and_their_first_halves():
    cos, sin = build_rope_tables(TINY, 0)
    positions = torch.tensor([[5, 1023], [0, 5]], dtype=torch.int32)
    rows_cos, rows_sin = token_rows(cos, sin, positions)
    assert_same_bits(rows_cos, cos[[5, 1023, 0, 5]])
    assert_same_bits(rows_sin, sin[[5, 1023, 0, 5]])
    halves = half_rows(cos, sin, positions)
    assert_same_bits(halves[1], rows_sin[:, :32].float())
    with pytest.raises(GoldenInputError, match=r"position_ids\[1\] is 1024, expected 0\.\.1023"):
        token_rows(cos, sin, torch.tensor([0, 1024]))


@pytest.mark.parametrize("num_tokens", [-1, 0, 1, 5, 8, 11])
def test_materialised_rows_of_active_tokens(num_tokens):
    cos, sin = build_rope_tables(TINY, 4)
    positions = torch.tensor([9, 9, 1023, 0, 4, 7, 2, 2], dtype=torch.int32)
    active = min(max(num_tokens, 0), 8)
    whole = token_rows(cos, sin, positions)
    positions[active:] = 5000  # nobody reads the positions of padding
    found = materialize_rope_rows(cos, sin, positions, num_tokens)
    for rows, wanted in zip(found, whole, strict=True):
        assert_same_bits(rows[:active], wanted[:active])
        assert not rows[active:].any()


def test_rejects_positions_outside_and_of_another_dtype():
    cos, sin = build_rope_tables(TINY, 4)
    with pytest.raises(GoldenInputError, match=r"position_ids\[0\] is -1, expected 0\.\.1023"):
        materialize_rope_rows(cos, sin, torch.tensor([-1, 5000], dtype=torch.int32), 1)
    with pytest.raises(GoldenInputError, match="position_ids has dtype int64, expected int32"):
        materialize_rope_rows(cos, sin, torch.tensor([1]), 1)


def test_rotation_keeps_lengths_and_undoes_itself():
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    cos, sin = (table[:50, :32] for table in build_rope_tables(FLASH, 0, max_seq_len=50, dtype="fp32"))
    turned = rotate_pairs(x, cos, sin)
    assert turned[0].equal(x[0])
    energy = (x.view(50, 32, 2).double() ** 2).sum(2)
    assert torch.allclose((turned.view(50, 32, 2).double() ** 2).sum(2), energy, rtol=1e-6)
    assert torch.allclose(rotate_pairs(turned, cos, -sin), x, atol=1e-6)


def test_pairs_are_neighbours():
    x = torch.tensor([[1.0, 10.0, 100.0, 1000.0]])
    found = rotate_pairs(x, torch.tensor([[0.5, 2.0]]), torch.tensor([[3.0, 5.0]]))
    assert found.tolist() == [[0.5 - 30.0, 3.0 + 5.0, 200.0 - 5000.0, 500.0 + 2000.0]]
