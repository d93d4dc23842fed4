"""The wording and reach of the input checks."""

import pytest
import torch

from goldens.checks import Given, continued, expect, expect_integer, expect_range, part_of
from goldens.errors import GoldenInputError


def message(check, *arguments):
    with pytest.raises(GoldenInputError) as caught:
        check(*arguments)
    return str(caught.value)


def test_accepts_exact_and_open_sizes():
    x = torch.zeros(3, 4)
    assert expect("op: x", x, (3, 4), torch.float32) == (3, 4)
    assert expect("op: x", x, (None, None), torch.float32) == (3, 4)
    assert expect("op: x", x[:0], (None, 4), torch.float32) == (0, 4)


def test_rejects_dtype():
    text = message(expect, "gate: x_mixed", torch.zeros(2), (2,), torch.bfloat16)
    assert text == "gate: x_mixed has dtype float32, expected bfloat16"


@pytest.mark.parametrize(("shape", "wanted"), [((3, 5), "[3, 5]"), ((None, 5), "[any, 5]"), ((3,), "[3]")])
def test_rejects_shape(shape, wanted):
    text = message(expect, "op: x", torch.zeros(3, 4), shape, torch.float32)
    assert text == f"op: x has shape [3, 4], expected {wanted}"


def test_rejects_what_is_no_tensor():
    assert message(expect, "op: x", [1.0], (1,), torch.float32) == "op: x is a list, expected a tensor"


def test_rejects_empty_axis():
    text = message(expect, "op: x", torch.zeros(3, 0), (None, None), torch.float32)
    assert text == "op: x has shape [3, 0], expected no empty axis but the first"


@pytest.mark.parametrize("value", [0, -(2**31), 2**31 - 1])
def test_accepts_int32(value):
    assert expect_integer("op: n", value) == value


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 1.0, True, None])
def test_rejects_no_int32(value):
    assert message(expect_integer, "op: n", value).startswith(f"op: n is {value!r}, expected an")


def test_accepts_range_limits():
    expect_range("op: ids", torch.tensor([0, 7]), 0, 7)
    expect_range("op: ids", torch.empty(0, dtype=torch.int32), 0, 7)


@pytest.mark.parametrize("value", [-1, 8])
def test_rejects_outside_range_with_place(value):
    ids = torch.zeros(2, 3, dtype=torch.int32)
    ids[1, 2] = value
    assert message(expect_range, "op: ids", ids, 0, 7) == f"op: ids[1, 2] is {value}, expected 0..7"
    assert message(lambda: expect_range("op: ids", ids[1], 0, 7, at=(1,))) == f"op: ids[1, 2] is {value}, expected 0..7"


def test_given_stages_stand_for_what_was_computed_and_both_are_kept():
    own, device = torch.zeros(2), torch.ones(2)
    given = Given({"a": device})
    assert continued(given, "op", "a", own) is device
    assert continued(given, "op", "b", own) is own
    assert given.computed["a"] is own
    assert given.computed["b"] is own


def test_a_part_notes_what_it_computed_under_the_names_of_the_whole():
    """The part's note stands: the whole sees what it was given again, and no longer what was computed."""
    own, device = torch.zeros(2), torch.ones(2)
    given = Given({"pooled_kv": device, "other": device})
    part = part_of(given, {"pooled_kv": "kv"})
    assert dict(part) == {"kv": device}
    result = continued(part, "part", "kv", own)
    continued(part, "part", "unknown", own)
    continued(given, "whole", "pooled_kv", result)
    assert given.computed == {"pooled_kv": own}


def test_a_plain_mapping_has_parts_too():
    device = torch.ones(2)
    assert part_of({"x": device}, {"x": "y", "z": "w"}) == {"y": device}
    assert part_of(None, {"x": "y"}) == {}
