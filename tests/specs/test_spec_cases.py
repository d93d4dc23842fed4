"""Every case of every op: inputs as declared, a golden finite where it is defined, the situation promised."""

from typing import Any

import pytest
import torch

from goldens.errors import GoldenInputError
from specs.errors import SpecError
from specs.registry import Op, all_ops, load_op
from specs.tensors import ScalarSpec

DEPLOYMENTS = ("decode", "decode_mtp", "prefill")


def loaded(name: str, where: str) -> Op | None:
    """The op, None for a deployment that it refuses: decode and prefill have attention ops of their own."""
    try:
        return load_op(name, "tiny", where)
    except SpecError:
        return None


def of_few_ranks(op: Op, case: str) -> Op:
    """The op on two ranks where it has more, but for its default case: eight of them draw four times as much."""
    return op if op.world <= 2 or case == "default" else load_op(op.name, "tiny", op.deployment.name, ep_world_size=2)


LOADED = {(name, where): op for name in all_ops() for where in DEPLOYMENTS if (op := loaded(name, where)) is not None}
EVERY_CASE = [
    pytest.param(of_few_ranks(op, case.name), case.name, id=f"{name}-{where}-{case.name}")
    for (name, where), op in LOADED.items()
    for case in op.cases
]
FLASH_CASES = [
    pytest.param(name, case.name, id=f"{name}-{case.name}")
    for name in all_ops()
    for case in load_op(name, "flash").cases
]


def assert_declared(op: Op, inputs: dict[str, Any]) -> None:
    assert list(inputs) == [spec.name for spec in op.inputs_spec]
    for spec in op.inputs_spec:
        value = inputs[spec.name]
        if isinstance(spec, ScalarSpec):
            assert isinstance(value, (int, float))
        else:
            assert (value.dtype, tuple(value.shape)) == (spec.dtype, spec.shape)
            assert value.is_contiguous()


@pytest.mark.parametrize(("op", "case"), EVERY_CASE)
def test_case_draws_what_is_declared_and_the_golden_takes_it(op: Op, case: str) -> None:
    inputs = op.inputs(case)
    assert_declared(op, inputs)
    if op.case(case).invalid:
        with pytest.raises(GoldenInputError):
            op.golden(inputs)
        return
    taps: dict[str, torch.Tensor] = {}
    outputs = op.golden(inputs, taps)
    masks = op.valid(inputs)
    assert tuple(taps) == op.stages
    names = [spec.name for spec in op.outputs]
    assert list(masks)[: len(names)] == names
    assert set(masks) - set(names) <= set(op.stages)
    for spec in op.outputs:
        out, mask = outputs[spec.name], masks[spec.name]
        assert (out.dtype, tuple(out.shape)) == (spec.dtype, spec.shape)
        if mask is not None:
            assert (mask.dtype, tuple(mask.shape)) == (torch.bool, spec.shape)
            assert not mask.all()
        copied = case == "not_finite"  # what is sent is a bit copy, NaN or not
        assert copied or (out if mask is None else out[mask]).float().isfinite().all()


@pytest.mark.parametrize(("name", "case"), FLASH_CASES)
@pytest.mark.slow  # 13 GB of inputs in all; run with -m slow
def test_flash_case_draws_what_is_declared(name: str, case: str) -> None:
    op = load_op(name, "flash")
    assert_declared(op, op.inputs(case))


IN_PRO = [
    name
    for name in all_ops()
    if name not in ("expert_routed", "lm_head", "moe")  # 3, 2 and 24 GiB of weights
    and (name == "decode_metadata" or not name.startswith("decode_"))  # no decode step has a million positions
]


@pytest.mark.parametrize("name", IN_PRO)
@pytest.mark.slow  # the sizes that the reference never runs; run with -m slow
def test_pro_default_draws_what_is_declared(name: str) -> None:
    op = load_op(name, "pro")
    inputs = op.inputs()
    assert_declared(op, inputs)
    assert all(out.float().isfinite().all() for out in op.golden(inputs).values())


def taps_of(name: str, case: str, preset: str = "tiny", where: str = "decode") -> tuple[dict[str, Any], dict[str, Any]]:
    op = load_op(name, preset, where)
    inputs = op.inputs(case)
    taps: dict[str, Any] = {}
    return inputs, {**taps, **op.golden(inputs, taps), **taps}


# rms_norm


