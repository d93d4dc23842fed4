"""Golden of hc_post: straight-line rows, FP64 bound, and the facts of contracts/hc_gate_experts.md 2."""

import numpy as np
import pytest
import torch
from golden_testing import HC, D, assert_same_bits, bf16, hc_post_inputs, run

from goldens.hc_pre import hc_pre


def straight_line(x, residual, post, comb):
    """Section 2.3 for one token, one NumPy FP32 operation per rounding."""
    y = np.empty((HC, len(x)), dtype=np.float32)
    for o in range(HC):
        for d in range(len(x)):
            a = x[d] * post[o]
            for i in range(HC):
                a = a + residual[i, d] * comb[i * HC + o]
            y[o, d] = a
    return bf16(y)


@pytest.mark.parametrize("seed", range(3))
def test_equals_straight_line_code(seed):
    tensors, _ = hc_post_inputs(seed)
    rows = zip(*(tensors[name].float().numpy() for name in ("x", "residual", "post", "comb")), strict=True)
    wanted = np.stack([straight_line(*row) for row in rows])
    assert_same_bits(run("hc_post", hc_post_inputs(seed))["y"].float(), torch.from_numpy(wanted))


def test_error_against_fp64():
    """Five products and four sums in FP32: each term is rounded at most 5 times, u = 2^-24; then BF16, 2^-8
    of y.
    """
    tensors, _ = hc_post_inputs(1, t=64)
    x, residual, post, comb = (tensors[name].double() for name in ("x", "residual", "post", "comb"))
    terms = torch.einsum("tid,tio->tiod", residual, comb.view(-1, HC, HC))
    terms = torch.cat([torch.einsum("td,to->tod", x, post).unsqueeze(1), terms], dim=1)
    wanted = terms.sum(1)
    error = (run("hc_post", hc_post_inputs(1, t=64))["y"].double() - wanted).abs()
    assert (error <= 2.0**-8 * wanted.abs() + 6 * 2.0**-24 * terms.abs().sum(1)).all()


def test_transposed_comb_is_something_else():
    tensors, _ = hc_post_inputs()
    turned = tensors["comb"].view(-1, HC, HC).mT.reshape(-1, HC * HC)
    assert not torch.equal(run("hc_post", hc_post_inputs(), comb=turned)["y"], run("hc_post", hc_post_inputs())["y"])


def test_identity_gates():
    tensors, _ = hc_post_inputs()
    zero = torch.zeros(5, HC)
    identity = torch.eye(HC).flatten().repeat(5, 1)
    kept = run("hc_post", hc_post_inputs(), post=zero, comb=identity)["y"]
    assert torch.equal(kept, tensors["residual"])
    new = run("hc_post", hc_post_inputs(), post=zero + 1, comb=torch.zeros(5, HC * HC))["y"]
    assert torch.equal(new, tensors["x"].unsqueeze(1).expand(-1, HC, -1))


def test_powers_of_two_and_new_stream_permutation_are_exact():
    tensors, _ = hc_post_inputs(3)
    plain = run("hc_post", hc_post_inputs(3))["y"]
    doubled = run("hc_post", hc_post_inputs(3), x=tensors["x"] * 4, residual=tensors["residual"] * 4)["y"]
    assert_same_bits(doubled, plain * 4)
    order = torch.tensor([2, 0, 3, 1])
    comb = tensors["comb"].view(-1, HC, HC)[:, :, order].reshape(-1, HC * HC)
    permuted = run("hc_post", hc_post_inputs(3), post=tensors["post"][:, order], comb=comb)["y"]
    assert_same_bits(permuted, plain[:, order])


def test_nan_in_a_stream_poisons_its_token_only_and_zeros_are_not_skipped():
    tensors, _ = hc_post_inputs()
    residual, comb = tensors["residual"].clone(), tensors["comb"].clone()
    residual[2, 1, 7] = torch.inf
    comb[2] = 0
    y = run("hc_post", hc_post_inputs(), residual=residual, comb=comb)["y"]
    assert y[2, :, 7].isnan().all()
    assert y.isnan().sum() == HC


def test_equal_streams_are_conserved_by_the_comb_of_hc_pre():
    """Columns of comb sum to 1 within 1.2e-6: x = 0 and four streams r give r (contract 2.8)."""
    generator = torch.Generator().manual_seed(0)
    r = torch.randn(16, 1, D, generator=generator).bfloat16().expand(-1, HC, -1).contiguous()
    base = torch.randn(24, generator=generator) * 3
    fn = torch.randn(24, HC * D, generator=generator) * 0.05
    gates = hc_pre(r, fn, torch.full((3,), 0.1), base, rms_eps=1e-6, hc_eps=1e-6, sinkhorn_iters=20)
    zero = torch.zeros(16, D, dtype=torch.bfloat16)
    y = run("hc_post", hc_post_inputs(), x=zero, residual=r, post=gates["post"], comb=gates["comb"])["y"]
    assert torch.equal(y, r)
