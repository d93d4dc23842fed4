"""Golden of qkv_proj_rope: straight-line tokens, FP64 bounds, rejected forms, facts of contracts/dense.md 7."""

import numpy as np
import pytest
import torch
from golden_testing import (
    F32,
    INTER,
    RMS_EPS,
    assert_rejected,
    assert_same_bits,
    bf16,
    exact_dot,
    exact_sum,
    q8,
    qkv_proj_rope_inputs,
    run,
)  # fmt: skip

from goldens.errors import GoldenInputError
from goldens.numerics.quant import quantize_rows
from goldens.numerics.rope import rotate_pairs
from goldens.qkv_proj_rope import qkv_proj_rope
from specs.registry import load_op

U = 2.0**-24
OP = "qkv_proj_rope"
HEADS, LANES, ROPE = 3, 32, 8
PLAIN = LANES - ROPE


def inverse_rms(row):
    return F32(1) / np.sqrt(exact_sum([v * v for v in row]) * F32(1 / len(row)) + F32(RMS_EPS))


def turned(n, c, s):
    """Lanes of one normed vector, the last ROPE rotated."""
    out = list(n[:PLAIN])
    for i in range(ROPE // 2):
        a, b = n[PLAIN + 2 * i], n[PLAIN + 2 * i + 1]
        out += [a * c[i] - b * s[i], a * s[i] + b * c[i]]
    return bf16(out)


def straight_line(x, wq_a, wq_b, wq_b_scale, wkv, cos, sin, gamma_cq, gamma_ckv):
    """Section 7.3 for one token in NumPy FP32 scalars."""
    r = [exact_dot(x, column) for column in wq_a.T]
    inv = inverse_rms(r)
    codes, scale = q8([(v * inv) * g for v, g in zip(r, gamma_cq, strict=True)])
    q = []
    for h in range(HEADS):
        columns = range(h * LANES, (h + 1) * LANES)
        acc = [sum(int(a) * int(b) for a, b in zip(codes, wq_b[:, c], strict=True)) for c in columns]
        u = [(F32(a) * scale) * wq_b_scale[c] for a, c in zip(acc, columns, strict=True)]
        inv = inverse_rms(u)
        q.append(turned([v * inv for v in u], cos, sin))
    w = [exact_dot(x, column) for column in wkv.T]
    inv = inverse_rms(w)
    kv = turned([(v * inv) * g for v, g in zip(w, gamma_ckv, strict=True)], cos, sin)
    return np.stack(q), kv, codes, scale


@pytest.mark.parametrize("seed", range(3))
def test_equals_straight_line_code(seed):
    tensors, _ = qkv_proj_rope_inputs(seed, t=3)
    found = run(OP, qkv_proj_rope_inputs(seed, t=3))
    part = {n: v.float().numpy() if v.is_floating_point() else v.numpy() for n, v in tensors.items()}
    whole = [part[n] for n in ("wq_a", "wq_b", "wq_b_scale", "wkv")]
    for t in range(3):
        q, kv, codes, scale = straight_line(
            part["x"][t], *whole, part["rope_cos"][t], part["rope_sin"][t], part["gamma_cq"], part["gamma_ckv"]
        )
        assert_same_bits(found["q"][t].float(), torch.from_numpy(q))
        assert_same_bits(found["kv"][t].float(), torch.from_numpy(kv))
        assert found["qr"][t].tolist() == codes
        assert found["qr_scale"][t].item() == scale


def reference(t, codes=None, scale=None):
    """The formula in FP64 without a rounding: q, kv, the normed low rank; from codes and scale where given."""
    t = {name: value.double() for name, value in t.items()}

    def normed(x):
        return x / (x.square().mean(-1, keepdim=True) + RMS_EPS).sqrt()

    n = normed(t["x"] @ t["wq_a"]) * t["gamma_cq"]
    wide = n if codes is None else codes.double() * scale.double()
    heads = normed((wide @ t["wq_b"] * t["wq_b_scale"]).unflatten(1, (HEADS, LANES)))
    kv = normed(t["x"] @ t["wkv"]) * t["gamma_ckv"]
    cos, sin = t["rope_cos"][:, : ROPE // 2], t["rope_sin"][:, : ROPE // 2]
    q = torch.cat([heads[..., :PLAIN], rotate_pairs(heads[..., PLAIN:], cos[:, None], sin[:, None])], dim=-1)
    return q, torch.cat([kv[:, :PLAIN], rotate_pairs(kv[:, PLAIN:], cos, sin)], dim=-1), n, heads, kv


def test_error_against_fp64():
    """With u = 2^-24. A projection is rounded once, u of itself; squares and their sum, 1/n, its product and eps
    are 5 u under the root and u for the values squared, so 4 u, 2 u for root and quotient, 2 u for the products: 9 u
    of a normed value. q from the golden's own codes: FP32 of the exact sum and two scales are 3 u, so 3 u under the
    root as well, 13 u in all. A rotation adds 2 u of |a c| + |b s|, which is at most |a| + |b| here; then 2^-8 for
    BF16. A code stands for its value to half a step, and 3 u of up to 127 steps.
    """
    inputs = qkv_proj_rope_inputs(4, t=64)
    found = run(OP, inputs)
    q, kv, n, heads, normed_kv = reference(inputs[0], found["qr"], found["qr_scale"])

    def rounding(values, steps):
        pairs = values.abs().unflatten(-1, (-1, 2)).sum(-1).repeat_interleave(2, dim=-1)
        return steps * U * torch.cat([values.abs()[..., :PLAIN], pairs[..., PLAIN:]], dim=-1)

    for name, wanted, values, steps in (("q", q, heads, 15), ("kv", kv, normed_kv, 11)):
        error = (found[name].double() - wanted).abs()
        bound = 2.0**-8 * wanted.abs() + 1.01 * rounding(values, steps)
        assert (error <= bound).all()
        assert (error > bound / 2).any()  # the bound is no larger than it must be
    scale = found["qr_scale"].double()
    error = (n - found["qr"].double() * scale).abs()
    assert (error <= scale * (0.5 + 3 * 127 * U) + 9 * U * n.abs()).all()


def tiny(case="default"):
    op = load_op(OP, "tiny", "prefill")
    inputs, taps = op.inputs(case), {}
    op.golden(inputs, taps)
    return inputs, taps


def rotary(inputs):
    half = inputs["rope_cos"].shape[1] // 2
    return inputs["rope_cos"][:, :half].float(), inputs["rope_sin"][:, :half].float()


def test_rotating_before_normalising_is_another_value():
    """July's q: the raw values rotate, then 1/rms. A few lanes in 1e5 differ, by one ULP: too few to be rejected in
    FP32, so the order is held by bits, and what A5 made of it (10.8 % of q, all of them rotary) by the tolerance.
    """
    inputs, taps = tiny()
    cos, sin = (part.unsqueeze(1) for part in rotary(inputs))
    lanes = 2 * cos.shape[-1]
    july = rotate_pairs(taps["q_heads"][..., -lanes:], cos, sin) * taps["q_inv_rms"]
    ours = rotate_pairs(taps["q_heads"][..., -lanes:] * taps["q_inv_rms"], cos, sin)
    assert 0 < int((july.bfloat16() != ours.bfloat16()).sum()) < 1e-3 * ours.numel()
    assert_same_bits(taps["q"][..., -lanes:], ours.bfloat16())
    doubly = rotate_pairs(taps["q_heads"][..., -lanes:].bfloat16().float(), cos, sin) * taps["q_inv_rms"]
    found = torch.cat([taps["q"][..., :-lanes], doubly.bfloat16()], dim=-1)
    assert_rejected(OP, "q", found, taps["q"], by="differing")


@pytest.mark.parametrize("error", [2e-4, 1e-3])
def test_rejects_a_fast_reciprocal_root(error):
    _, taps = tiny("no_rotation")
    q = (taps["q_heads"] * (taps["q_inv_rms"] * (1 + error))).bfloat16()
    assert_rejected(OP, "q", q, taps["q"], by="differing")
    kv = (taps["kv_norm"] * (1 + error)).bfloat16()
    assert_rejected(OP, "kv", kv, taps["kv"], by="differing")
    _, scale = quantize_rows(taps["low_rank_norm"] * (1 + error))
    assert_rejected(OP, "qr_scale", scale, taps["qr_scale"], by="limit")


def test_rejects_codes_made_from_bf16():
    """The low rank rounded to BF16 first (#556 removed it): 3 % of the codes change, each by one."""
    _, taps = tiny()
    codes, _ = quantize_rows(taps["low_rank_norm"].bfloat16().float())
    changed = float((codes != taps["qr"]).float().mean())
    assert 0.01 < changed < 0.06
    assert int((codes.int() - taps["qr"].int()).abs().max()) == 1
    assert_rejected(OP, "qr", codes, taps["qr"], by="differing")


@pytest.mark.parametrize(("mode", "by"), [(torch.trunc, "differing"), (torch.floor, "one sign")])
def test_rejects_codes_that_are_cut_off(mode, by):
    _, taps = tiny()
    amax = taps["low_rank_norm"].abs().amax(dim=1, keepdim=True)
    codes = mode(taps["low_rank_norm"] * (torch.full_like(amax, 127.0) / amax)).to(torch.int8)
    assert int((codes.int() - taps["qr"].int()).abs().max()) == 1  # all within the reference's one step
    assert_rejected(OP, "qr", codes, taps["qr"], by=by)


@pytest.mark.parametrize("stage", ["low_rank_norm", "q_heads", "kv_norm"])
def test_rejects_a_bf16_hop(stage):
    inputs, taps = tiny()
    hop = taps[stage].bfloat16().float()
    if stage == "low_rank_norm":
        return_codes, scale = quantize_rows(hop)
        assert_rejected(OP, "qr", return_codes, taps["qr"], by="differing")
        assert_rejected(OP, "qr_scale", scale, taps["qr_scale"], by="limit")
        return
    cos, sin = rotary(inputs)
    if stage == "q_heads":
        cos, sin, hop = cos.unsqueeze(1), sin.unsqueeze(1), hop * taps["q_inv_rms"]
    lanes, output = 2 * cos.shape[-1], stage.split("_")[0]
    found = torch.cat([hop[..., :-lanes], rotate_pairs(hop[..., -lanes:], cos, sin)], dim=-1).bfloat16()
    assert_rejected(OP, output, found, taps[output], by="differing")


def test_rejects_gamma_after_the_rotation_and_lanes_from_the_wrong_column():
    inputs, taps = tiny()
    cos, sin = rotary(inputs)
    lanes, gamma = 2 * cos.shape[-1], inputs["gamma_ckv"].float()
    plain = taps["kv_raw"] * taps["kv_inv_rms"]
    late = torch.cat([plain[:, :-lanes], rotate_pairs(plain[:, -lanes:], cos, sin)], dim=1) * gamma
    assert_rejected(OP, "kv", late.bfloat16(), taps["kv"], by="limit")
    whole = inputs["rope_cos"].float(), inputs["rope_sin"].float()
    read = rotate_pairs(taps["kv_norm"][:, -lanes:], whole[0][:, 0::2], whole[1][:, 0::2])  # column j, not j >> 1
    found = torch.cat([taps["kv"][:, :-lanes], read.bfloat16()], dim=1)
    assert_rejected(OP, "kv", found, taps["kv"], by="limit")


def test_goes_on_from_the_codes_of_a_device():
    """A legal flip moves 8 to 12 % of the token's q; from the device's own codes, q is the device's own."""
    tensors, parameters = qkv_proj_rope_inputs(5)
    plain = run(OP, (tensors, parameters))
    codes = plain["qr"].clone()
    codes[2, 7] += 1
    found = qkv_proj_rope(**tensors, **parameters, given={"qr": codes})
    assert torch.equal(found["qr"], codes)
    assert float((found["q"][2] != plain["q"][2]).float().mean()) > 0.05
    rest = [0, 1, 3, 4]
    assert_same_bits(found["q"][rest], plain["q"][rest])
    assert_same_bits(found["kv"], plain["kv"])
    q, *_ = reference(tensors, codes, plain["qr_scale"])
    assert torch.allclose(found["q"].double(), q, rtol=2.0**-8, atol=1e-5)
    other = qkv_proj_rope(**tensors, **parameters, given={"qr_scale": plain["qr_scale"] * 2})
    assert torch.equal(other["qr_scale"], plain["qr_scale"] * 2)
    with pytest.raises(GoldenInputError, match="given qr has shape"):
        qkv_proj_rope(**tensors, **parameters, given={"qr": codes[:2]})


def test_negation_is_exact():
    tensors, _ = qkv_proj_rope_inputs(6)
    plain, found = run(OP, qkv_proj_rope_inputs(6)), run(OP, qkv_proj_rope_inputs(6), x=-tensors["x"])
    assert torch.equal(found["qr"], -plain["qr"])
    assert_same_bits(found["qr_scale"], plain["qr_scale"])
    assert_same_bits(found["q"], -plain["q"])
    assert_same_bits(found["kv"], -plain["kv"])


def test_heads_move_with_their_columns():
    tensors, _ = qkv_proj_rope_inputs(7)
    order = torch.arange(HEADS * LANES).view(HEADS, LANES)[[2, 0, 1]].flatten()
    changes = {"wq_b": tensors["wq_b"][:, order], "wq_b_scale": tensors["wq_b_scale"][order]}
    found, plain = run(OP, qkv_proj_rope_inputs(7), **changes), run(OP, qkv_proj_rope_inputs(7))
    assert_same_bits(found["q"], plain["q"][:, [2, 0, 1]])


def test_negating_a_plain_column_negates_its_lane():
    tensors, _ = qkv_proj_rope_inputs(8)
    wq_b = tensors["wq_b"].clone()
    wq_b[:, LANES + 5] *= -1
    found, plain = run(OP, qkv_proj_rope_inputs(8), wq_b=wq_b)["q"], run(OP, qkv_proj_rope_inputs(8))["q"]
    assert_same_bits(found[:, 1, 5], -plain[:, 1, 5])
    found[:, 1, 5] = plain[:, 1, 5]
    assert_same_bits(found, plain)


def test_second_half_of_the_rotary_rows_is_not_read():
    tensors, _ = qkv_proj_rope_inputs(9)
    changes = {}
    for name in ("rope_cos", "rope_sin"):
        changes[name] = tensors[name].clone()
        changes[name][:, ROPE // 2 :] = torch.nan
    found, plain = run(OP, qkv_proj_rope_inputs(9), **changes), run(OP, qkv_proj_rope_inputs(9))
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_powers_of_two_of_gamma_go_to_the_scale():
    tensors, _ = qkv_proj_rope_inputs(10)
    plain = run(OP, qkv_proj_rope_inputs(10))
    found = run(OP, qkv_proj_rope_inputs(10), gamma_cq=tensors["gamma_cq"] * 8)
    assert torch.equal(found["qr"], plain["qr"])
    assert_same_bits(found["qr_scale"], plain["qr_scale"] * 8)


def test_gamma_of_the_rotary_lanes_comes_before_the_rotation():
    tensors, _ = qkv_proj_rope_inputs(11)
    quarter = {"rope_cos": torch.zeros_like(tensors["rope_cos"]), "rope_sin": torch.ones_like(tensors["rope_sin"])}
    gamma = torch.ones(LANES, dtype=torch.bfloat16)
    gamma[PLAIN] = 0.0  # lane 2i of the first pair vanishes, and turns up as zero in lane 2i + 1
    kv = run(OP, qkv_proj_rope_inputs(11), gamma_ckv=gamma, **quarter)["kv"]
    assert not kv[:, PLAIN + 1].any()
    assert kv[:, PLAIN].all()


def test_zero_rows_and_nan_stay_in_their_row():
    tensors, _ = qkv_proj_rope_inputs(12)
    x = tensors["x"].clone()
    x[1] = 0
    x[3, 4] = torch.nan
    found, plain = run(OP, qkv_proj_rope_inputs(12), x=x), run(OP, qkv_proj_rope_inputs(12))
    assert not any(found[name][1].any() for name in ("q", "kv", "qr"))
    assert found["qr_scale"][1].item() == F32(7.874015750530816e-07)
    assert found["kv"][3].isnan().all()
    assert found["qr_scale"][3].isnan().all()
    for name in plain:
        assert_same_bits(found[name][[0, 2, 4]], plain[name][[0, 2, 4]])


def test_energy_of_a_head_is_its_width():
    inputs = qkv_proj_rope_inputs(13, t=32)
    angle = inputs[0]["rope_cos"].double()
    q = run(OP, inputs, rope_cos=angle.cos().bfloat16(), rope_sin=angle.sin().bfloat16())["q"].double()
    assert ((q.square().sum(2) / LANES - 1).abs() < 6e-3).all()


def test_sums_beyond_fp32_are_integers_first():
    """PRO's low rank: exact as integers, and rounded once when they become FP32."""
    tensors, parameters = qkv_proj_rope_inputs(0, t=1)
    tensors |= {"wq_a": torch.zeros(96, 1536, dtype=torch.bfloat16), "gamma_cq": torch.ones(1536).bfloat16()}
    tensors |= {"wq_b": torch.full((1536, LANES), 127, dtype=torch.int8), "wq_b_scale": torch.ones(LANES)}
    codes, taps = torch.full((1, 1536), 127, dtype=torch.int8), {}
    codes[0, 5] = 126
    qkv_proj_rope(**tensors, **parameters, given={"qr": codes, "qr_scale": torch.ones(1, 1)}, taps=taps)
    total = 1536 * 127 * 127 - 127
    assert total > 2**24
    assert taps["q_acc"][0, 0].item() == total != float(F32(total))
    assert taps["q_heads"][0, 0, 0].item() == F32(total)


def test_rejects_widths_that_do_not_fit():
    tensors, _ = qkv_proj_rope_inputs()
    with pytest.raises(GoldenInputError, match=rf"wq_b has shape \[{INTER}, 95\], expected whole heads of 32 columns"):
        run(OP, qkv_proj_rope_inputs(), wq_b=tensors["wq_b"][:, :95], wq_b_scale=tensors["wq_b_scale"][:95])
    for width in (7, 34):
        with pytest.raises(GoldenInputError, match=f"rope_cos has shape .*{width}.*, expected an even width up to 32"):
            run(OP, qkv_proj_rope_inputs(rope=width))
