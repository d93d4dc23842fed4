"""Golden of decode_attention_csa: the step against dense attention over history and selected groups, the reference's
faults as variants (decode_attention.md 7)."""

import pytest
import torch
from attention_layer_testing import assert_near_fp64, fp64_layer, golden, one_at_a_time, slot_row
from attention_testing import relative_error
from golden_testing import assert_same_bits

from specs.registry import load_op

OP = "decode_attention_csa"
CASES = [case.name for case in load_op(OP).cases]
REFERENCE = {"visible_by": "request", "query_rope": "request", "inner_rope": "query"}


def drawn(case="default", deployment="decode", seed=0):
    op = load_op(OP, deployment=deployment)
    return op, op.inputs(case, seed)


def selected(op, listed, token):
    """Slots that the list of a token names."""
    first = 128 + op.deployment.seq
    return sorted(int(raw) - first for raw in listed[token] if raw >= first)


@pytest.mark.parametrize("deployment", ["decode", "decode_mtp"])
@pytest.mark.parametrize("case", ["default", "first_tokens", "topk_edge", "uncommitted"])
def test_is_dense_attention_over_history_and_selected_groups(case, deployment):
    """Where no more groups are visible than are selected, those are all: no weight of the indexer plays a part."""
    op, inputs = drawn(case, deployment)
    taps = {}
    found = op.golden(inputs, taps)
    seq = op.deployment.seq
    for token in range(len(inputs["x_hc"])):
        slots = selected(op, taps["cmp_sparse_indices"], token)
        visible = min(int(inputs["position_ids"][token]) + 1, int(inputs["kv_seq_lens"][token // seq])) // 4
        assert len(slots) == min(visible, op.config.index_topk)
        if visible <= op.config.index_topk:
            assert slots == list(range(visible))
        assert len(set(slots)) == len(slots)
        assert all(0 <= slot < visible for slot in slots)
        rows = [slot_row(inputs, found["cmp_kv"], token, slot) for slot in slots]
        assert_near_fp64(found, taps, token, fp64_layer(op, inputs, token, rows), attn=0.06)


@pytest.mark.parametrize("case", ["default", "window_edges", "topk_edge"])
def test_two_tokens_at_once_are_two_steps(case):
    """All pools, states, scores and selections; attention of the second token up to the block of a row."""
    op, inputs = drawn(case, "decode_mtp")
    taps, steps = {}, ({}, {})
    both = op.golden(inputs, taps)
    single = one_at_a_time(op, inputs, steps)
    for pool in ("kv_cache", "compress_state", "inner_compress_state", "cmp_kv", "idx_kv_cache"):
        assert_same_bits(single[pool], both[pool])
    for step in (0, 1):
        assert_same_bits(steps[step]["score"][:, 0], taps["score"][:, step])
        alone, together = (s["topk_idxs"] for s in (steps[step], taps))
        assert torch.equal(
            torch.where(alone < 0, -1, alone - 129)[:, 0], torch.where(together < 0, -1, together - 130)[:, step]
        )
    assert_same_bits(steps[0]["attn_out"], taps["attn_out"][0::2])
    assert relative_error(steps[1]["attn_out"], taps["attn_out"][1::2].double()) < 0.02


def test_the_reference_is_not_two_steps():
    """Its second query is turned at the first one's position, and its first token ranks what the second one closes."""
    op, inputs = drawn("topk_edge", "decode_mtp")
    both, steps = {}, ({}, {})
    golden(op, inputs, taps=both, **REFERENCE)
    one_at_a_time(op, inputs, steps, **REFERENCE)
    assert not torch.equal(steps[1]["score"][:, 0], both["score"][:, 1])
    closing = (inputs["position_ids"][1::2] + 1) % 4 == 0
    assert bool(closing.any())
    ranked = (both["topk_idxs"][:, 0] >= 0).sum(dim=1)
    allowed = (steps[0]["topk_idxs"][:, 0] >= 0).sum(dim=1)
    listed = (both["cmp_sparse_indices"][0::2] >= 130).sum(dim=1)
    assert bool((ranked[closing] >= allowed[closing]).all())
    assert bool((ranked > listed)[closing].any()), "no future slot was ranked and dropped again: a hole (7.4)"


@pytest.mark.parametrize(
    ("variant", "stage", "deployments"),
    [
        ({"visible_by": "request"}, "topk_idxs", ("decode_mtp",)),
        ({"query_rope": "request"}, "q_codes", ("decode_mtp",)),
        ({"inner_rope": "query"}, "idx_kv_cache", ("decode", "decode_mtp")),
    ],
)
def test_each_fault_of_the_reference_shows(variant, stage, deployments):
    """Two of them need two tokens per request; the rotation of decode's own keys is wrong in every step (7.4)."""
    for deployment in ("decode", "decode_mtp"):
        op, inputs = drawn(deployment=deployment)
        right, wrong = {}, {}
        golden(op, inputs, taps=right)
        golden(op, inputs, taps=wrong, **variant)
        assert torch.equal(right[stage], wrong[stage]) == (deployment not in deployments)


def test_the_selection_leaves_holes_and_moves_nothing_up():
    op, inputs = drawn(deployment="decode_mtp")
    taps, other = {}, {}
    op.golden(inputs, taps)
    topk = taps["topk_idxs"].clone()
    token = int((topk[:, 0, 2] >= 0).nonzero()[0])
    bound = 130 + (int(inputs["position_ids"][2 * token]) + 1) // 4
    topk[token, 0, 1] = bound  # a slot behind the token
    op.golden(inputs, other, {"topk_idxs": topk})
    listed, before = other["cmp_sparse_indices"][2 * token], taps["cmp_sparse_indices"][2 * token]
    assert int(listed[129]) == -1
    assert torch.equal(listed[130:], before[130:])
    assert torch.equal(listed[:129], before[:129])


@pytest.mark.parametrize("deployment", ["decode", "decode_mtp"])
@pytest.mark.parametrize("case", ["default", "first_tokens", "last_positions"])
def test_mask_and_list_agree(case, deployment):
    op, inputs = drawn(case, deployment)
    taps = {}
    op.golden(inputs, taps)
    listed = taps["cmp_sparse_indices"].view(len(inputs["x_hc"]), -1, 128) >= 0
    assert torch.equal(taps["valid_block_mask"][:, 1:] > 0, listed[:, 1:].any(dim=2))
    assert bool((taps["valid_block_mask"][:, 0] == 1).all())


@pytest.mark.parametrize("deployment", ["decode", "decode_mtp"])
@pytest.mark.parametrize("case", CASES)
def test_taps_are_the_stages_and_only_mapped_rows_change(case, deployment):
    op, inputs = drawn(case, deployment)
    before = {name: value.clone() for name, value in inputs.items()}
    taps = {}
    found = op.golden(inputs, taps)
    assert tuple(taps) == op.stages
    for pool, mapped in op.mapped(inputs).items():
        assert_same_bits(found[pool][~mapped], inputs[pool][~mapped])
    for name, value in inputs.items():
        assert_same_bits(value, before[name])
