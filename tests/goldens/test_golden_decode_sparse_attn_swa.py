"""Golden of decode_sparse_attn_swa: straight-line tokens, an FP64 oracle, its bias (decode_attention.md 4)."""

import pytest
import torch
from attention_testing import biased_rows, oracle, relative_error, straight_line
from golden_testing import assert_same_bits

from goldens.errors import GoldenInputError
from specs.registry import load_op

OP = "decode_sparse_attn_swa"
CASES = [case.name for case in load_op(OP).cases]


def drawn(case="default", deployment="decode", seed=0):
    op = load_op(OP, deployment=deployment)
    return op, op.inputs(case, seed)


@pytest.mark.parametrize(
    ("case", "deployment", "tokens"),
    [("default", "decode", (2, 3)), ("counts", "decode_mtp", (3, 4)), ("window_wrap", "decode_mtp", (1,))],
)
def test_equals_straight_line_code(case, deployment, tokens):
    op, inputs = drawn(case, deployment)
    taps = {}
    found = op.golden(inputs, taps)["attn_out"]
    groups = len(inputs["wo_a"])
    for token in tokens:
        packed, wanted = straight_line(inputs, token, biased_rows(inputs, token), op.config.softmax_scale)
        assert_same_bits(taps["o_packed"].view(groups, len(found), -1)[:, token].float(), torch.from_numpy(packed))
        assert_same_bits(found[token].float(), torch.from_numpy(wanted))


@pytest.mark.parametrize("deployment", ["decode", "decode_mtp"])
@pytest.mark.parametrize("case", [case for case in CASES if case != "causal_regression"])
def test_error_against_fp64(case, deployment):
    """The bounds of decode_sparse_attn_csa."""
    op, inputs = drawn(case, deployment, seed=1)
    taps = {}
    found = op.golden(inputs, taps)["attn_out"]
    for token in range(len(found)):
        y, wanted = oracle(inputs, token, biased_rows(inputs, token), op.config.softmax_scale)
        if not wanted.any():
            assert not found[token].any()
            continue
        assert relative_error(taps["attended"][token], y) < 2.0**-9
        assert relative_error(found[token], wanted) < 0.016


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (3, -1e4, r"win_bias\[1, 3\] is -10000, expected 0 or -1e20"),
        (130, float("nan"), r"win_bias\[1, 130\] is nan, expected 0 or -1e20"),
        (136, 0.0, r"win_bias\[1, 136\] is 0, expected -1e20: there is no such overlay row"),
    ],
)
def test_refuses_a_bias_that_is_no_mask(column, value, message):
    op, inputs = drawn()
    bias = inputs["win_bias"].clone()
    bias[1, column] = value
    with pytest.raises(GoldenInputError, match=f"^{OP}: {message}"):
        op.golden(inputs | {"win_bias": bias})


def test_rows_of_other_requests_have_no_weight():
    """The overlay of all requests is one block: finite changes of what a token does not see change nothing (4.8)."""
    op, inputs = drawn(deployment="decode_mtp")
    wanted = op.golden(inputs)["attn_out"]
    overlay = inputs["mtp_kv_overlay"].clone()
    overlay[2:] *= -3
    found = op.golden(inputs | {"mtp_kv_overlay": overlay})["attn_out"]
    assert_same_bits(found[:2], wanted[:2])
    assert not torch.equal(found[2:], wanted[2:])


def test_what_is_unused_is_not_read():
    op, inputs = drawn()
    assert bool(inputs["cmp_kv"].isnan().all())
    assert int(inputs["cmp_block_table"].abs().max()) > inputs["cmp_kv"].shape[0]
    assert bool(op.golden(inputs)["attn_out"].isfinite().all())


def test_taps_are_the_stages_and_inputs_are_left_alone():
    op, inputs = drawn(deployment="decode_mtp")
    before = {name: value.clone() for name, value in inputs.items()}
    taps = {}
    found = op.golden(inputs, taps)
    assert tuple(taps) == op.stages
    assert_same_bits(taps["attn_out"], found["attn_out"])
    for name, value in inputs.items():
        assert_same_bits(value, before[name])
