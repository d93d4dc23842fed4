"""Specs of the distributed MoE: signatures, what is the same on all ranks, every routing at every number of ranks."""

import pytest
import torch

from goldens.errors import GoldenInputError
from goldens.numerics.routes import lane_loads
from specs.capacity import routed_ids
from specs.errors import SpecError
from specs.registry import Op, load_op
from specs.tensors import ScalarSpec

OPS = ("moe_dispatch", "moe_combine", "moe")
RANKS = (2, 4, 8)
CONTRACT = (
    *("x_hc", "hc_ffn_fn", "hc_ffn_scale", "hc_ffn_base", "norm_w", "gate_w", "gate_bias", "tid2eid", "input_ids"),
    *("routed_w1", "routed_w1_scale", "routed_w3", "routed_w3_scale", "routed_w2", "routed_w2_scale"),
    *("shared_w1", "shared_w1_scale", "shared_w3", "shared_w3_scale", "shared_w2", "shared_w2_scale", "x_next"),
)
"""Tensors 1 to 22 of contracts/moe_and_layers.md, 5.2."""
OWN = ("x_hc", "input_ids")
SHARDS = tuple(name for name in CONTRACT if name.startswith("routed"))


def small(name: str = "moe", ranks: int = 2) -> Op:
    return load_op(name, ep_world_size=ranks)


def test_the_signature_of_moe_is_the_contracts() -> None:
    names = [spec.name for spec in small().signature]
    assert names == [*CONTRACT, "overflow", "layer_id", "num_tokens"]


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("ranks", RANKS)
def test_every_tensor_has_a_rank_axis(name: str, ranks: int) -> None:
    op = small(name, ranks)
    assert op.world == ranks
    assert all(spec.shape[0] == ranks for spec in op.signature if not isinstance(spec, ScalarSpec))


def test_flash_shapes() -> None:
    op = load_op("moe", "flash", ep_world_size=4)
    shapes = {spec.name: spec.shape for spec in op.signature if not isinstance(spec, ScalarSpec)}
    assert shapes["x_hc"] == shapes["x_next"] == (4, 8, 4, 4096)
    assert shapes["hc_ffn_fn"] == (4, 24, 16384)
    assert shapes["gate_w"] == (4, 128, 4096)
    assert shapes["tid2eid"] == (4, 129280, 6)
    assert shapes["routed_w2"] == (4, 32, 4096, 2048)
    assert shapes["shared_w1_scale"] == (4, 2048)
    dispatch = load_op("moe_dispatch", "flash", "prefill")
    assert {spec.name: spec.shape for spec in dispatch.outputs} == {
        "recv_x_out": (8, 32, 1024, 4096),
        "recv_scale_out": (8, 32, 1024),
        "recv_w_out": (8, 32, 1024),
        "recv_r_route_out": (8, 32, 1024),
        "recv_count_out": (8, 32, 1),
        "recv_meta": (8, 8, 32),
        "overflow": (8, 4),
    }
    combine = load_op("moe_combine", "flash", ep_world_size=2)
    assert combine.outputs[1].shape == (2, 48, 4096)


def test_replicated_tensors_are_equal_and_others_are_not() -> None:
    inputs = small().inputs("score_bias")
    for name in CONTRACT[:-1]:
        equal = torch.equal(inputs[name][0], inputs[name][1])
        assert equal == (name not in (*OWN, *SHARDS)), name


def test_hyper_connections_are_the_real_ones() -> None:
    inputs = small().inputs()
    assert inputs["hc_ffn_scale"][1].tolist() == pytest.approx([0.11334, 0.035901, 0.058183])
    assert inputs["hc_ffn_base"][1, [0, 7, 23]].tolist() == pytest.approx([2.4153, 0.5894, 1.7862])
    taps: dict[str, torch.Tensor] = {}
    small().golden(inputs, taps)
    assert taps["post"].mean((0, 1)).tolist() == pytest.approx([0.34, 0.09, 0.002, 1.24], rel=0.2)  # 5.2, measured


def ids(op: Op, case: str) -> torch.Tensor:
    """[EP, T, K]"""
    context = op.context(case, 0)
    inputs = {spec.name: context.tensor(spec.name) for spec in op.inputs_spec if spec.name in CONTRACT[:9]}
    return routed_ids({**inputs, **context.scalars}, op.config)


def loads(op: Op, case: str) -> torch.Tensor:
    """[EP, N] rows from each rank to each expert; all tokens are active."""
    counts = torch.full((op.world, 1), op.deployment.tokens, dtype=torch.int32)
    return lane_loads(ids(op, case), counts, op.config.n_routed_experts)


def by_rank(op: Op, rows: torch.Tensor) -> torch.Tensor:
    """[EP, EP] rows from each rank to each rank."""
    return rows.view(op.world, op.world, -1).sum(2)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("case", [case.name for case in small().cases if "routing" in case.tags])
def test_every_routing_fits_the_worst_case_lanes(case: str, ranks: int) -> None:
    op = small(ranks=ranks)
    rows = loads(op, case)
    assert rows.sum(1).tolist() == [8 * 6] * ranks
    assert int(rows.max()) <= op.deployment.max_per_src == 8


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("case", ["score_one_rank", "hash_one_rank"])
def test_one_rank_receives_everything(case: str, ranks: int) -> None:
    op = small(ranks=ranks)
    assert by_rank(op, loads(op, case))[:, 1].tolist() == [48] * ranks


