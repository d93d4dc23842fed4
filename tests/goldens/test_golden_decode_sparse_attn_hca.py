"""Golden of decode_sparse_attn_hca: straight-line tokens, an FP64 oracle, the form of its list (decode_attention.md
3)."""

import pytest
import torch
from attention_testing import listed_rows, oracle, relative_error, straight_line
from golden_testing import assert_same_bits

from goldens.decode_sparse_attn_hca import decode_sparse_attn_hca
from goldens.errors import GoldenInputError
from specs.registry import load_op

OP = "decode_sparse_attn_hca"
CASES = [case.name for case in load_op(OP).cases]


def drawn(case="default", deployment="decode", seed=0):
    op = load_op(OP, deployment=deployment)
    return op, op.inputs(case, seed)


@pytest.mark.parametrize(
    ("case", "deployment", "tokens"),
    [("default", "decode", (3, 7)), ("counts", "decode_mtp", (3, 4)), ("window_wrap", "decode_mtp", (1,))],
)
def test_equals_straight_line_code(case, deployment, tokens):
    op, inputs = drawn(case, deployment)
    taps = {}
    found = op.golden(inputs, taps)["attn_out"]
    groups = len(inputs["wo_a"])
    for token in tokens:
        rows = listed_rows(inputs, token)
        packed, wanted = straight_line(inputs, token, rows, op.config.softmax_scale)
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
        y, wanted = oracle(inputs, token, listed_rows(inputs, token), op.config.softmax_scale)
        if not wanted.any():
            assert not found[token].any()
            continue
        assert relative_error(taps["attended"][token], y) < 2.0**-9
        assert relative_error(found[token], wanted) < 0.016


@pytest.mark.parametrize(
    ("column", "raw", "message"),
    [
        (5, 6, r"cmp_sparse_indices\[2, 5\] is 6, expected 5 or -1"),
        (0, 128, r"cmp_sparse_indices\[2, 0\] is 128, expected 0 or -1"),
        (137, 129, r"cmp_sparse_indices\[2, 137\] is 129, expected -1"),
        (255, 0, r"cmp_sparse_indices\[2, 255\] is 0, expected -1"),
        (130, 129 + 256, r"cmp_sparse_indices\[2, 130\] is 385, expected below 385"),
    ],
)
def test_refuses_a_list_out_of_form(column, raw, message):
    """Block 0 is read in place, and columns beyond the slots are not gathered at all (3.4)."""
    op, inputs = drawn()
    listed = inputs["cmp_sparse_indices"].clone()
    listed[2, column] = raw
    with pytest.raises(GoldenInputError, match=f"^{OP}: {message}"):
        op.golden(inputs | {"cmp_sparse_indices": listed})


def test_an_all_invalid_block_is_an_exact_no_op():
    """The third block of FLASH is empty but at the very last position (3.4)."""
    op = load_op(OP, max_position_embeddings=16384, index_topk=512)
    inputs = op.inputs("window_wrap")
    assert inputs["cmp_sparse_indices"].shape[1] == 3 * 128
    assert int((inputs["cmp_sparse_indices"][:7] >= 0)[:, 256:].sum()) == 0
    last = op.inputs("long")
    assert int(last["cmp_sparse_indices"][0, 256]) == 129 + 127  # p = 16383: slot 127
    narrow = inputs | {"cmp_sparse_indices": inputs["cmp_sparse_indices"][:, :256].contiguous()}
    found = decode_sparse_attn_hca(**narrow, **{**op.parameters, "slots": 127})["attn_out"]
    assert_same_bits(found, op.golden(inputs)["attn_out"])


@pytest.mark.parametrize("deployment", ["decode", "decode_mtp"])
def test_without_slots_it_is_the_form_without_compression(deployment):
    """Bit-identical for S = 1; for S = 2 the overlay lies in other columns of block 1: up to reassociation (3.8)."""
    swa = load_op("decode_sparse_attn_swa", deployment=deployment)
    plain = swa.inputs("cold")
    op = load_op(OP, deployment=deployment)
    shared = {name: plain[name] for name in op.inputs("cold") if name in plain and not name.startswith("cmp_")}
    inputs = op.inputs("cold") | shared
    found, wanted = op.golden(inputs)["attn_out"], swa.golden(plain)["attn_out"]
    if deployment == "decode":
        assert_same_bits(found, wanted)
    else:
        assert relative_error(found, wanted.double()) < 1e-3


def test_differs_from_the_gathered_form_by_the_block_of_the_overlay():
    """0.35 to 0.47 % relative L2 at FLASH (3.8): probabilities are rounded relative to another maximum."""
    op, inputs = drawn("window_wrap")
    csa = load_op("decode_sparse_attn_csa")
    gathered = csa.inputs("window_wrap")
    listed = torch.where(gathered["cmp_sparse_indices"] > 128, -1, gathered["cmp_sparse_indices"])
    plain = inputs | {
        "cmp_sparse_indices": torch.where(inputs["cmp_sparse_indices"] > 128, -1, inputs["cmp_sparse_indices"])
    }
    same = {name: plain[name] for name in gathered if name in plain and name != "cmp_sparse_indices"}
    found = csa.golden(gathered | same | {"cmp_sparse_indices": listed})["attn_out"]
    wanted = op.golden(plain)["attn_out"]
    assert 1e-4 < relative_error(found, wanted.double()) < 0.02


def test_taps_are_the_stages_and_inputs_are_left_alone():
    op, inputs = drawn(deployment="decode_mtp")
    before = {name: value.clone() for name, value in inputs.items()}
    taps = {}
    found = op.golden(inputs, taps)
    assert tuple(taps) == op.stages
    assert_same_bits(taps["attn_out"], found["attn_out"])
    for name, value in inputs.items():
        assert_same_bits(value, before[name])


def test_nan_where_nothing_is_named_changes_nothing():
    op, inputs = drawn("unnamed_rows")
    assert bool(inputs["cmp_kv"].isnan().any())
    assert bool(op.golden(inputs)["attn_out"].isfinite().all())
