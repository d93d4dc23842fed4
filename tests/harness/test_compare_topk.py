"""The comparator `topk`: the vectors C1 to C9 of reference_harness.md 20, column S, decided by the golden's keys."""

import pytest
import torch

from harness.compare import FAIL, PASS, Output, TopK

KEYS = torch.tensor([[5.0, 5.0, 3.0, 2.0, 1.0]])
TOPK = TopK(keys="keys", band=0.1)


def judge_ids(actual, expected, keys=KEYS, comparator=TOPK):
    tensors = [torch.tensor([ids], dtype=torch.int32) for ids in (actual, expected)]
    return comparator.judge(Output(*tensors, stages={"keys": keys}))


@pytest.mark.parametrize(
    ("ids", "status"),
    [
        ([0, 1, 2], PASS),
        ([1, 0, 2], PASS),  # C1: a tie
        ([0, 2, 1], FAIL),  # out of order
        ([0, 1, 3], FAIL),  # C4: a worse candidate
        ([0, 0, 2], FAIL),  # repeated, although its key is as good
        ([1, 1, 2], FAIL),
        ([-9, -9, -9], FAIL),  # C5
        ([0, 1, 5], FAIL),  # out of range
    ],
)
def test_topk_vectors(ids, status):
    assert judge_ids(ids, [0, 1, 2]).status == status


@pytest.mark.parametrize(("ids", "status"), [([0], PASS), ([1], PASS), ([4], FAIL)])
def test_topk_of_one(ids, status):
    """C7: k = 1 is decided by the reference scores."""
    assert judge_ids(ids, [0]).status == status


def test_topk_band_accepts_at_the_limit_and_rejects_past_it():
    keys = torch.tensor([[1.0, 0.75, 0.5]])
    at = TopK(keys="keys", band=0.25)
    assert judge_ids([1, 0], [0, 1], keys, at).status == PASS
    assert judge_ids([1, 0], [0, 1], keys, TopK(keys="keys", band=0.2499)).status == FAIL


def test_topk_rows_that_are_no_selection_must_be_equal():
    """A hash layer's table order and an inactive token's zeros leave no freedom, whatever the keys."""
    tied = torch.zeros(1, 5)
    assert judge_ids([4, 2], [4, 2], KEYS).status == PASS
    assert judge_ids([2, 4], [4, 2], KEYS).status == FAIL
    assert judge_ids([0, 0], [0, 0], tied).status == PASS
    assert judge_ids([0, 1], [0, 0], tied).status == FAIL


def test_topk_padding_must_be_equal():
    assert judge_ids([1, 0, -1], [0, 1, -1]).status == PASS
    assert judge_ids([0, 1, 2], [0, 1, -1]).status == FAIL
    assert judge_ids([0, 1, -1], [0, 1, 2]).status == FAIL


def test_the_label_spells_the_rule():
    assert TOPK.label == "top-k by keys, band 0.1; other rows equal"
