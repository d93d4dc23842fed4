"""Golden of moe_combine: the protocol, the order of the sum, rows that must not be read, rejected inputs."""

import moe_protocol
import pytest
import torch
from golden_testing import F32, D, K, assert_rejected, assert_same_bits, bf16, moe_combine_inputs, run

from goldens.errors import GoldenInputError

OP, OUT, BUFFER = "moe_combine", "ffn_out", "routed_y_buf"


def assert_equals_protocol(inputs):
    tensors, parameters = inputs
    found = run(OP, inputs)
    keys, rows, meta = (tensors[name] for name in ("recv_r_route_out", "recv_y", "recv_meta"))
    wanted, returned = moe_protocol.combine(rows, meta, keys, tensors["sh"], tensors["num_tokens"], parameters["topk"])
    assert_same_bits(found[OUT], wanted)
    written = ~returned.isnan()
    assert torch.equal(written.any(dim=2), written.all(dim=2))
    assert_same_bits(found[BUFFER], torch.where(written, returned, torch.zeros_like(returned)))
    return found


@pytest.mark.parametrize("ep", [1, 2, 4, 8])
def test_equals_the_protocol(ep):
    assert_equals_protocol(moe_combine_inputs(ep, ep=ep))


@pytest.mark.parametrize("counts", [(0, 0), (5, 0), (1, 4), (-3, 9)])
def test_equals_the_protocol_for_any_active_tokens(counts):
    inputs = moe_combine_inputs(1, counts=counts)
    found = assert_equals_protocol(inputs)
    for rank, count in enumerate(counts):
        idle = min(max(count, 0), 5)
        assert_same_bits(found[OUT][rank, idle:], inputs[0]["sh"][rank, idle:])


def test_equals_straight_line_sums():
    """Shared first, then k ascending, every addition rounded to FP32 and the sum once to BF16."""
    inputs = moe_combine_inputs(2)
    found = run(OP, inputs)
    sh, rows = inputs[0]["sh"].float().numpy(), found[BUFFER].float().numpy()
    for rank in range(2):
        for token in range(5):
            total = sh[rank, token].astype(F32)
            for choice in range(K):
                total = (total + rows[rank, token * K + choice]).astype(F32)
            assert found[OUT][rank, token].float().numpy().tolist() == bf16(total).tolist()


def test_what_lies_beyond_the_counts_is_not_read():
    tensors, parameters = moe_combine_inputs(3)
    plain = run(OP, (tensors, parameters))
    beyond = torch.arange(10) >= tensors["recv_meta"].sum(1).unsqueeze(2)
    assert beyond.any()
    tensors["recv_y"][beyond] = torch.nan
    tensors["recv_r_route_out"][beyond] = -(2**31)
    found = run(OP, (tensors, parameters))
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_zeros():
    """sh of -0 becomes +0 where a routed +0 is added, and stays where the token is inactive."""
    tensors, parameters = moe_combine_inputs(4, counts=(2, 5))
    zero = torch.zeros_like(tensors["recv_y"])
    tensors["sh"] = torch.full_like(tensors["sh"], -0.0)
    found = run(OP, (tensors, parameters), recv_y=zero)[OUT]
    assert found[0].signbit().any(dim=1).tolist() == [False, False, True, True, True]
    assert not found[1].signbit().any()


def wrong_sums(sh, buffer):
    """What a kernel might do instead, each from the right rows: name -> ffn_out."""
    rows = buffer.unflatten(1, (-1, K)).float()
    exact = sh.float()
    for choice in range(K):
        exact = exact + rows[:, :, choice]
    in_bf16 = sh
    for choice in range(K):
        in_bf16 = (in_bf16.float() + rows[:, :, choice]).bfloat16()
    last = rows[:, :, 0]
    for choice in range(1, K):
        last = last + rows[:, :, choice]
    backwards = sh.float()
    for choice in reversed(range(K)):
        backwards = backwards + rows[:, :, choice]
    return {
        "accumulated in BF16": in_bf16,
        "truncated": (exact.view(torch.int32) & ~0xFFFF).view(torch.float32).bfloat16(),
        "shared expert last": (last + sh.float()).bfloat16(),
        "choices backwards": backwards.bfloat16(),
        "one choice lost": (exact - rows[:, :, -1]).bfloat16(),
        "one token without routed rows": torch.cat([sh[:, :1], exact[:, 1:].bfloat16()], dim=1),
        "no shared expert": (exact - sh.float()).bfloat16(),
    }


WRONG = (
    "accumulated in BF16",
    "truncated",
    "shared expert last",
    "choices backwards",
    "one choice lost",
    "one token without routed rows",
    "no shared expert",
)


@pytest.mark.parametrize("fault", WRONG)
def test_rejects(fault):
    """The first two choices cancel, so that what was lost to their size shows."""
    inputs = moe_combine_inputs(5, t=24)
    rows = run(OP, inputs)[BUFFER]
    rows[:, 0::K] *= 2.0**20
    rows[:, 1::K] = -rows[:, 0::K]
    found = run(OP, inputs, given={BUFFER: rows})
    wrong = wrong_sums(inputs[0]["sh"], found[BUFFER])
    assert tuple(wrong) == WRONG
    assert_rejected(OP, OUT, wrong[fault], found[OUT], by="limit")


def test_goes_on_from_a_devices_returned_rows():
    inputs = moe_combine_inputs(6)
    plain = run(OP, inputs)
    other = plain[BUFFER] * 2
    found = run(OP, inputs, given={BUFFER: other})
    assert_same_bits(found[BUFFER], other)
    assert (found[OUT] != plain[OUT]).any()


def keyed(rank, expert, row, value):
    tensors, parameters = moe_combine_inputs(7)
    tensors["recv_r_route_out"][rank, expert, row] = value
    return tensors, parameters


def test_rejects_keys_that_are_no_route_and_routes_that_nobody_returns():
    tensors, _ = moe_combine_inputs(7)
    rank, expert = (tensors["recv_meta"].sum(1) > 1).nonzero()[0].tolist()
    place = rf"recv_r_route_out\[{rank}, {expert}, 0\]"
    for key in (-1, 5 * K):
        with pytest.raises(GoldenInputError, match=rf"{place} is {key}, expected 0\.\.29 for source \d$"):
            run(OP, keyed(rank, expert, 0, key))
    with pytest.raises(GoldenInputError, match=r"route \d+ of source \d is named by [02] rows .*, expected 1$"):
        run(OP, keyed(rank, expert, 0, int(tensors["recv_r_route_out"][rank, expert, 1])))


def test_rejects_counts_that_no_lane_holds():
    tensors, parameters = moe_combine_inputs(8)
    for count in (-1, 6):
        wild = tensors["recv_meta"].clone()
        wild[1, 0, 3] = count
        with pytest.raises(GoldenInputError, match=rf"recv_meta\[1, 0, 3\] is {count}, expected 0\.\.5$"):
            run(OP, (tensors, parameters), recv_meta=wild)


def test_rows_are_as_wide_as_the_input():
    assert run(OP, moe_combine_inputs())[BUFFER].shape == (2, 5 * K, D)
