"""Golden of mtp_projection: straight-line tokens, FP64 bound, rejected forms, facts of contracts/dense.md 9."""

import numpy as np
import pytest
import torch
from golden_testing import (
    F32,
    RMS_EPS,
    D,
    assert_rejected,
    assert_same_bits,
    bf16,
    exact_sum,
    mtp_projection_inputs,
    q8,
    run,
)  # fmt: skip

from goldens.mtp_projection import mtp_projection
from specs.registry import load_op

U = 2.0**-24
OP, OUT = "mtp_projection", "hidden_states_out"


def branch(x, norm_w, smooth, w, w_scale, bf16_norm):
    """Steps 1 to 7 of 9.3 for one row in NumPy FP32 scalars."""
    total = F32(0)
    for c in range(0, len(x), 128):
        total = total + exact_sum([v * v for v in x[c : c + 128]])
    inv = F32(1) / np.sqrt(total * F32(1 / len(x)) + F32(RMS_EPS))
    n = [((v * inv) * g) * s for v, g, s in zip(x, norm_w, smooth, strict=True)]
    codes, scale = q8(bf16(n) if bf16_norm else n)
    acc = [sum(int(a) * b for a, b in zip(row, codes, strict=True)) for row in w]
    return [(F32(a) * scale) * s for a, s in zip(acc, w_scale, strict=True)]


