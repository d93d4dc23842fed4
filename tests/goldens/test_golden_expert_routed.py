"""Golden of expert_routed: straight-line rows, equality with expert_shared, and the facts of section 5."""

import numpy as np
import pytest
import torch
from golden_testing import RECV_MAX, D, assert_same_bits, expert_routed_inputs, run
from test_golden_expert_shared import as_arrays, straight_line

from goldens.errors import GoldenInputError
from goldens.expert_shared import expert_shared

EDGES = (0, 1, 15, 16, 17, 31, RECV_MAX)
WEIGHTS = ("w1", "w1_scale", "w3", "w3_scale", "w2", "w2_scale")


@pytest.mark.parametrize("limit", [0.0, 10.0])
def test_equals_straight_line_code(limit):
    counts = (2, 0, 3)
    inputs = expert_routed_inputs(1, counts, limit)
    x, scale, weight, _, *rest = as_arrays(inputs[0].values())
    found = run("expert_routed", inputs)["recv_y"].float()
    for e, count in enumerate(counts):
        for r in range(count):
            wanted = straight_line(x[e, r], scale[e, r], *(w[e] for w in rest), limit, weight[e, r])
            assert_same_bits(found[e, r], torch.from_numpy(wanted))


@pytest.mark.parametrize("seed", range(2))
def test_weight_one_equals_the_shared_expert(seed):
    inputs = expert_routed_inputs(seed, EDGES)
    found = run("expert_routed", inputs, recv_weights=torch.ones(len(EDGES), RECV_MAX))["recv_y"]
    for e, count in enumerate(EDGES):
        tensors = inputs[0]
        mine = [tensors[f"routed_{name}"][e] for name in WEIGHTS]
        x, scale = tensors["recv_x"][e, :count], tensors["recv_scale_dq"][e, :count, None]
        assert_same_bits(found[e, :count], expert_shared(x, scale, *mine, swiglu_limit=10.0)["sh"])
        assert (found[e, count:] == 0).all()


def test_scale_and_weight_are_multiplied_first():
    """(Y * (hs * w)) * s2: the ungrouped product differs in some bits."""
    taps = {}
    counts = (RECV_MAX,) * 3
    inputs = expert_routed_inputs(2, counts)
    found = run("expert_routed", inputs, taps=taps)["recv_y"]
    weight, s2 = inputs[0]["recv_weights"].unsqueeze(2), inputs[0]["routed_w2_scale"].unsqueeze(1)
    y = taps["y_acc"].float()
    grouped = (y * (taps["h_scale"] * weight)) * s2
    ungrouped = ((y * taps["h_scale"]) * weight) * s2
    assert_same_bits(found, grouped.bfloat16())
    assert (grouped != ungrouped).any()


def test_garbage_beyond_the_count_never_shows():
    inputs, dirty = expert_routed_inputs(3), expert_routed_inputs(3)
    for e, count in enumerate(inputs[0]["recv_expert_count"].flatten().tolist()):
        dirty[0]["recv_x"][e, count:] = -128
        dirty[0]["recv_scale_dq"][e, count:] = torch.nan
        dirty[0]["recv_weights"][e, count:] = torch.inf
    taps, clean = {}, {}
    found = run("expert_routed", dirty, taps=taps)["recv_y"]
    assert_same_bits(found, run("expert_routed", inputs, taps=clean)["recv_y"])
    assert all(torch.equal(taps[name], clean[name]) for name in clean)


def test_routing_weight_scales_the_output_only():
    tensors, _ = expert_routed_inputs(4)
    plain, taps, doubled = {}, {}, {}
    y = run("expert_routed", expert_routed_inputs(4), taps=plain)["recv_y"]
    twice = run("expert_routed", expert_routed_inputs(4), recv_weights=tensors["recv_weights"] * 2, taps=doubled)
    assert_same_bits(twice["recv_y"], y * 2)
    assert torch.equal(plain["h_i8"], doubled["h_i8"])
    zero = run("expert_routed", expert_routed_inputs(4), recv_weights=tensors["recv_weights"] * 0, taps=taps)
    assert (zero["recv_y"] == 0).all()


def test_rows_move_with_their_slot():
    counts = (RECV_MAX,) * 2
    inputs = expert_routed_inputs(5, counts)
    order = torch.randperm(RECV_MAX, generator=torch.Generator().manual_seed(0))
    moved = {name: inputs[0][name][:, order] for name in ("recv_x", "recv_scale_dq", "recv_weights")}
    assert_same_bits(run("expert_routed", inputs, **moved)["recv_y"], run("expert_routed", inputs)["recv_y"][:, order])


def test_no_rows_at_all():
    taps = {}
    found = run("expert_routed", expert_routed_inputs(0, (0, 0)), taps=taps)["recv_y"]
    assert (found == 0).all()
    assert taps["gate_acc"].shape == (2, RECV_MAX, 80)


@pytest.mark.parametrize("count", [0, RECV_MAX])
def test_accepts_count_limits(count):
    counts = torch.tensor([[count]] * 5, dtype=torch.int32)
    y = run("expert_routed", expert_routed_inputs(), recv_expert_count=counts)["recv_y"]
    assert (y != 0).any(2).sum().item() == 5 * count


@pytest.mark.parametrize("count", [-1, RECV_MAX + 1])
def test_rejects_counts_outside(count):
    counts = torch.tensor([[0], [1], [count], [2], [3]], dtype=torch.int32)
    wanted = rf"^expert_routed: recv_expert_count\[2, 0\] is {count}, expected 0\.\.{RECV_MAX}$"
    with pytest.raises(GoldenInputError, match=wanted):
        run("expert_routed", expert_routed_inputs(), recv_expert_count=counts)


def test_rejects_flat_counts():
    with pytest.raises(GoldenInputError, match=r"recv_expert_count has shape \[5\], expected \[5, 1\]"):
        run("expert_routed", expert_routed_inputs(), recv_expert_count=torch.zeros(5, dtype=torch.int32))


def test_every_column_of_a_pro_sized_output_is_written():
    """D = 7168 is no multiple of 4096: the reference kernel leaves columns 4096.. as they were."""
    generator = torch.Generator().manual_seed(0)
    wide, inter = 7168, 3072
    w = [torch.randint(-127, 128, s, dtype=torch.int8, generator=generator) for s in ((1, inter, wide),) * 2]
    w2 = torch.randint(-127, 128, (1, wide, inter), dtype=torch.int8, generator=generator)
    x = torch.randint(-127, 128, (1, 16, wide), dtype=torch.int8, generator=generator)
    ones = torch.full((1, 16), 1e-3)
    found = run(
        "expert_routed",
        (
            dict(
                zip(
                    expert_routed_inputs()[0],
                    (x, ones, ones, torch.tensor([[2]], dtype=torch.int32), w[0], torch.full((1, inter), 1e-3),
                     w[1], torch.full((1, inter), 1e-3), w2, torch.full((1, wide), 1.0)),
                    strict=True,
                )
            ),
            {"swiglu_limit": 10.0},
        ),
    )["recv_y"]  # fmt: skip
    blocks = found[0, :2].float().reshape(2, -1, 512)
    assert (blocks != 0).any(2).all()
    assert np.isfinite(blocks.numpy()).all()
    assert found.shape[2] != D
