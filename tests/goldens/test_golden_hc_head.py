"""Golden of hc_head: straight-line tokens, FP64 bound, rejected forms, and the facts of contracts/dense.md 8."""

import numpy as np
import pytest
import torch
from golden_testing import (
    F32,
    HC,
    HC_EPS,
    RMS_EPS,
    D,
    assert_rejected,
    assert_same_bits,
    bf16,
    exact_dot,
    exact_sum,
    exp,
    hc_head_inputs,
    run,
)  # fmt: skip

from goldens.hc_head import hc_head
from specs.registry import load_op

U = 2.0**-24


def straight_line(x, fn, scale, base):
    """Section 8.3 for one token x [HC, D] in NumPy FP32 scalars."""
    flat = x.ravel()
    total = F32(0)
    for c in range(0, flat.size, 512):
        total = total + exact_sum([v * v for v in flat[c : c + 512]])
    inv = F32(1) / np.sqrt(total * F32(1 / flat.size) + F32(RMS_EPS))
    p = []
    for h in range(HC):
        logit = (exact_dot(flat, fn[h]) * inv) * scale[0] + base[h]
        gate = F32(1) / (exp(-logit) + F32(1)) + F32(HC_EPS)
        p.append(x[h] * gate)
    return bf16((p[0] + p[1]) + (p[2] + p[3]))


@pytest.mark.parametrize("d", [D, 300])
@pytest.mark.parametrize("seed", range(3))
def test_equals_straight_line_code(seed, d):
    """Also with a width of 1200 columns: two chunks and a shorter one."""
    draw = torch.Generator().manual_seed(seed)
    x = (torch.randn(4, HC, d, generator=draw) * 0.05).bfloat16()
    fn = torch.randn(HC, HC * d, generator=draw) * 0.3
    scale, base = torch.tensor([0.3]), torch.randn(HC, generator=draw)
    found = hc_head(x, fn, scale, base, rms_eps=RMS_EPS, hc_eps=HC_EPS)["y"]
    rest = [part.numpy() for part in (fn, scale, base)]
    wanted = np.stack([straight_line(row, *rest) for row in x.float().numpy()])
    assert_same_bits(found.float(), torch.from_numpy(wanted))


def fp64_reference(x, fn, scale, base):
    """The formula without a rounding: y, the scaled projection, the logits and the gates."""
    x, fn, base = x.double(), fn.double(), base.double()
    flat = x.flatten(1)
    scaled = flat @ fn.T / (flat.square().mean(1, keepdim=True) + RMS_EPS).sqrt() * scale.double()
    logits = scaled + base
    pre = logits.sigmoid() + HC_EPS
    return (x * pre.unsqueeze(2)).sum(1), scaled, logits, pre


def test_error_against_fp64():
    """With u = 2^-24. 1/rms: one chunk sum, 1/D, its product and eps are 4 u under the root, so 2 u, and 2 u for
    root and quotient. With the rounded projection, the product with 1/rms and with scale: 7 u of the scaled
    projection; base: u of the logit. A sigmoid's relative error is at most that of its logit (absolute) plus 4 u,
    and its epsilon adds u. y rounds a product and two sums, 3 u of each term, then to BF16, 2^-8.
    """
    inputs = hc_head_inputs(1, t=64)
    found = run("hc_head", inputs)["y"].double()
    wanted, scaled, logits, pre = fp64_reference(*inputs[0].values())
    gates = 7 * U * scaled.abs() + U * logits.abs() + 5 * U
    terms = (inputs[0]["x_hc"].double() * pre.unsqueeze(2)).abs()
    bound = 2.0**-8 * wanted.abs() + 1.01 * (terms * (gates + 3 * U).unsqueeze(2)).sum(1)
    assert ((found - wanted).abs() <= bound).all()
    assert ((found - wanted).abs() > bound / 2).any()  # the bound is no larger than it must be


def flash_like(case="default"):
    """Inputs at a width of 1024 and 128 tokens, with the golden's stages: enough elements for a share of 1e-3."""
    op = load_op("hc_head", "tiny", "prefill")
    inputs, taps = op.inputs(case), {}
    op.golden(inputs, taps)
    return inputs, taps


def finished(inputs, inv_rms, raw):
    """Steps 5 to 8 of the contract from another 1/rms."""
    pre = (raw * inv_rms * inputs["hc_head_scale"] + inputs["hc_head_base"]).sigmoid() + 1e-6
    p = inputs["x_hc"].float() * pre.unsqueeze(2)
    return (p[:, 0] + p[:, 1]) + (p[:, 2] + p[:, 3])


def test_accepts_the_same_formula_in_torch():
    inputs, taps = flash_like("even_gates")
    assert_rejected("hc_head", "y", finished(inputs, taps["inv_rms"], taps["raw"]).bfloat16(), taps["y"], by=None)


@pytest.mark.parametrize("error", [1e-3, 5e-3])
def test_rejects_a_fast_reciprocal_root(error):
    """July's kernel: the native estimate of 1/sqrt. The reference's comparator does not see it (8.5)."""
    inputs, taps = flash_like("even_gates")
    found = finished(inputs, taps["inv_rms"] * (1 + error), taps["raw"]).bfloat16()
    assert_rejected("hc_head", "y", found, taps["y"], by="differing")


