"""Golden of decode_sparse_attn_csa: straight-line tokens, an FP64 oracle, index contracts (decode_attention.md 2)."""

import pytest
import torch
from attention_testing import listed_rows, oracle, relative_error, straight_line
from golden_testing import assert_same_bits

from goldens.decode_sparse_attn_csa import decode_sparse_attn_csa
from goldens.errors import GoldenInputError
from specs.registry import load_op

OP = "decode_sparse_attn_csa"
CASES = [case.name for case in load_op(OP).cases]


def drawn(case="default", deployment="decode", seed=0):
    op = load_op(OP, deployment=deployment)
    return op, op.inputs(case, seed)


@pytest.mark.parametrize(
    ("case", "deployment", "tokens"),
    [("default", "decode", (2, 6)), ("counts", "decode_mtp", (0, 4, 7)), ("window_wrap", "decode_mtp", (1,))],
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


@pytest.mark.parametrize(
    ("case", "deployment"),
    [*((case, "decode") for case in CASES if case != "causal_regression"), ("default", "decode_mtp")],
)
def test_error_against_fp64(case, deployment):
    """BF16 probabilities are off by 2^-9 each, at random: below 2^-9 of y in L2. The INT8 codes of o_r add 0.8 % of
    attn_out (contract C.1), a rounding to BF16 2^-9 at most."""
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


def test_a_token_that_attends_nothing_is_zero():
    op, inputs = drawn("counts")
    assert int((inputs["cmp_sparse_indices"][4] >= 0).sum()) == 0
    assert not op.golden(inputs)["attn_out"][4].any()


def test_one_visible_row_is_divided_by_its_sink():
    """P = 1 exactly: y = kv / (1 + exp(sink - s)) (2.8, 8)."""
    op, inputs = drawn("counts")
    taps = {}
    op.golden(inputs, taps)
    row = torch.from_numpy(listed_rows(inputs, 0)[0])
    score = (inputs["q"][0].double() @ row.double()).float() * op.config.softmax_scale
    wanted = row / (1.0 + (inputs["attn_sink"] - score).double().exp().float()).unsqueeze(1)
    assert_same_bits(taps["attended"][0], wanted)


def test_the_block_partition_is_by_column():
    """A row moved to another block is rounded relative to another maximum (CB-2): seen in the output, but small."""
    op, inputs = drawn("mixed_topk")
    moved = {**inputs, "cmp_sparse_indices": inputs["cmp_sparse_indices"].clone()}
    listed = moved["cmp_sparse_indices"]
    listed[:, [3, 130]] = listed[:, [130, 3]]
    found, wanted = op.golden(moved)["attn_out"], op.golden(inputs)["attn_out"]
    assert not torch.equal(found, wanted)
    assert relative_error(found, wanted.double()) < 0.01


def test_a_masked_block_is_dropped_and_strict_mode_refuses_it():
    op, inputs = drawn()
    token = int((inputs["valid_block_mask"][:, 1] > 0).nonzero()[0])
    mask = inputs["valid_block_mask"].clone()
    mask[token, 1] = 0
    unlisted = inputs["cmp_sparse_indices"].clone()
    unlisted[token, 128:] = -1
    dropped = op.golden(inputs | {"valid_block_mask": mask})["attn_out"]
    assert_same_bits(dropped, op.golden(inputs | {"cmp_sparse_indices": unlisted})["attn_out"])
    assert not torch.equal(dropped[token], op.golden(inputs)["attn_out"][token])
    with pytest.raises(GoldenInputError, match=rf"valid_block_mask\[{token}, 1\] is 0, expected 1: cmp_sparse"):
        decode_sparse_attn_csa(**(inputs | {"valid_block_mask": mask}), **op.parameters, strict_mask=True)
    decode_sparse_attn_csa(**inputs, **op.parameters, strict_mask=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cmp_sparse_indices": 129 + 256}, r"cmp_sparse_indices\[0, 200\] is 385, expected below 385: slots of 2"),
        ({"cmp_sparse_indices": 129 + 200, "cmp_block_table": -1}, r"cmp_block_table\[0, 1\] is -1, expected 0\.\.15"),
        ({"cmp_sparse_indices": 129 + 200, "cmp_block_table": 16}, r"cmp_block_table\[0, 1\] is 16, expected 0\.\.15"),
        ({"ori_block_table": -1}, r"ori_block_table\[0, 0\] is -1, expected 0\.\.7"),
    ],
)
def test_refuses_rows_that_do_not_exist(change, message):
    """A -1 would read the last page in Python and memory before the pool on a device (CB-1)."""
    op, inputs = drawn()
    places = {"cmp_sparse_indices": (0, 200), "cmp_block_table": (0, 1), "ori_block_table": (0, 0)}
    changed = {name: value.clone() if hasattr(value, "clone") else value for name, value in inputs.items()}
    changed["valid_block_mask"][:] = 1
    for name, value in change.items():
        changed[name][places[name]] = value
    with pytest.raises(GoldenInputError, match=f"^{OP}: {message}"):
        op.golden(changed)


def test_nan_where_nothing_is_named_changes_nothing():
    op, inputs = drawn("unnamed_rows")
    assert bool(inputs["cmp_kv"].isnan().any())
    assert bool(op.golden(inputs)["attn_out"].isfinite().all())
    clean = inputs | {"cmp_kv": inputs["cmp_kv"].nan_to_num(7.0)}
    assert_same_bits(op.golden(inputs)["attn_out"], op.golden(clean)["attn_out"])


@pytest.mark.parametrize("stage", ["o_packed", "o_r", "o_codes", "o_scale"])
def test_goes_on_from_a_stage_of_a_device(stage):
    op, inputs = drawn()
    taps, again = {}, {}
    op.golden(inputs, taps)
    given = {stage: taps[stage].flip(0).contiguous()}
    op.golden(inputs, again, given)
    assert_same_bits(again[stage], given[stage])
    assert not torch.equal(again["attn_out"], taps["attn_out"])
    assert_same_bits(op.golden(inputs, None, {stage: taps[stage]})["attn_out"], taps["attn_out"])


def test_taps_are_the_stages_and_inputs_are_left_alone():
    op, inputs = drawn(deployment="decode_mtp")
    before = {name: value.clone() for name, value in inputs.items()}
    taps = {}
    found = op.golden(inputs, taps)
    assert tuple(taps) == op.stages
    assert_same_bits(taps["attn_out"], found["attn_out"])
    for name, value in inputs.items():
        assert_same_bits(value, before[name])


@pytest.mark.parametrize("name", [spec.name for spec in load_op(OP).inputs_spec])
def test_refuses_wrong_dtypes_and_shapes(name):
    op, inputs = drawn()
    for wrong, what in ((inputs[name].double(), "dtype"), (inputs[name].unsqueeze(0), "shape")):
        with pytest.raises(GoldenInputError, match=f"^{OP}: {name} has {what} "):
            decode_sparse_attn_csa(**(inputs | {name: wrong}), **op.parameters)
