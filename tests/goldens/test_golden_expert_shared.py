"""Golden of expert_shared: straight-line rows, FP64 bound, and the facts of contracts/hc_gate_experts.md
4.
"""

import numpy as np
import pytest
import torch
from golden_testing import F32, INTER, D, assert_same_bits, bf16, exp, expert_shared_inputs, q8, run


def straight_line(x, xs, w1, s1, w3, s3, w2, s2, limit, weight=None):
    """Section 4.3 (5.3 with a routing weight) for one row, in integers and NumPy FP32 scalars."""
    h = []
    for i in range(len(w1)):
        g = (F32(int(x @ w1[i])) * xs) * s1[i]
        u = (F32(int(x @ w3[i])) * xs) * s3[i]
        if limit > 0:
            g, u = min(g, F32(limit)), max(min(u, F32(limit)), F32(-limit))
        h.append((g * (F32(1) / (exp(-g) + F32(1)))) * u)
    codes, hs = q8(h)
    row_scale = hs if weight is None else hs * weight
    return bf16([(F32(int(np.array(codes) @ w2[d])) * row_scale) * s2[d] for d in range(len(w2))])


def test_silu_first_then_up():
    """(g * sigmoid(g)) * u on FP32 bits: the last bit rarely reaches a code, so the output alone does not show it."""
    taps = {}
    run("expert_shared", expert_shared_inputs(6), taps=taps)
    rows = zip(taps["gate"].flatten().numpy(), taps["up"].flatten().numpy(), strict=True)
    assert taps["h"].flatten().tolist() == [(g * (F32(1) / (exp(-g) + F32(1)))) * u for g, u in rows]


def as_arrays(tensors):
    """INT8 as INT64 for exact dot products, FP32 as it is."""
    return [v.numpy().astype(np.int64) if v.dtype == torch.int8 else v.numpy() for v in tensors]


@pytest.mark.parametrize("limit", [0.0, 10.0, 0.25])
@pytest.mark.parametrize("seed", range(2))
def test_equals_straight_line_code(seed, limit):
    inputs = expert_shared_inputs(seed, limit=limit)
    x, xs, *weights = as_arrays(inputs[0].values())
    wanted = np.stack([straight_line(x[t], xs[t, 0], *weights, limit) for t in range(len(x))])
    assert_same_bits(run("expert_shared", inputs)["sh"].float(), torch.from_numpy(wanted))


def fp64_rows(x, xs, w1, s1, w3, s3, w2, s2, limit):
    """The formula without quantising h: y, and h."""
    dense = [w.double() * s.double().unsqueeze(1) for w, s in ((w1, s1), (w3, s3), (w2, s2))]
    rows = x.double() * xs.double()
    g, u = rows @ dense[0].T, rows @ dense[1].T
    if limit > 0:
        g, u = g.clamp(max=limit), u.clamp(-limit, limit)
    h = g * g.sigmoid() * u
    return h @ dense[2].T, h


@pytest.mark.parametrize("limit", [0.0, 10.0])
def test_error_against_fp64_without_requantisation(limit):
    """h is off by half a code, hs / 2, from Q8. With u = 2^-24 and |g| <= 10: g and u carry 3 u, the sigmoid
    3 u (1 + |g|) + 3 u, two products 2 u: under 64 u of |h| <= 127.5 hs, so 0.0005 hs; Q8's own product and
    scale add 3 u of 127 codes, as little again. So |error of y| <= 0.502 hs sum|w2 s2|, 3 roundings in FP32
    and 2^-8 |y|.
    """
    inputs = expert_shared_inputs(1, t=40, limit=limit)
    taps = {}
    found = run("expert_shared", inputs, taps=taps)["sh"].double()
    wanted, h = fp64_rows(*inputs[0].values(), limit)
    assert taps["gate"].abs().max() <= 10
    w2, s2 = inputs[0]["shared_w2"].double(), inputs[0]["shared_w2_scale"].double()
    half_codes = 0.502 * taps["h_scale"].double() * (w2.abs().sum(1) * s2)
    bound = half_codes * (1 + 2.0**-8) + (2.0**-8 + 3 * 2.0**-24) * wanted.abs()
    assert ((found - wanted).abs() <= bound).all()
    assert ((taps["h_i8"].double() * taps["h_scale"] - h).abs() <= 0.502 * taps["h_scale"]).all()


def test_zero_scale_gives_zero_whatever_the_codes():
    tensors, _ = expert_shared_inputs()
    scale = tensors["x_local_scale_dq"].clone()
    scale[2] = 0
    taps = {}
    sh = run("expert_shared", expert_shared_inputs(), x_local_scale_dq=scale, taps=taps)["sh"]
    assert (sh[2] == 0).all()
    assert taps["h_scale"][2].item() == 7.874015750530816e-07


