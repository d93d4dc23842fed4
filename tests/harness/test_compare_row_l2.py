"""The comparator `row_l2`: a bound on the relative error of each token."""

import torch
from comparing import judge

from harness.compare import FAIL, PASS, RowL2


def test_row_l2_judges_every_token_by_itself():
    comparator = RowL2(rel_l2=0.01, row_axes=1)
    expected = torch.ones(3, 2, 50)
    actual = expected.clone()
    actual[1] += 0.0099
    assert judge(comparator, actual, expected).status == PASS
    actual[1, 0, 0] = 1.5
    judged = judge(comparator, actual, expected)
    assert judged.status == FAIL
    assert judged.worst is not None
    assert judged.worst.index[0] == 1
    zeros = torch.zeros(2, 4)
    assert judge(comparator, zeros, zeros).status == PASS
    assert judge(comparator, zeros + 1e-30, zeros).status == FAIL


def test_row_l2_leaves_out_what_is_not_valid():
    comparator = RowL2(rel_l2=0.01, row_axes=1)
    expected, valid = torch.ones(2, 4), torch.ones(2, 4, dtype=torch.bool)
    actual = expected.clone()
    actual[0, 0], valid[0, 0] = 9.0, False
    assert judge(comparator, actual, expected, valid=valid).status == PASS
    assert judge(comparator, actual, expected).status == FAIL
