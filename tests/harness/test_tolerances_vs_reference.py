"""No tolerance is looser than the reference's: whatever the reference rejects, ours rejects.

Sampled at FLASH decode sizes (those the reference runs) on data of each output's magnitude: every kind of error below,
from one that nobody sees to one that everybody does.
"""

import pytest
import reference_comparators as reference
import torch

from harness.compare import PASS, Exact, Output
from harness.reference import reference_check
from harness.tolerances import load_tolerances
from specs.registry import load_op

T, D, HC, K, I = 8, 4096, 4, 6, 2048  # noqa: E741
GENERATOR_SEED = 11

REFERENCE = {
    ("rms_norm", "x_normed"): lambda a, e: reference.ratio_allclose(a, e, atol=1e-4, rtol=1 / 128, ratio=0.005),
    ("hc_pre", "x_mixed"): lambda a, e: reference.ratio_allclose(a, e, atol=1e-4, rtol=1 / 128, ratio=0.005),
    ("hc_pre", "post"): lambda a, e: reference.ratio_allclose(a, e, atol=2.5e-5, rtol=5e-3, ratio=0.005),
    ("hc_pre", "comb"): lambda a, e: reference.ratio_allclose(a, e, atol=2.5e-5, rtol=5e-3, ratio=0.005),
    ("hc_post", "y"): lambda a, e: reference.allclose(a, e, atol=1e-3, rtol=1e-3),
    ("gate", "x_norm"): lambda a, e: reference.ratio_allclose(a, e, atol=1e-3, rtol=1 / 128, ratio=0.005),
    ("gate", "x_norm_i8"): lambda a, e: reference.ratio_allclose(a, e, atol=1, rtol=0, ratio=0.001),
    ("gate", "x_norm_scale"): lambda a, e: reference.allclose(a, e, atol=1e-3, rtol=1e-3),
    ("gate", "weights"): lambda a, e: reference.allclose(a, e, atol=1e-3, rtol=1e-3),
    ("expert_shared", "sh"): lambda a, e: reference.ratio_reldiff(a, e, diff_thd=2e-3, pct_thd=0.01),
    ("expert_routed", "recv_y"): lambda a, e: reference.ratio_reldiff(a, e, diff_thd=2e-3, pct_thd=0.01),
    ("hc_head", "y"): lambda a, e: reference.ratio_allclose(a, e, atol=1e-4, rtol=1 / 128, ratio=0.005),
    ("mtp_projection", "hidden_states_out"): lambda a, e: reference.ratio_allclose(
        a, e, atol=1e-2, rtol=1e-2, ratio=0.02
    ),
    ("lm_head", "logits"): lambda a, e: reference.allclose(a, e, atol=1e-3, rtol=1e-3),
    ("qkv_proj_rope", "q"): lambda a, e: reference.ratio_allclose(a, e, atol=1e-4, rtol=1 / 128, ratio=0.005),
    ("qkv_proj_rope", "kv"): lambda a, e: reference.ratio_allclose(a, e, atol=1e-4, rtol=1 / 128, ratio=0.005),
    ("qkv_proj_rope", "qr"): lambda a, e: reference.ratio_allclose(a, e, atol=1, rtol=0, ratio=0.0),
    ("qkv_proj_rope", "qr_scale"): lambda a, e: reference.ratio_allclose(a, e, atol=2.5e-5, rtol=5e-3, ratio=0.005),
}
ATTENTION = ("decode_sparse_attn_csa", "decode_sparse_attn_hca", "decode_sparse_attn_swa")
LAYERS = {"decode_attention_swa": 3e-3, "decode_attention_hca": 3e-3, "decode_attention_csa": 4e-3}
REFERENCE |= {
    (op, "attn_out"): lambda a, e: reference.ratio_allclose(a, e, atol=1e-4, rtol=1 / 128, ratio=0.005)
    for op in ATTENTION
}
REFERENCE |= {
    (op, "kv_cache"): lambda a, e: reference.ratio_allclose(a, e, atol=1e-4, rtol=1 / 128, ratio=0.005) for op in LAYERS
}
REFERENCE |= {
    (op, "x_out"): lambda a, e, thd=thd: reference.ratio_reldiff(a, e, diff_thd=thd, pct_thd=0.008)
    for op, thd in LAYERS.items()
}
COMPRESSORS = ("decode_compressor_ratio4", "decode_compressor_ratio128", "decode_indexer_compressor")
REFERENCE |= {
    (op, "kv"): lambda a, e: reference.ratio_allclose(a, e, atol=1e-4, rtol=1 / 128, ratio=0.0)
    for op in COMPRESSORS[:2]
}
REFERENCE |= {
    (op, "compress_state"): lambda a, e: reference.ratio_allclose(a, e, atol=1e-3, rtol=1e-3, ratio=0.0)
    for op in COMPRESSORS
}
BY_STAGES = {
    ("gate", "indices"),  # topk_pair_compare judges by other values; test_compare has its vectors
    ("decode_indexer", "topk_idxs"),
    ("decode_indexer", "score"),  # by the envelope of its terms, which an error made here does not have
    ("decode_indexer_compressor", "kv"),  # by the BF16 row whose last bit may be off
}


