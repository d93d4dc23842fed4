"""Golden of hc_pre: straight-line tokens, FP64 bound, and the facts of contracts/hc_gate_experts.md 1."""

import numpy as np
import pytest
import torch
from golden_testing import (
    F32,
    HC,
    HC_EPS,
    RMS_EPS,
    assert_same_bits,
    bf16,
    exact_dot,
    exact_sum,
    exp,
    hc_pre_inputs,
    run,
)  # fmt: skip

from goldens.hc_pre import hc_pre

ITERS = 20
# Real scale and bias of layer 0, SWA attention: the extreme comb biases (contract 1.2).
LAYER_0_SCALE = [2.076026, 0.018729, 0.245936]
LAYER_0_BASE = [
    3.9083, -2.0399, -2.2033, -2.017, -2.4443, -10.3158, -8.9943, -6.3581,
    9.8577, -9.5177, -24.8724, -22.8929, -21.545, 0.7791, -3.386, 1.1948,
    -20.9605, -0.7702, 1.4218, -4.8994, 1.5177, -29.7663, -30.1413, -1.2413,
]  # fmt: skip


def sigmoid(v):
    return F32(1) / (exp(-v) + F32(1))


def column_step(c):
    for o in range(HC):
        total = ((c[0][o] + c[1][o]) + (c[2][o] + c[3][o])) + F32(HC_EPS)
        for i in range(HC):
            c[i][o] = c[i][o] / total


def row_step(c):
    for i in range(HC):
        total = (((c[i][0] + c[i][1]) + c[i][2]) + c[i][3]) + F32(HC_EPS)
        for o in range(HC):
            c[i][o] = c[i][o] / total