def test_rms_norm_tiny_reaches_mean_squares_where_eps_decides() -> None:
    inputs, seen = taps_of("rms_norm", "tiny", where="prefill")
    mean = seen["mean_square"].flatten()
    for low, high in ((5e-13, 2e-12), (5e-9, 2e-8), (5e-7, 2e-6), (5e-5, 2e-4)):
        assert ((mean > low) & (mean < high)).any()
    constant = (inputs["x"] == torch.tensor(1e-6).bfloat16()).all(dim=1)
    unit = load_op("rms_norm").golden({**inputs_of_unit_weight(inputs, constant)})["x_normed"]
    assert unit[0, 0].item() == 0.00099945068359375


def inputs_of_unit_weight(inputs: dict[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    one_row = inputs["x"][rows][:1].expand(8, -1).contiguous()
    return {"x": one_row, "norm_w": torch.ones(256, dtype=torch.bfloat16)}


def test_rms_norm_overflow_makes_rows_zero_and_leaves_the_others() -> None:
    _, seen = taps_of("rms_norm", "overflow")
    assert seen["mean_square"][1::2].isinf().all()
    assert not seen["x_normed"][1::2].any()
    assert seen["x_normed"][0::2].any(dim=1).all()


# rms_norm and gate


@pytest.mark.parametrize(("name", "x", "normed"), [("rms_norm", "x", "x_normed"), ("gate", "x_mixed", "x_norm")])
def test_bf16_ties_puts_three_lanes_of_16_between_two_values(name: str, x: str, normed: str) -> None:
    """1/rms is 2^-10 exactly, so the normed value before rounding is known: 1.5 * (1 + 3/128) has one bit too many."""
    inputs, seen = taps_of(name, "bf16_ties", where="prefill")
    exact = inputs[x].double() * 2.0**-10 * inputs["norm_w"].double()
    rounded = seen[normed].double()
    ties = exact != rounded
    assert ties.double().mean() == 3 / 16
    assert ((exact - rounded).abs()[ties] == 2.0**-8).all()  # half a BF16 step of 1.5
    assert (rounded.abs() < exact.abs())[ties].all()  # the even neighbour is the nearer to zero


# hc_pre


def test_hc_pre_default_has_the_contracts_gates() -> None:
    _, seen = taps_of("hc_pre", "default", where="prefill")
    assert float(seen["mix"].std()) == pytest.approx(6.6, abs=0.3)
    assert seen["pre"].mean(dim=0).tolist() == pytest.approx([0.997, 0.030, 0.058, 0.040], abs=0.01)
    assert seen["post"].mean(dim=0).tolist() == pytest.approx([0.040, 0.569, 0.071, 0.152], abs=0.03)


def test_hc_pre_layer0_reaches_tiny_comb_entries_and_post_gates() -> None:
    _, seen = taps_of("hc_pre", "swa_layer0", where="prefill")
    assert 0 < float(seen["comb"].min()) < 1e-9
    assert float(seen["post"][:, 1].mean()) < 1e-4


def test_hc_pre_extreme_logits_saturate_every_gate() -> None:
    _, seen = taps_of("hc_pre", "extreme_logits")
    assert (seen["pre"][:, 0] == 1e-6).all()
    assert (seen["post"][:, 0] == 0.0).all()
    assert (seen["post"][:, 1] == 2.0).all()
    assert (seen["comb"] > 0).all()


def test_hc_pre_ties_lie_exactly_between_two_bf16_values() -> None:
    _, seen = taps_of("hc_pre", "bf16_ties")
    bits = seen["mixed"].view(torch.int32)
    assert ((bits & 0xFFFF) == 0x8000).all()
    odd = (bits >> 16) & 1
    assert 0.4 < float(odd.float().mean()) < 0.6
    assert (seen["mixed"] < 0).any()
    assert (seen["mixed"] > 0).any()


def test_hc_pre_zero_tokens_depend_on_the_base_only() -> None:
    _, seen = taps_of("hc_pre", "zero_tokens")
    assert not seen["x_mixed"][1::2].any()
    assert len(seen["comb"][1::2].unique(dim=0)) == 1
    assert seen["x_mixed"][0::2].any(dim=1).all()


# hc_post


def test_hc_post_identity_and_replace_copy_their_source() -> None:
    inputs, seen = taps_of("hc_post", "identity")
    assert torch.equal(seen["y"], inputs["residual"])
    inputs, seen = taps_of("hc_post", "replace")
    assert torch.equal(seen["y"], inputs["x"].unsqueeze(1).expand_as(seen["y"]))


def test_hc_post_combs_are_not_symmetric_and_sum_as_said() -> None:
    for case, axis in (("default", 2), ("from_hc_pre", 1)):
        comb = load_op("hc_post").input("comb", case).reshape(-1, 4, 4)
        assert torch.allclose(comb.sum(dim=axis), torch.ones(1), atol=3e-6)
        assert not torch.allclose(comb.sum(dim=3 - axis), torch.ones(1), atol=1e-2)
        assert (comb - comb.mT).abs().max() > 0.05


# gate


def loads(seen: dict[str, Any], experts: int = 64) -> torch.Tensor:
    counted: torch.Tensor = seen["indices"].flatten().bincount(minlength=experts)
    return counted


def test_gate_skews_reach_their_loads() -> None:
    even = loads(taps_of("gate", "default", where="prefill")[1])
    zipf = loads(taps_of("gate", "skew_zipf", where="prefill")[1])
    hot = loads(taps_of("gate", "skew_hot", where="prefill")[1])
    assert even.max() < 40
    assert zipf.max() > 90
    assert (zipf == 0).sum() > 3 * max(int((even == 0).sum()), 1)
    assert int(hot.max()) == 96  # 0.75 of 128 tokens, exactly
    assert int(hot.sort().values[-2]) < 40


@pytest.mark.parametrize("case", ["one_rank", "hash_one_rank"])
def test_gate_one_rank_routes_to_one_rank(case: str) -> None:
    _, seen = taps_of("gate", case, where="prefill")
    assert (seen["indices"] // 8 == 1).all()


def test_gate_bias_negative_leaves_every_expert_below_zero() -> None:
    _, seen = taps_of("gate", "bias_negative", where="prefill")
    assert (seen["biased"] < 0).all()


def test_gate_ties_take_the_lower_ids() -> None:
    _, seen = taps_of("gate", "ties_all")
    assert (seen["indices"] == torch.arange(6)).all()
    assert len(seen["biased"].unique(dim=1).T) == 1
    _, seen = taps_of("gate", "ties_some", where="prefill")
    keys = seen["biased"].sort(dim=1, descending=True).values
    assert (keys[:, 5] == keys[:, 6]).all()  # the selection ends inside a group of equals


@pytest.mark.parametrize(
    ("case", "low", "high"),
    [
        ("high_logits", 2, 30),
        ("low_logits", -9, -3),
        ("low_logits_tail", -17, -9),
        ("vanishing_logits", -60, -18),
        ("hash_low_logits", -60, -18),
    ],
)
def test_gate_logits_fill_their_range(case: str, low: float, high: float) -> None:
    _, seen = taps_of("gate", case, where="prefill")
    slack = 0.15 * max(abs(low), abs(high)) + 0.5
    assert low - slack < float(seen["logits"].min()) < low + slack
    assert high - slack < float(seen["logits"].max()) < high + slack
    assert (seen["weights"] > 0).all()


def test_gate_token_counts_cover_both_tiles_and_both_ends() -> None:
    def counts(where: str) -> set[int]:
        op = LOADED["gate", where]
        return {int(c.scalars["num_tokens"]) for c in op.cases if "num_tokens" in c.scalars and "hash" not in c.tags}

    assert counts("decode") == {0, 1, 7, 13, -3}
    assert counts("prefill") == {0, 1, 7, 8, 9, 15, 16, 17, 127, 133, -3}


@pytest.mark.parametrize(
    ("tokens", "defined"), [(-3, 0), (0, 0), (1, 16), (15, 16), (16, 16), (17, 32), (127, 128), (133, 128)]
)
def test_gate_norm_is_defined_in_whole_tiles(tokens: int, defined: int) -> None:
    op = LOADED["gate", "prefill"]
    masks = op.valid({**op.inputs(), "num_tokens": tokens})
    for name in ("x_norm", "x_norm_i8"):
        mask = masks[name]
        assert (128 if mask is None else int(mask.all(dim=1).sum())) == defined
        assert mask is None or torch.equal(mask.any(dim=1), torch.arange(128) < defined)
    assert masks["indices"] is masks["weights"] is masks["x_norm_scale"] is None


def test_gate_hash_cases_take_the_table() -> None:
    for case in LOADED["gate", "decode"].cases:
        if "hash" not in case.tags or case.invalid:
            continue
        inputs, seen = taps_of("gate", case.name)
        active = min(inputs["num_tokens"], 8)
        assert inputs["layer_id"] < 3
        assert torch.equal(seen["indices"][:active], inputs["tid2eid"][inputs["input_ids"][:active]])


def test_gate_scores_from_the_first_layer_after_the_hash_layers() -> None:
    op = LOADED["gate", "decode"]
    assert op.case("score_first").scalars["layer_id"] == 3
    assert op.case("hash_last").scalars["layer_id"] == 2
    assert not any("hash" in case.tags for case in load_op("gate", "demo").cases)


# experts


@pytest.mark.parametrize("name", ["expert_shared", "expert_routed"])
@pytest.mark.parametrize(("case", "gate", "up"), [("clamp_gate", 1, 0), ("clamp_up", 0, 1), ("clamp", 1, 1)])
def test_clamp_cases_pass_the_limit_on_both_sides(name: str, case: str, gate: int, up: int) -> None:
    _, seen = taps_of(name, case)
    for stage, beyond in (("gate", gate), ("up", up)):
        assert bool((seen[stage] > 10).any()) == bool(beyond)
        assert bool((seen[stage] < -10).any()) == bool(beyond)
    assert not (taps_of(name, "default")[1]["gate"].abs() > 10).any()


@pytest.mark.parametrize(("name", "out"), [("expert_shared", "sh"), ("expert_routed", "recv_y")])
def test_gates_below_the_limit_make_rows_that_a_limit_there_would_change(name: str, out: str) -> None:
    _, seen = taps_of(name, "gate_below")
    used = seen["gate"].any(dim=-1)
    assert bool(used.any())
    assert bool((seen["gate"][used] < -10).all())
    assert float(seen["h"][used].abs().amax(dim=-1).min()) > 1e-4
    assert bool(seen[out].any())


@pytest.mark.parametrize("case", ["zero_scale", "zero_rows"])
def test_expert_shared_zero_rows_give_exact_zeros(case: str) -> None:
    inputs, seen = taps_of("expert_shared", case)
    assert not seen["sh"][1::2].any()
    assert seen["sh"][0::2].any(dim=1).all()
    assert bool(inputs["x_local_i8"][1::2].any()) == (case == "zero_scale")


def test_expert_shared_tiny_rows_are_around_the_floor_of_the_quantiser() -> None:
    inputs, _ = taps_of("expert_shared", "tiny_amax")
    largest = inputs["x_local_i8"].abs().amax(dim=1).tolist()
    assert 127 in largest
    assert any(100 <= code < 127 for code in largest)
    assert any(0 < code < 80 for code in largest)
    assert float(inputs["x_local_scale_dq"].min()) == pytest.approx(1e-4 / 127)


def test_expert_shared_large_accumulators_are_rounded_by_fp32() -> None:
    _, seen = taps_of("expert_shared", "large_accumulators", preset="flash")
    for stage in ("gate_acc", "up_acc", "y_acc"):
        acc = seen[stage]
        assert float(acc.abs().max()) > 2**24
        assert (acc.float().double() != acc.double()).any()
    assert not (seen["gate"] > 10).any()


def test_expert_routed_counts_cover_both_sides_of_every_tile() -> None:
    op = LOADED["expert_routed", "decode"]
    seen = {int(n) for case in op.cases if "counts" in case.tags for n in op.input("recv_expert_count", case.name)}
    assert {0, 1, 15, 16, 17, 31, 32, 33, 63, 64} <= seen
    assert not op.input("recv_expert_count", "empty").any()
    assert (op.input("recv_expert_count", "one_row") == 1).all()
    assert int((op.input("recv_expert_count", "one_expert") > 0).sum()) == 1
    assert int(op.input("recv_expert_count", "skew_hot").max()) == 36


@pytest.mark.parametrize(("case", "stale_weight"), [("stale_tail", False), ("stale_weights", True)])
def test_expert_routed_validity_follows_tiles_and_stale_weights(case: str, stale_weight: bool) -> None:
    op = LOADED["expert_routed", "decode"]
    inputs = op.inputs(case)
    count = inputs["recv_expert_count"].flatten().tolist()
    assert inputs["recv_scale_dq"].isnan().sum() == sum(64 - n for n in count)
    assert inputs["recv_weights"].isnan().any() == stale_weight
    mask = op.valid(inputs)["recv_y"]
    assert mask is not None
    defined = [n if stale_weight else -(-n // 16) * 16 for n in count]
    assert [int(rows) for rows in mask.all(dim=2).sum(dim=1)] == defined
    assert torch.equal(mask.any(dim=2), torch.arange(64) < torch.tensor(defined).unsqueeze(1))
    assert not op.golden(inputs)["recv_y"][:, 20:].any()


def test_expert_outputs_have_the_contracts_magnitude() -> None:
    _, shared = taps_of("expert_shared", "default", preset="flash")
    assert float(shared["sh"].float().std()) == pytest.approx(0.54, abs=0.06)