def golden(op, output, generator):
    """Data of the shape, dtype and magnitude that the contract states for an output."""

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return {
        "x_normed": lambda: normal(T, D).bfloat16(),
        "x_mixed": lambda: (0.05 * normal(T, D)).bfloat16(),
        "post": lambda: 2 * torch.sigmoid(normal(T, HC)),
        "comb": lambda: torch.softmax(3 * normal(T, HC, HC), -1).reshape(T, HC * HC),
        "y": lambda: (0.05 * normal(T, D) if op == "hc_head" else 0.061 * normal(2, HC, D)).bfloat16(),
        "x_norm": lambda: normal(T, D).bfloat16(),
        "x_norm_i8": lambda: (33 * normal(T, D)).round().clamp(-127, 127).to(torch.int8),
        "x_norm_scale": lambda: 0.03 + 0.003 * normal(T, 1),
        "weights": lambda: torch.softmax(normal(T, K), -1) * 1.5,
        "sh": lambda: (0.54 * normal(T, D)).bfloat16(),
        "q": lambda: normal(T, 64, 512).bfloat16(),
        "kv": lambda: normal(T, 512) if op in COMPRESSORS else (0.58 * normal(T, 512)).bfloat16(),
        "compress_state": lambda: normal(T, 2048),
        "qr": lambda: (44 * normal(T, 1024)).round().clamp(-127, 127).to(torch.int8),
        "qr_scale": lambda: 0.013 + 0.001 * normal(T, 1),
        "attn_out": lambda: (0.15 * normal(T, D)).bfloat16(),
        "x_out": lambda: (0.5 * normal(T, D)).bfloat16(),
        "kv_cache": lambda: normal(T, 512).bfloat16(),
        "logits": lambda: 0.1 * normal(T, D),
        "hidden_states_out": lambda: normal(T, D).bfloat16(),
        # 32 active rows only: the reference's budget counts all 2048 rows of the buffer, so it is looser still.
        "recv_y": lambda: (1.12 * normal(4 * T, D)).bfloat16(),
    }[output]()


def shifted(expected, steps):
    """Every element a number of steps of its dtype further from zero."""
    if expected.dtype == torch.int8:
        return (expected.int() + steps).clamp(-127, 127).to(torch.int8)
    integer = torch.int16 if expected.dtype == torch.bfloat16 else torch.int32
    return (expected.view(integer) + steps.to(integer)).view(expected.dtype)


def errors(expected, generator):
    """Wrong versions of a tensor, gentle to gross."""
    for steps in (1, 2, 3, 100):
        for share in (1e-4, 1e-3, 6e-3, 0.02, 0.2, 1.0):
            hit = torch.rand(expected.shape, generator=generator) < share
            sign = torch.where(torch.rand(expected.shape, generator=generator) < 0.5, -1, 1)
            yield f"{share:g} by {steps} steps", shifted(expected, hit * sign * steps)
            yield f"{share:g} by {steps} steps up", shifted(expected, hit * steps)
    for row in (1e-3, 3e-3, 1e-2, 0.1):
        wrong = expected.float()
        wrong[1] += row * wrong[1].abs().mean() * torch.randn(wrong[1].shape, generator=generator)
        yield (
            f"row off by {row:g}",
            wrong.round().clamp(-127, 127).to(torch.int8)
            if (expected.dtype == torch.int8)
            else wrong.to(expected.dtype),
        )
    if expected.dtype != torch.int8:
        for factor in (1 + 1e-6, 1 + 1e-4, 1 + 1e-3, 1.01):
            yield f"times {factor:g}", (expected.float() * factor).to(expected.dtype)
    zeroed = expected.clone()
    zeroed[0] = 0
    yield "row zeroed", zeroed
    one = expected.clone()
    one[-1, -1] = 100
    yield "one outlier", one


@pytest.mark.parametrize(("op", "output"), sorted(REFERENCE))
def test_rejects_whatever_the_reference_rejects(op, output):
    generator = torch.Generator().manual_seed(GENERATOR_SEED)
    comparator = load_tolerances()[op][output].comparator
    expected = golden(op, output, generator)
    rows = expected.shape[0]
    codes = (22 * torch.randn(rows, I, generator=generator)).round().clamp(-127, 127).to(torch.int8)
    # The unrounded norm: at most half a step from the output, on either side.
    unrounded = expected.float() * (1 + (torch.rand(expected.shape, generator=generator) - 0.5) * 2.0**-8)
    stages = {"h_i8": codes, "codes": codes, "normed": unrounded, "scaled": unrounded}
    rejected = 0
    for name, actual in errors(expected, generator):
        if not REFERENCE[op, output](actual, expected):
            rejected += 1
            assert comparator.judge(Output(actual, expected, stages=stages)).status != PASS, name
    assert rejected >= 2, "the errors do not reach the reference's limit"
    assert comparator.judge(Output(expected, expected, stages=stages)).status == PASS


def test_every_output_is_compared_with_its_reference():
    """Those that must be bit-equal cannot be looser; the rest is compared, or judged by stages that a sample lacks."""
    found = {
        (op, entry.output)
        for op, entries in load_tolerances().items()
        for entry in entries.values()
        if entry.output in {output.name for output in load_op(op).outputs}
        and not isinstance(entry.comparator, Exact)
        and reference_check(entry.provenance["reference"]) is not None
    }
    named = {("hc_post", "y")}  # bit-equal, and compared all the same
    assert found - BY_STAGES == set(REFERENCE) - named
    known = {(op, output) for op, entries in load_tolerances().items() for output in entries}
    assert not BY_STAGES - known