def straight_line(x, fn, scale, base):
    """Section 1.3 for one token x [HC, D] in NumPy FP32 scalars. D is so small that a K slice is one
    512-chunk.
    """
    flat, width = x.ravel(), x.size // 16
    slices = [slice(s, s + width) for s in range(0, x.size, width)]
    total = F32(0)
    for part in slices:
        total = total + exact_sum([v * v for v in flat[part]])
    inv = F32(1) / np.sqrt(total * F32(1 / x.size) + F32(RMS_EPS))
    logit = []
    for m in range(24):
        raw = F32(0)
        for part in slices:
            raw = raw + exact_dot(flat[part], fn[m, part])
        logit.append((raw * inv) * scale[min(m // 4, 2)] + base[m])
    pre = [sigmoid(v) + F32(HC_EPS) for v in logit[:4]]
    post = [sigmoid(v) * F32(2) for v in logit[4:8]]
    comb = []
    for i in range(HC):
        row = logit[8 + 4 * i : 12 + 4 * i]
        e = [exp(v - max(row)) for v in row]
        comb.append([v / (((e[0] + e[1]) + e[2]) + e[3]) + F32(HC_EPS) for v in e])
    column_step(comb)
    for _ in range(ITERS - 1):
        row_step(comb)
        column_step(comb)
    p = [x[h] * pre[h] for h in range(HC)]
    return bf16((p[0] + p[1]) + (p[2] + p[3])), np.array(post), np.array(comb).ravel()


@pytest.mark.parametrize("seed", range(4))
def test_equals_straight_line_code(seed):
    tensors, _ = hc_pre_inputs(seed)
    found = run("hc_pre", hc_pre_inputs(seed))
    rest = [tensors[name].numpy() for name in ("hc_fn", "hc_scale", "hc_base")]
    for t, x in enumerate(tensors["x"].float().numpy()):
        x_mixed, post, comb = straight_line(x, *rest)
        assert_same_bits(found["x_mixed"][t].float(), torch.from_numpy(x_mixed))
        assert_same_bits(found["post"][t], torch.from_numpy(post))
        assert_same_bits(found["comb"][t], torch.from_numpy(comb))


def fp64_reference(x, fn, scale, base):
    """The formula without a rounding: x_mixed, pre, post, comb and what the error bound is made of."""
    x, fn, base = x.double(), fn.double(), base.double()
    flat = x.flatten(1)
    inv = (flat.square().mean(1, keepdim=True) + RMS_EPS).rsqrt()
    slices = torch.einsum("tsk,msk->tms", flat.unflatten(1, (16, -1)), fn.unflatten(1, (16, -1)))
    mix = slices.sum(2) * inv
    gain = scale.double().repeat_interleave(torch.tensor([4, 4, 16]))
    logit = mix * gain + base
    comb = logit[:, 8:].unflatten(1, (4, 4)).softmax(2) + HC_EPS
    comb = comb / (comb.sum(1, keepdim=True) + HC_EPS)
    for _ in range(ITERS - 1):
        comb = comb / (comb.sum(2, keepdim=True) + HC_EPS)
        comb = comb / (comb.sum(1, keepdim=True) + HC_EPS)
    pre = logit[:, :4].sigmoid() + HC_EPS
    mixed = (x * pre.unsqueeze(2)).sum(1)
    spread = slices.abs().sum(2) * inv * gain  # what the roundings of the slice chain scale with
    return mixed, pre, 2 * logit[:, 4:8].sigmoid(), comb.flatten(1), logit, spread, mix * gain


def test_error_against_fp64():
    """With u = 2^-24: the slice chain is 16 u of the sum of |slice|. 1/rms: 16 chunk sums, 15 additions,
    scale and eps under the root, so 17 u, and 2 u more; product, scale and base: 3 u. A sigmoid's relative
    error is at most that of its logit (absolute), plus 4 u; pre adds eps, 1 u more. The Sinkhorn steps do not
    enlarge the spread of relative errors, which is at most 4 logit errors; each of the 40 divisions adds 5
    sums and quotients, 5 u, to both ends. x_mixed rounds a product and two sums, 3 u of each term, then to
    BF16, 2^-8.
    """
    tensors, _ = hc_pre_inputs(2, t=40)
    found = run("hc_pre", hc_pre_inputs(2, t=40))
    mixed, pre, post, comb, logit, spread, scaled = fp64_reference(*tensors.values())
    u = 2.0**-24
    delta = 16 * u * spread + 22 * u * scaled.abs() + u * logit.abs()
    assert ((found["post"].double() - post).abs() <= post * (delta[:, 4:8] + 4 * u)).all()
    worst = delta[:, 8:].amax(1, keepdim=True)
    assert ((found["comb"].double() - comb).abs() <= comb * (4 * worst + 400 * u)).all()
    terms = (tensors["x"].double() * pre.unsqueeze(2)).abs()
    gates = (delta[:, :4] + 8 * u).unsqueeze(2)
    bound = 2.0**-8 * mixed.abs() + 1.01 * (terms * gates).sum(1)
    assert ((found["x_mixed"].double() - mixed).abs() <= bound).all()


def test_zero_token():
    tensors, _ = hc_pre_inputs()
    x = tensors["x"].clone()
    x[1] = 0
    taps = {}
    found = run("hc_pre", hc_pre_inputs(), x=x, rms_eps=1e-6, taps=taps)
    assert taps["inv_rms"][1].item() == pytest.approx(1000, rel=1e-6)
    assert torch.equal(taps["logits"][1], tensors["hc_base"])
    assert (found["x_mixed"][1] == 0).all()


def test_very_negative_logits():
    tensors, _ = hc_pre_inputs()
    base = tensors["hc_base"].clone()
    base[:8] = -200
    taps = {}
    found = run("hc_pre", hc_pre_inputs(), hc_base=base, taps=taps)
    assert (taps["pre"] == torch.tensor(HC_EPS)).all()
    assert (found["post"] == 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_ranges_and_column_sums(seed):
    found = run("hc_pre", hc_pre_inputs(seed, t=64), hc_eps=1e-6)
    comb = found["comb"].view(-1, HC, HC).double()
    assert ((comb.sum(1) - 1).abs() <= 2e-6).all()
    assert (comb.sum(2) - 1).abs().max() > 1e-3  # rows do not converge: no doubly stochastic matrix
    assert (comb > 0).all()
    assert (comb < 1.01).all()
    assert (found["post"] >= 0).all()
    assert (found["post"] <= 2).all()


def test_extreme_biases_keep_comb_positive():
    changes = {"hc_scale": torch.tensor(LAYER_0_SCALE), "hc_base": torch.tensor(LAYER_0_BASE), "hc_eps": 1e-6}
    comb = run("hc_pre", hc_pre_inputs(0, t=32), **changes)["comb"]
    assert 0 < comb.min() < 1e-8
    assert ((comb.view(-1, HC, HC).double().sum(1) - 1).abs() <= 2e-6).all()


def test_the_three_epsilons_and_the_order_of_steps():
    """hc_fn = 0: one rational softmax worked by hand for one iteration, where each epsilon shows."""
    tensors, _ = hc_pre_inputs(0, t=1)
    base = torch.zeros(24)
    base[8:] = torch.tensor([[3.0, 1, 0, 0], [0, 0, 0, 0], [2, 0, 0, 2], [0, 5, 0, 0]]).flatten()
    eps = 2.0**-6
    fn = torch.zeros_like(tensors["hc_fn"])
    taps = {}
    found = run("hc_pre", hc_pre_inputs(0, t=1), hc_fn=fn, hc_base=base, hc_eps=eps, sinkhorn_iters=1, taps=taps)
    soft = base[8:].view(4, 4).double().softmax(1) + eps
    wanted = soft / (soft.sum(0, keepdim=True) + eps)
    assert (found["comb"].view(4, 4).double() - wanted).abs().max() < 1e-6
    assert (taps["pre"] == 0.5 + eps).all()
    assert (found["post"] == 1).all()


def test_rms_and_hc_epsilon_are_two_parameters():
    plain = run("hc_pre", hc_pre_inputs(), rms_eps=1e-6, hc_eps=1e-6)
    rms = run("hc_pre", hc_pre_inputs(), rms_eps=1e-2, hc_eps=1e-6)
    hc = run("hc_pre", hc_pre_inputs(), rms_eps=1e-6, hc_eps=1e-2)
    assert not torch.equal(rms["post"], plain["post"])
    assert torch.equal(hc["post"], plain["post"])
    assert not torch.equal(hc["comb"], plain["comb"])


def test_ties_of_x_mixed_round_to_even():
    """1.01953125 must become 1.015625 (the reference repository traced a wrong attention output to this
    tie).
    """
    tensors, _ = hc_pre_inputs(0, t=1)
    x = torch.zeros_like(tensors["x"])
    x[0, 0, 0], x[0, 1, 0] = 2.03125, 0.0078125  # halves sum to 1.01953125
    fn, base = torch.zeros_like(tensors["hc_fn"]), torch.zeros(24)
    found = run("hc_pre", hc_pre_inputs(0, t=1), x=x, hc_fn=fn, hc_base=base, hc_eps=0.0)
    assert found["x_mixed"][0, 0].item() == 1.015625


def test_streams_are_summed_pairwise():
    """(p0 + p1) + (p2 + p3): here the left-to-right sum is 0 and the pairwise one is not."""
    tensors, _ = hc_pre_inputs(0, t=1)
    x = torch.zeros_like(tensors["x"])
    x[0, :, 0] = torch.tensor([2.0**30, 1.0, -(2.0**30), 1.0])
    taps = {}
    changes = {"hc_fn": torch.zeros_like(tensors["hc_fn"]), "hc_base": torch.zeros(24), "hc_eps": 0.0}
    run("hc_pre", hc_pre_inputs(0, t=1), x=x, taps=taps, **changes)
    assert taps["mixed"][0, 0].item() == 0.0  # 2^29 + 0.5 and -2^29 + 0.5 both lose the half
    x[0, :, 0] = torch.tensor([2.0**30, -(2.0**30), 1.0, 1.0])
    run("hc_pre", hc_pre_inputs(0, t=1), x=x, taps=taps, **changes)
    assert taps["mixed"][0, 0].item() == 1.0


def test_nan_stays_in_its_token():
    tensors, _ = hc_pre_inputs()
    x = tensors["x"].clone()
    x[3, 2, 1] = torch.nan
    found, plain = run("hc_pre", hc_pre_inputs(), x=x), run("hc_pre", hc_pre_inputs())
    for name, value in found.items():
        assert value[3].isnan().any()
        assert_same_bits(value[:3], plain[name][:3])


def test_gates_ignore_powers_of_two_when_epsilon_is_negligible():
    tensors, _ = hc_pre_inputs(1)
    plain = run("hc_pre", hc_pre_inputs(1), rms_eps=0.0)
    doubled = run("hc_pre", hc_pre_inputs(1), x=tensors["x"] * 2, rms_eps=0.0)
    assert_same_bits(doubled["comb"], plain["comb"])
    assert_same_bits(doubled["x_mixed"], plain["x_mixed"] * 2)


def test_pro_width():
    """HC_DIM = 28672: slices of 1792, the last chunk of each shorter than 512, and an inexact 1/HC_DIM."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(12, HC, 7168, generator=generator) * 0.05).bfloat16()
    fn = torch.randn(24, HC * 7168, generator=generator) * 0.05
    taps = {}
    hc_pre(x, fn, torch.ones(3), torch.zeros(24), rms_eps=1e-6, hc_eps=1e-6, sinkhorn_iters=20, taps=taps)
    for t, row in enumerate(x.float().flatten(1).numpy()):
        total = F32(0)
        for s in range(0, row.size, 1792):
            inner = F32(0)
            for c in range(s, s + 1792, 512):
                inner = inner + exact_sum([v * v for v in row[c : min(c + 512, s + 1792)]])
            total = total + inner
        assert taps["sum_squares"][t].item() == total
        assert taps["inv_rms"][t].item() == F32(1) / np.sqrt(total * F32(1 / 28672) + F32(1e-6))