@pytest.mark.parametrize("bf16_norm", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_equals_straight_line_code(seed, bf16_norm):
    tensors, _ = mtp_projection_inputs(seed, t=2)
    found = run(OP, mtp_projection_inputs(seed, t=2), bf16_norm=bf16_norm)[OUT]
    part = {name: value.float().numpy() for name, value in tensors.items()}
    for b in range(2):
        for s in range(2):
            e = branch(
                part["hidden_states"][b, s], part["enorm_w"], part["e_proj_smooth"],
                tensors["e_proj_w"].tolist(), part["e_proj_w_scale"], bf16_norm,
            )  # fmt: skip
            h = branch(
                part["prev_hidden_states"][b, s], part["hnorm_w"], part["h_proj_smooth"],
                tensors["h_proj_w"].tolist(), part["h_proj_w_scale"], bf16_norm,
            )  # fmt: skip
            wanted = bf16([x + y for x, y in zip(e, h, strict=True)])
            assert_same_bits(found[b, s].float(), torch.from_numpy(wanted))


def test_error_against_fp64():
    """With u = 2^-24. 1/rms: 4 u under the root, so 2 u, and 2 u for root and quotient; three products: n is off by
    7 u. A code stands for n up to half a step of the scale dq, and 3 u more of up to 127 steps for v * q, q and dq.
    A branch is off by that times sum|w|, plus 3 u of itself (two scales, FP32 of the sum); the total by u more, then
    2^-8 for BF16. Of the two, half a step is by far the largest; it is uniform, so the error of an output has
    the deviation dq / sqrt(12) * |w|, which tells a quantiser that loses more than it must.
    """
    inputs = mtp_projection_inputs(1, t=100)
    taps = {}
    found = run(OP, inputs, taps=taps)[OUT].double()
    t = {name: value.double() for name, value in inputs[0].items()}
    wanted, bound, variance = 0.0, 0.0, 0.0
    for b, x in (("e", t["hidden_states"]), ("h", t["prev_hidden_states"])):
        n = x / (x.square().mean(2, keepdim=True) + RMS_EPS).sqrt() * t[f"{b}norm_w"] * t[f"{b}_proj_smooth"]
        w = t[f"{b}_proj_w"] * t[f"{b}_proj_w_scale"].unsqueeze(1)
        step = n.abs().amax(2, keepdim=True) / 127
        wanted = wanted + n @ w.T
        bound = bound + (step * (0.5 + 3 * 127 * U) + 7 * U * n.abs()) @ w.abs().T + 4 * U * (n.abs() @ w.abs().T)
        variance = variance + step**2 / 12 * w.square().sum(1)
    error = (found - wanted).abs()
    assert (error <= bound + 2.0**-8 * (wanted.abs() + bound)).all()
    rounding = (2.0**-9 * wanted) ** 2 / 3  # BF16: half a step at most, uniform between binades
    assert 0.9 < float((error**2).mean() / (variance + 2 * rounding).mean()) < 1.1


def tiny():
    op = load_op(OP, "tiny", "prefill")
    inputs, taps = op.inputs(), {}
    op.golden(inputs, taps)
    return inputs, taps


def test_rejects_a_bf16_rounding_before_the_codes():
    """July's form (9.3, step 4): 4 % of the codes and 73 % of the outputs change."""
    inputs, taps = tiny()
    july = mtp_projection(*inputs.values(), rms_eps=1e-6, bf16_norm=True, taps=(other := {}))[OUT]
    assert 0.02 < float((other["codes"] != taps["codes"]).float().mean()) < 0.06
    assert float((july != taps[OUT]).float().mean()) > 0.5
    assert_rejected(OP, OUT, july, taps[OUT], by="limit", stages=taps)


@pytest.mark.parametrize("error", [2e-4, 1e-3, 5e-3])
def test_rejects_a_fast_reciprocal_root(error):
    """Codes do not depend on 1/rms, which is in the row's largest value too: it all goes into the scale."""
    _, taps = tiny()
    found = (taps["e_branch"] * (1 + error) + taps["h_branch"] * (1 + error)).bfloat16()
    assert_rejected(OP, OUT, found, taps[OUT], by="differing", stages=taps)


@pytest.mark.parametrize("mode", [torch.trunc, torch.floor])
def test_rejects_codes_that_are_cut_off(mode):
    inputs, taps = tiny()
    total = 0
    for b in "eh":
        codes = mode(taps[f"{b}_norm"] / taps[f"{b}_scale"])
        weight = inputs[f"{b}_proj_w"].float()
        total = total + codes @ weight.T * taps[f"{b}_scale"] * inputs[f"{b}_proj_w_scale"]
    assert_rejected(OP, OUT, total.bfloat16(), taps[OUT], by="limit", stages=taps)


def test_accepts_one_flipped_code_in_a_row():
    inputs, taps = tiny()
    codes = taps["e_i8"].clone()
    codes[0, 7, 100] += 1
    acc = codes.double() @ inputs["e_proj_w"].double().T
    e = acc.float() * taps["e_scale"] * inputs["e_proj_w_scale"]
    found = (e + taps["h_branch"]).bfloat16()
    assert (found != taps[OUT])[0, 7].float().mean() > 0.05
    assert_rejected(OP, OUT, found, taps[OUT], by=None, stages=taps)


def test_exchanged_branches_give_the_same():
    tensors, parameters = mtp_projection_inputs(2)
    names = ("hidden_states", "enorm_w", "e_proj_w", "e_proj_w_scale", "e_proj_smooth")
    others = ("prev_hidden_states", "hnorm_w", "h_proj_w", "h_proj_w_scale", "h_proj_smooth")
    pairs = dict(zip(names + others, others + names, strict=True))
    turned = {name: tensors[pairs[name]] for name in tensors}
    assert_same_bits(run(OP, (turned, parameters))[OUT], run(OP, (tensors, parameters))[OUT])


def test_negation_is_exact_and_opposite_branches_cancel():
    tensors, _ = mtp_projection_inputs(3)
    inputs = mtp_projection_inputs(3)
    negated = {name: -tensors[name] for name in ("hidden_states", "prev_hidden_states")}
    assert_same_bits(run(OP, inputs, **negated)[OUT], -run(OP, inputs)[OUT])
    same = {"h" + name[1:]: tensors[name] for name in ("enorm_w", "e_proj_w", "e_proj_w_scale", "e_proj_smooth")}
    assert not run(OP, inputs, prev_hidden_states=-tensors["hidden_states"], **same)[OUT].any()


def test_powers_of_two_move_between_norm_and_smooth_and_to_the_scale():
    tensors, _ = mtp_projection_inputs(4)
    inputs, taps, other = mtp_projection_inputs(4), {}, {}
    plain = run(OP, inputs, taps=taps)[OUT]
    moved = {"enorm_w": tensors["enorm_w"] * 4, "e_proj_smooth": tensors["e_proj_smooth"] / 4}
    assert_same_bits(run(OP, inputs, **moved)[OUT], plain)
    run(OP, inputs, e_proj_smooth=tensors["e_proj_smooth"] * 8, taps=other)
    assert torch.equal(other["e_i8"], taps["e_i8"])
    assert_same_bits(other["e_branch"], taps["e_branch"] * 8)
    assert_same_bits(other["h_branch"], taps["h_branch"])


def test_no_previous_token_is_a_scale_of_zero():
    tensors, _ = mtp_projection_inputs(5)
    inputs = mtp_projection_inputs(5)
    zero = run(OP, inputs, prev_hidden_states=torch.zeros_like(tensors["prev_hidden_states"]))[OUT]
    assert torch.equal(zero, run(OP, inputs, h_proj_w_scale=torch.zeros(D))[OUT])


def test_channels_move_with_their_parameters():
    tensors, _ = mtp_projection_inputs(6)
    inputs, order = mtp_projection_inputs(6), torch.randperm(D, generator=torch.Generator().manual_seed(0))
    names = ("e_proj_w", "e_proj_w_scale", "h_proj_w", "h_proj_w_scale")
    out = run(OP, inputs, **{name: tensors[name][order] for name in names})[OUT]
    assert_same_bits(out, run(OP, inputs)[OUT][..., order].contiguous())
    taps, plain = {}, {}
    run(OP, inputs, taps=plain)
    changes = {name: tensors[name][..., order] for name in ("hidden_states", "enorm_w", "e_proj_smooth", "e_proj_w")}
    run(OP, inputs, **changes, taps=taps)  # D is one chunk here, and its sum has no order
    assert torch.equal(taps["e_i8"], plain["e_i8"][..., order])
    assert torch.equal(taps["e_acc"], plain["e_acc"])


def test_nan_stays_in_its_token():
    tensors, _ = mtp_projection_inputs(7)
    x = tensors["prev_hidden_states"].clone()
    x[2, 1, 5] = torch.nan
    found, plain = run(OP, mtp_projection_inputs(7), prev_hidden_states=x)[OUT], run(OP, mtp_projection_inputs(7))[OUT]
    assert found[2, 1].isnan().all()
    found[2, 1] = plain[2, 1]
    assert_same_bits(found, plain)
