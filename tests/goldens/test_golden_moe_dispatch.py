"""Golden of moe_dispatch: the protocol with poisoned lanes, the contract's example, capacity, rejected inputs."""

import moe_protocol
import pytest
import torch
from golden_testing import D, K, assert_same_bits, moe_dispatch_inputs, run

from goldens.errors import CapacityError, GoldenInputError
from goldens.moe_dispatch import moe_dispatch

OP = "moe_dispatch"
ROWS = ("recv_x_out", "recv_scale_out", "recv_w_out", "recv_r_route_out")


def assert_equals_protocol(inputs):
    """Bit by bit where rows are valid, zero beyond; counts and windows everywhere."""
    tensors, parameters = inputs
    found = run(OP, inputs)
    received, windows = moe_protocol.dispatch(*tensors.values(), **parameters)
    assert torch.equal(found["recv_meta"].long(), torch.stack([window.meta for window in windows]))
    for rank, experts in enumerate(received):
        for expert, rows in enumerate(experts):
            assert found["recv_count_out"][rank, expert].tolist() == [len(rows)]
            for name, values in zip(ROWS, zip(*rows, strict=True), strict=True) if rows else ():
                wanted = torch.stack(values).to(found[name].dtype)
                assert_same_bits(found[name][rank, expert, : len(rows)], wanted)
            assert not any(found[name][rank, expert, len(rows) :].any() for name in ROWS)
    assert not found["overflow"].any()
    return found


@pytest.mark.parametrize("ep", [1, 2, 4, 8])
@pytest.mark.parametrize("t", [1, 5, 8])
def test_equals_the_protocol(ep, t):
    assert_equals_protocol(moe_dispatch_inputs(ep + t, t=t, ep=ep))


@pytest.mark.parametrize("counts", [(0, 0), (5, 0), (0, 5), (1, 4), (-3, 9)])
def test_equals_the_protocol_for_any_active_tokens(counts):
    found = assert_equals_protocol(moe_dispatch_inputs(3, counts=counts))
    active = sum(min(max(count, 0), 5) for count in counts)
    assert int(found["recv_count_out"].sum()) == active * K


def test_equals_the_protocol_in_deeper_and_shallower_lanes():
    """How deep the lanes are shows in the shape alone."""
    inputs = moe_dispatch_inputs(4, n_local=40)
    loads = int(run(OP, inputs)["recv_meta"].max())
    assert loads < 5
    for depth in (2 * loads, 64):
        found = assert_equals_protocol((inputs[0], inputs[1] | {"recv_max": depth}))
        assert found["recv_x_out"].shape == (2, 40, depth, D)


def test_the_worked_example():
    """Section 3.3: EP = 2, N_LOCAL = 2, T = 2, K = 2."""
    indices = torch.tensor([[[1, 2], [2, 1]], [[3, 2], [0, 1]]], dtype=torch.int32)
    codes = torch.tensor([[[10], [11]], [[20], [21]]], dtype=torch.int8)
    scale = torch.tensor([[[0.5], [0.25]], [[2.0], [4.0]]])
    weights = torch.arange(8.0).view(2, 2, 2)
    found = moe_dispatch(
        indices, codes, scale, weights, torch.full((2, 1), 2, dtype=torch.int32), n_local=2, recv_max=4
    )
    assert found["recv_meta"].tolist() == [[[0, 2], [1, 1]], [[2, 0], [1, 1]]]
    assert found["recv_count_out"].flatten(1).tolist() == [[1, 3], [3, 1]]
    assert found["recv_r_route_out"].tolist() == [
        [[2, 0, 0, 0], [0, 3, 3, 0]],
        [[1, 2, 1, 0], [0, 0, 0, 0]],
    ]
    assert found["recv_x_out"].squeeze(3).tolist() == [
        [[21, 0, 0, 0], [10, 11, 21, 0]],
        [[10, 11, 20, 0], [20, 0, 0, 0]],
    ]
    assert found["recv_w_out"].tolist() == [[[6, 0, 0, 0], [0, 3, 7, 0]], [[1, 2, 5, 0], [4, 0, 0, 0]]]


def test_duplicate_ids_have_a_row_each_while_the_lane_holds_them():
    tensors, parameters = moe_dispatch_inputs(5, counts=(2, 2))
    tensors["indices"][:, :, 1] = tensors["indices"][:, :, 0]
    found = assert_equals_protocol((tensors, parameters))
    assert int(found["recv_meta"].max()) >= 2


def test_ids_of_inactive_tokens_are_not_looked_at():
    tensors, parameters = moe_dispatch_inputs(6, counts=(2, 3))
    wild = tensors["indices"].clone()
    wild[0, 2:], wild[1, 3:] = -7, 1000
    plain, found = run(OP, (tensors, parameters)), run(OP, (tensors, parameters), indices=wild)
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_nan_and_infinity_are_copied():
    tensors, parameters = moe_dispatch_inputs(7)
    tensors["x_norm_scale"][0, 2] = torch.nan
    tensors["weights"][1, 3, 4] = -torch.inf
    found = run(OP, (tensors, parameters))
    assert int(found["recv_scale_out"].isnan().sum()) == K
    assert int((found["recv_w_out"] == -torch.inf).sum()) == 1


@pytest.mark.parametrize("expert", [0, 7, 11])
def test_rejects_a_lane_that_overflows_by_one_and_accepts_a_full_one(expert):
    tensors, parameters = moe_dispatch_inputs(8)
    tensors["indices"] = ((torch.arange(K) + expert) % 12).to(torch.int32).expand(2, 5, K).clone()
    assert int(run(OP, (tensors, parameters))["recv_meta"].max()) == 5
    tensors["indices"][1, 2, 1] = expert
    with pytest.raises(CapacityError) as caught:
        run(OP, (tensors, parameters))
    error = caught.value
    assert (error.source, error.destination, error.expert, error.load, error.depth) == (1, expert // 6, expert, 6, 5)
    assert str(error) == (
        f"moe_dispatch: rank 1 sends 6 rows to expert {expert} on rank {expert // 6}, "
        f"expected at most the 5 of its lane there"
    )


def test_of_many_overflows_the_lowest_source_and_expert_are_named():
    tensors, parameters = moe_dispatch_inputs(9)
    tensors["indices"][0] = 9
    tensors["indices"][0, :, 0] = 4
    tensors["indices"][0, 4, 1] = 4
    tensors["indices"][1] = 0
    with pytest.raises(CapacityError, match="rank 0 sends 6 rows to expert 4 on rank 0"):
        run(OP, (tensors, parameters))


@pytest.mark.parametrize("expert", [-1, 12])
def test_rejects_an_expert_that_does_not_exist(expert):
    tensors, parameters = moe_dispatch_inputs(10)
    tensors["indices"][1, 4, 5] = expert
    with pytest.raises(GoldenInputError, match=rf"indices\[1, 4, 5\] is {expert}, expected 0..11$"):
        run(OP, (tensors, parameters))


def test_rejects_rows_that_the_ranks_cannot_share():
    with pytest.raises(GoldenInputError, match="recv_max is 11, expected a multiple of the 2 ranks"):
        run(OP, moe_dispatch_inputs(recv_max=11))