def test_rejects_ties_away_from_zero():
    """July's golden added 0x8000 to the pattern: right but for exact ties."""
    _, taps = flash_like("bf16_ties")
    away = ((taps["mixed"].view(torch.int32) + 0x8000) & -0x10000).view(torch.float32).bfloat16()
    assert_rejected("hc_head", "y", away, taps["y"], by="differing")


def test_rejects_gates_on_normalised_streams_and_misplaced_epsilons():
    inputs, taps = flash_like("even_gates")
    normalised = taps["mixed"] * taps["inv_rms"]
    assert_rejected("hc_head", "y", normalised.bfloat16(), taps["y"], by="limit")
    over_d = finished(inputs, taps["inv_rms"] / 2, taps["raw"])  # the mean over D instead of 4 D
    assert_rejected("hc_head", "y", over_d.bfloat16(), taps["y"], by="limit")
    inputs, taps = flash_like("closed_gates")
    without = (inputs["x_hc"].float() * (taps["pre"] - 1e-6).unsqueeze(2)).sum(1)
    assert_rejected("hc_head", "y", without.bfloat16(), taps["y"], by="limit")


def test_closed_gates_leave_the_epsilon():
    inputs = hc_head_inputs(2)
    found = run("hc_head", inputs, hc_head_base=torch.full((HC,), -200.0), hc_eps=2.0**-20)["y"]
    x = inputs[0]["x_hc"].float() * 2.0**-20
    assert_same_bits(found, ((x[:, 0] + x[:, 1]) + (x[:, 2] + x[:, 3])).bfloat16())


def test_gates_lie_between_the_epsilon_and_one_above():
    taps = {}
    tensors, _ = hc_head_inputs(3, t=64)
    run("hc_head", hc_head_inputs(3, t=64), hc_head_scale=tensors["hc_head_scale"] * 100, hc_eps=1e-6, taps=taps)
    assert taps["pre"].min() >= torch.tensor(1e-6)
    assert taps["pre"].max() == torch.tensor(1.0) + 1e-6


def test_without_projection_the_scale_does_not_matter():
    tensors, _ = hc_head_inputs(4)
    changes = {"hc_head_fn": torch.zeros_like(tensors["hc_head_fn"])}
    plain = run("hc_head", hc_head_inputs(4), **changes)["y"]
    assert_same_bits(run("hc_head", hc_head_inputs(4), **changes, hc_head_scale=torch.tensor([7.0]))["y"], plain)


def test_permuting_the_streams_in_pairs_changes_nothing():
    """Streams with their rows and blocks of fn and their base: 0 with 1 and 2 with 3 leave even the sums alone."""
    tensors, _ = hc_head_inputs(5)
    order = [1, 0, 3, 2]
    fn = tensors["hc_head_fn"].view(HC, HC, D)[order][:, order].reshape(HC, HC * D).contiguous()
    changes = {"x_hc": tensors["x_hc"][:, order], "hc_head_fn": fn, "hc_head_base": tensors["hc_head_base"][order]}
    assert_same_bits(run("hc_head", hc_head_inputs(5), **changes)["y"], run("hc_head", hc_head_inputs(5))["y"])


def test_ties_round_to_even_and_streams_are_summed_pairwise():
    tensors, _ = hc_head_inputs(0, t=1)
    x = torch.zeros_like(tensors["x_hc"])
    x[0, :2, 0] = torch.tensor([2.03125, 0.0078125])  # halves sum to 1.01953125, a tie
    x[0, :, 1] = torch.tensor([2.0**30, 1.0, -(2.0**30), 1.0])  # both pairs lose the half
    x[0, :, 2] = torch.tensor([2.0**30, -(2.0**30), 1.0, 1.0])
    changes = {"hc_head_fn": torch.zeros_like(tensors["hc_head_fn"]), "hc_head_base": torch.zeros(HC), "hc_eps": 0.0}
    found = run("hc_head", hc_head_inputs(0, t=1), x_hc=x, **changes)["y"]
    assert found[0, :3].tolist() == [1.015625, 0.0, 1.0]


def test_zero_tokens_and_nan_stay_in_their_row():
    tensors, _ = hc_head_inputs()
    x = tensors["x_hc"].clone()
    x[1] = 0
    x[3, 2, 1] = torch.nan
    found, plain = run("hc_head", hc_head_inputs(), x_hc=x)["y"], run("hc_head", hc_head_inputs())["y"]
    assert (found[1] == 0).all()
    assert found[3].isnan().all()
    assert_same_bits(found[[0, 2, 4]], plain[[0, 2, 4]])


def test_is_not_odd_in_the_streams():
    tensors, _ = hc_head_inputs()
    negated = run("hc_head", hc_head_inputs(), x_hc=-tensors["x_hc"])["y"]
    assert not torch.equal(negated, -run("hc_head", hc_head_inputs())["y"])


def test_the_two_epsilons_are_two_parameters():
    tensors, _ = hc_head_inputs()
    x = tensors["x_hc"] * 0.02
    plain = run("hc_head", hc_head_inputs(), x_hc=x, rms_eps=1e-6, hc_eps=1e-6)["y"]
    assert not torch.equal(run("hc_head", hc_head_inputs(), x_hc=x, rms_eps=1e-5, hc_eps=1e-6)["y"], plain)
    assert not torch.equal(run("hc_head", hc_head_inputs(), x_hc=x, rms_eps=1e-6, hc_eps=1e-2)["y"], plain)