@pytest.mark.parametrize("ranks", RANKS)
def test_next_rank_receives_all_of_a_ranks_tokens(ranks: int) -> None:
    op = small(ranks=ranks)
    wanted = 48 * torch.eye(ranks, dtype=torch.int64).roll(1, dims=1)
    assert torch.equal(by_rank(op, loads(op, "hash_next_rank")), wanted)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("case", ["score_ties_all", "hash_same_token"])
def test_full_lanes_and_empty_experts(case: str, ranks: int) -> None:
    op = small(ranks=ranks)
    rows = loads(op, case)
    assert rows.unique().tolist() == [0, 8]
    assert int((rows.sum(0) == 0).sum()) == op.config.n_routed_experts - 6


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("case", ["score_hot", "hash_hot", "hash_zipf", "hash_zipf_steep", "score_zipf"])
def test_skews_are_skewed(case: str, ranks: int) -> None:
    """The busiest expert gets at least 3/2 of what the busiest one gets on average without a skew."""
    op = small(ranks=ranks)
    assert int(loads(op, case).sum(0).max()) >= 0.7 * 8 * ranks


def test_layer_ids_reach_both_kinds_of_layers() -> None:
    op = small()
    layers = {case.scalars.get("layer_id", 0) for case in op.cases}
    assert layers == {0, 2, 3, 5}
    before, after = small().inputs("hash_last"), small().inputs("score_first")
    assert (before["layer_id"], after["layer_id"]) == (2, 3)


@pytest.mark.parametrize("kind", ["hash", "score"])
def test_token_counts_reach_both_ends_and_beyond(kind: str) -> None:
    counts = {case.scalars["num_tokens"] for case in small().cases if case.name.startswith(f"{kind}_tokens_")}
    assert counts == {5, 1, 0, 13, -3}


@pytest.mark.parametrize("name", ["moe_dispatch", "moe_combine"])
def test_token_counts_may_differ_between_ranks(name: str) -> None:
    drawn = {case.name: load_op(name).input("num_tokens", case.name).flatten().tolist() for case in load_op(name).cases}
    assert drawn["tokens_differ"] == [9, 3] * 4
    assert drawn["tokens_first_idle"] == [0, 8] * 4
    assert set(drawn["tokens_negative"]) == {-3}


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("name", ["moe_dispatch", "moe_combine", "moe"])
def test_every_valid_case_has_a_golden_and_every_invalid_one_none(name: str, ranks: int) -> None:
    op = small(name, ranks)
    for case in op.cases if name != "moe" else [case for case in op.cases if case.invalid]:
        inputs = op.inputs(case.name)
        if case.invalid:
            with pytest.raises(GoldenInputError):
                op.golden(inputs)
        else:
            outputs, valid = op.golden(inputs), op.valid(inputs)
            assert all(mask is None or mask.shape == outputs[key].shape for key, mask in valid.items())


def test_masks_cover_the_rows_below_the_counts() -> None:
    op = small("moe_dispatch")
    inputs = op.inputs("skew_hot")
    outputs, valid = op.golden(inputs), op.valid(inputs)
    rows = valid["recv_w_out"]
    assert rows is not None
    assert torch.equal(rows.sum(2, keepdim=True).int(), outputs["recv_count_out"])
    assert torch.equal(rows.cummin(2).values, rows)
    assert not outputs["recv_w_out"][~rows].any()


def test_masks_of_moes_stages() -> None:
    op = load_op("moe", deployment="prefill", ep_world_size=2, tokens=32)
    inputs = op.inputs("score_tokens_5")
    taps: dict[str, torch.Tensor] = {}
    op.golden(inputs, taps)
    valid = op.valid(inputs)
    assert valid["x_next"] is None
    normed, rows = valid["x_norm_i8"], valid["recv_y"]
    assert normed is not None
    assert rows is not None
    assert normed[:, :, 0].sum(1).tolist() == [16, 16]
    assert torch.equal(rows[..., 0].sum(2, keepdim=True).int(), taps["recv_count_out"])


def test_stale_rows_of_combine_are_not_finite_and_never_below_the_counts() -> None:
    op = small("moe_combine")
    inputs = op.inputs("stale")
    used = torch.arange(op.deployment.recv_max) < inputs["recv_meta"].sum(1).unsqueeze(2)
    assert not inputs["recv_y"][used].isnan().any()
    assert inputs["recv_y"][~used].isnan().all()
    keys = inputs["recv_r_route_out"]
    assert (keys[used] >= 0).all()
    assert (keys[used] < 48).all()
    assert (keys[~used] < 0).any()
    assert (keys[~used] >= 48).any()


def test_sizes_that_a_part_cannot_do_are_refused() -> None:
    with pytest.raises(SpecError, match=r"^gate: D = 128 is no multiple of 256"):
        load_op("moe", hidden_size=128)
    with pytest.raises(SpecError, match=r"^hc_pre: T = 12 is no multiple of 8"):
        load_op("moe", deployment="decode_mtp", tokens=12)
    with pytest.raises(SpecError, match=r"ep_world_size is 3, expected 2, 4 or 8"):
        load_op("moe", ep_world_size=3)