def test_clamp_is_one_sided_for_the_gate():
    """Large inputs: the gate keeps its negative values, up is clamped on both sides."""
    tensors, _ = expert_shared_inputs(4, t=30)
    scale = tensors["x_local_scale_dq"] * 200
    taps = {}
    run("expert_shared", expert_shared_inputs(4, t=30), x_local_scale_dq=scale, taps=taps)
    gate, up = taps["gate"].double(), taps["up"].double()
    assert gate.min() < -11
    assert gate.max() > 11
    assert up.abs().max() > 11
    wanted = gate.clamp(max=10) * gate.clamp(max=10).sigmoid() * up.clamp(-10, 10)
    assert torch.allclose(taps["h"].double(), wanted, rtol=1e-4, atol=1e-30)
    assert taps["h"].abs().max() <= 100


def test_accumulators_beyond_2_to_24_round_once():
    """FP32 of an INT32 that does not fit 24 bits: nearest-even of the whole sum, not of chunks."""
    inputs = expert_shared_inputs(0, t=2)
    inputs[0]["x_local_i8"] = torch.full((2, 2048), 127, dtype=torch.int8)
    w = torch.full((INTER, 2048), 127, dtype=torch.int8)
    w[:, 0] = torch.arange(INTER) - 40
    changes = {"shared_w1": w, "shared_w3": w, "shared_w2": torch.ones(2048, INTER, dtype=torch.int8)}
    taps = {}
    run("expert_shared", inputs, **changes, shared_w2_scale=torch.ones(2048), taps=taps)
    acc = [2047 * 127 * 127 + 127 * (i - 40) for i in range(INTER)]
    assert min(acc) > 2**24
    assert taps["gate_acc"][0].tolist() == acc
    s = inputs[0]["shared_w1_scale"].numpy()
    xs = inputs[0]["x_local_scale_dq"].numpy()[0, 0]
    assert taps["gate"][0].tolist() == [(F32(a) * xs) * s[i] for i, a in enumerate(acc)]


def test_permutations_are_exact():
    tensors, _ = expert_shared_inputs(3)
    plain = run("expert_shared", expert_shared_inputs(3))["sh"]
    order = torch.randperm(INTER, generator=torch.Generator().manual_seed(0))
    rows = ("shared_w1", "shared_w1_scale", "shared_w3", "shared_w3_scale")
    channels = {name: tensors[name][order] for name in rows} | {"shared_w2": tensors["shared_w2"][:, order]}
    assert_same_bits(run("expert_shared", expert_shared_inputs(3), **channels)["sh"], plain)
    order = torch.randperm(D, generator=torch.Generator().manual_seed(1))
    columns = {name: tensors[name][:, order] for name in ("x_local_i8", "shared_w1", "shared_w3")}
    assert_same_bits(run("expert_shared", expert_shared_inputs(3), **columns)["sh"], plain)
    outputs = {name: tensors[name][order] for name in ("shared_w2", "shared_w2_scale")}
    assert_same_bits(run("expert_shared", expert_shared_inputs(3), **outputs)["sh"], plain[:, order])


def test_signs_and_powers_of_two_are_exact():
    tensors, _ = expert_shared_inputs(5)
    plain = run("expert_shared", expert_shared_inputs(5))["sh"]

    def changed(**changes):
        return run("expert_shared", expert_shared_inputs(5), **changes)["sh"]

    assert torch.equal(changed(shared_w3=-tensors["shared_w3"]), -plain)
    assert torch.equal(changed(shared_w2=-tensors["shared_w2"]), -plain)
    assert_same_bits(changed(**{n: -tensors[n] for n in ("x_local_i8", "shared_w1", "shared_w3")}), plain)
    moved = {n: tensors[n] * 4 for n in ("shared_w1_scale", "shared_w3_scale")}
    assert_same_bits(changed(x_local_scale_dq=tensors["x_local_scale_dq"] / 4, **moved), plain)
    assert_same_bits(changed(shared_w2_scale=tensors["shared_w2_scale"] * 8), plain * 8)


def test_nan_scale_stays_in_its_row():
    tensors, _ = expert_shared_inputs()
    scale = tensors["x_local_scale_dq"].clone()
    scale[1] = torch.nan
    sh = run("expert_shared", expert_shared_inputs(), x_local_scale_dq=scale)["sh"]
    assert sh.isnan().all(1).tolist() == [False, True, False, False, False]
    assert sh[[0, 2, 3, 4]].isfinite().all()
