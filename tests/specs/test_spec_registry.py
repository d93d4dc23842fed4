"""load_op, Op and Case: names, sizes, inputs that are checked, streams that are independent."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels import sizes as kernel_sizes_file
from specs.distributions import Constant, Normal
from specs.errors import SpecError
from specs.model import DEPLOYMENTS, PRESETS, TINY
from specs.registry import Case, Op, all_ops, kernel_sizes, load_op
from specs.tensors import ScalarSpec, TensorSpec

SIX = ["expert_routed", "expert_shared", "gate", "hc_post", "hc_pre", "rms_norm"]
RANDOM_INPUTS = [("gate", "x_mixed"), ("gate", "tid2eid"), ("expert_routed", "routed_w2"), ("hc_post", "comb")]


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def test_all_ops_are_sorted_and_there() -> None:
    assert set(SIX) <= set(all_ops())
    assert all_ops() == sorted(all_ops())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gaet",), "unknown op 'gaet': did you mean 'gate'. known: .*rms_norm"),
        (("gate", "flsh"), "unknown preset 'flsh': did you mean 'flash'. known: tiny, demo, flash, pro"),
        (("gate", "tiny", "decod"), "unknown deployment 'decod': did you mean 'decode'"),
        (("registry",), "unknown op 'registry'"),
    ],
)
def test_rejects_unknown_names(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load_op(*arguments)


def test_rejects_unknown_overrides_and_cases() -> None:
    with pytest.raises(SpecError, match="unknown override 'token': did you mean 'tokens'"):
        load_op("gate", token=8)
    with pytest.raises(SpecError, match="unknown case of gate 'hsh': did you mean 'hash'"):
        load_op("gate").inputs("hsh")


@pytest.mark.parametrize("seed", [-1, 1.0, "3", True, None])
def test_rejects_seeds(seed: Any) -> None:
    with pytest.raises(SpecError, match=r"seed is .*, expected an int >= 0"):
        load_op("rms_norm").inputs("default", seed)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("rms_norm", {"tokens": 12}, "T = 12 is no multiple of 8"),
        ("rms_norm", {"hidden_size": 320}, "D = 320 is no multiple of 128"),
        ("hc_pre", {"tokens": 4}, "T = 4 is no multiple of 8"),
        ("hc_pre", {"hc_mult": 2}, "HC = 2 is outside 4..4"),
        ("hc_post", {"tokens": 6}, "T = 6 is no multiple of 4"),
        ("gate", {"hidden_size": 384}, "D = 384 is no multiple of 256"),
        ("gate", {"n_routed_experts": 24}, "N = 24 is no multiple of 16"),
        ("gate", {"n_routed_experts": 528}, "N = 528 is outside 16..512"),
        ("gate", {"num_experts_per_tok": 9}, "K = 9 is outside 1..8"),
        ("expert_shared", {"tokens": 24}, "T = 24 is more than 16 and no multiple of 16"),
        ("expert_shared", {"moe_intermediate_size": 64}, "I = 64 is no multiple of 128"),
        ("expert_routed", {"tokens": 5}, "RECV_MAX = 40 is no multiple of 16"),
        ("expert_routed", {"hidden_size": 272}, "D = 272 is no multiple of 32"),
    ],
)
def test_rejects_sizes_that_a_kernel_would_truncate(name: str, overrides: dict[str, int], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load_op(name, **overrides)


WHOLE_TILES_OF_EXPERTS = ("moe", "moe_combine", "moe_dispatch")
"""Ops whose ranks hold a multiple of 8 experts: the 16 of DEMO are enough for two ranks."""


def refusal(name: str, preset: str, deployment: str) -> str | None:
    """Why an op of a decode step has no such configuration; None where it must have it."""
    if not name.startswith("decode_") or name == "decode_metadata":
        return None
    if deployment == "prefill":
        return "prefill has ops of its own"
    return r"MAX_SEQ_LEN = 1048576 is outside 512\.\.16384" if preset == "pro" else None


EVERY_CONFIGURATION = list(itertools.product(all_ops(), sorted(PRESETS), sorted(DEPLOYMENTS)))


@pytest.mark.parametrize(("name", "preset", "deployment"), [c for c in EVERY_CONFIGURATION if refusal(*c)])
def test_rejects_configurations_that_a_decode_step_does_not_have(name: str, preset: str, deployment: str) -> None:
    with pytest.raises(SpecError, match=refusal(name, preset, deployment)):
        load_op(name, preset, deployment)


@pytest.mark.parametrize(("name", "preset", "deployment"), [c for c in EVERY_CONFIGURATION if not refusal(*c)])
def test_accepts_every_other_preset_and_deployment(name: str, preset: str, deployment: str) -> None:
    overrides = {}
    if preset == "demo" and name in WHOLE_TILES_OF_EXPERTS:
        with pytest.raises(SpecError, match=r"N_LOCAL = 2 is no multiple of 8"):
            load_op(name, preset, deployment)
        overrides = {"ep_world_size": 2, "n_routed_experts": 16}
    op = load_op(name, preset, deployment, **overrides)
    assert op.case("default") is op.cases[0]
    assert op.kernel == Path(__file__).parents[2] / "kernels" / f"{name}.py"
    assert op.sizes["D"] == op.config.hidden_size


def test_sizes_give_every_model_and_deployment_name_of_the_kernels() -> None:
    text = Path(kernel_sizes_file.__file__).read_text()
    configured = text[: text.index("# INT8 quantisation")]
    names = set(re.findall(r"^([A-Z][A-Z0-9_]*) =", configured, re.MULTILINE))
    given = kernel_sizes(PRESETS["flash"], DEPLOYMENTS["decode"])
    assert set(given) == names
    assert {name: getattr(kernel_sizes_file, name) for name in names} == dict(given)


def test_a_smaller_world_keeps_the_experts_per_rank() -> None:
    op = load_op("gate", ep_world_size=2)
    assert op.sizes["N_EXPERTS"] == TINY.n_routed_experts // 4
    assert op.sizes["N_LOCAL"] == TINY.n_routed_experts // 8
    assert load_op("gate", ep_world_size=2, n_routed_experts=64).sizes["N_LOCAL"] == 32
    with pytest.raises(SpecError, match="ep_world_size is 16, expected 2, 4 or 8"):
        load_op("gate", ep_world_size=16)


@pytest.mark.parametrize("shards", [2, 4, 8])
def test_the_vocabulary_is_sharded_over_the_world_asked_for(shards: int) -> None:
    sizes = load_op("gate", "flash", tp_size=shards).sizes
    assert (sizes["TP_SIZE"], sizes["VOCAB_PER_TP"]) == (shards, {2: 64640, 4: 32320, 8: 16160}[shards])
    assert sizes["N_LOCAL"] == 32  # the experts' world is another


def test_windows_have_room_for_every_deployment() -> None:
    assert load_op("gate").sizes["T_MAX"] == 128
    assert load_op("gate", deployment="prefill", tokens=256).sizes["T_MAX"] == 256


def test_epsilons_are_separate_overrides() -> None:
    op = load_op("hc_pre", hc_eps=1e-3, rms_norm_eps=1e-5)
    assert (op.parameters["hc_eps"], op.parameters["rms_eps"]) == (1e-3, 1e-5)
    assert (op.sizes["HC_EPS"], op.sizes["RMS_EPS"]) == (1e-3, 1e-5)
    swapped = load_op("hc_pre", hc_eps=1e-5, rms_norm_eps=1e-3)
    assert any("eps" in case.tags for case in op.cases)
    for case in op.cases:
        if "eps" in case.tags:
            inputs = op.inputs(case.name)
            assert not torch.equal(op.golden(inputs)["comb"], swapped.golden(inputs)["comb"])


@pytest.mark.parametrize(("name", "tensor"), RANDOM_INPUTS)
def test_a_tensor_alone_has_the_bits_it_has_among_the_others(name: str, tensor: str) -> None:
    op = load_op(name)
    assert same_bits(op.input(tensor, seed=3), op.inputs(seed=3)[tensor])


def test_the_order_of_drawing_changes_nothing() -> None:
    op = load_op("expert_routed")
    names = [s.name for s in op.inputs_spec]
    forward, backward = op.context("default", 1), op.context("default", 1)
    drawn = {name: forward.tensor(name) for name in names}
    for name in reversed(names):
        assert same_bits(backward.tensor(name), drawn[name])


@pytest.mark.parametrize(("name", "tensor"), RANDOM_INPUTS)
def test_case_seed_and_tensor_change_the_stream(name: str, tensor: str) -> None:
    op = load_op(name)
    base = op.input(tensor, seed=0)
    assert not torch.equal(base, op.input(tensor, seed=1))
    ctx = op.context("default", 0)
    assert not torch.equal(
        base, ctx.spec(tensor).replace(name="other").init.draw(ctx, ctx.spec(tensor).replace(name="other"))
    )


def test_the_case_changes_tensors_that_it_does_not_override() -> None:
    op = load_op("gate")
    assert "x_mixed" not in op.case("no_bias").overrides
    assert not torch.equal(op.input("x_mixed", "no_bias"), op.input("x_mixed", "default"))


def test_tensors_are_fresh_for_every_call() -> None:
    op = load_op("expert_routed")
    first, second = op.inputs(), op.inputs()
    for name, tensor in first.items():
        before = second[name].clone()
        tensor.zero_()
        assert same_bits(second[name], before)
        assert same_bits(op.input(name), before)
    storages = [t.untyped_storage().data_ptr() for t in second.values()]
    assert len(set(storages)) == len(storages)


def test_threads_and_the_global_generators_do_not_matter() -> None:
    op = load_op("expert_shared")
    before = op.input("shared_w1")
    state = torch.random.get_rng_state()
    torch.manual_seed(1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert same_bits(op.input("shared_w1"), before)
        assert same_bits(op.input("shared_w1_scale"), op.inputs()["shared_w1_scale"])
    finally:
        torch.set_num_threads(threads)
        torch.random.set_rng_state(state)


def tampered(change: dict[str, Any]) -> dict[str, Any]:
    return {**load_op("gate").inputs(), **change}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_mixed": torch.zeros(8, 256)}, r"gate.x_mixed: got torch.float32 \(8, 256\), expected torch.bfloat16"),
        (
            {"norm_w": torch.zeros(1, dtype=torch.bfloat16)},
            r"gate.norm_w: got torch.bfloat16 \(1,\), expected .*\(256,\)",
        ),
        ({"gate_bias": 0.0}, "gate.gate_bias: got float, expected a tensor"),
        ({"layer_id": torch.tensor(1)}, "gate.layer_id: got a tensor"),
        ({"layer_id": 1.5}, "layer_id: value 1.5 is a float"),
        ({"num_tokens": 2**31}, "num_tokens: .*outside"),
        ({"x_mix": torch.zeros(1)}, "unknown input of gate 'x_mix': did you mean 'x_mixed'"),
    ],
)
def test_rejects_inputs_that_do_not_fit_the_signature(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load_op("gate").golden(tampered(change))


def test_rejects_missing_inputs() -> None:
    inputs = load_op("gate").inputs()
    del inputs["norm_w"]
    with pytest.raises(SpecError, match="gate: input norm_w is missing"):
        load_op("gate").golden(inputs)


def op_with(*cases: Case, spec: TensorSpec | None = None) -> Op:
    x = spec or TensorSpec("x", (8,), torch.float32, Normal(), "in")
    n = ScalarSpec("n", torch.int32, 3)
    return Op("rms_norm", TINY, DEPLOYMENTS["decode"], (x, n), cases)


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        ((), "the first case must be 'default'"),
        ((Case("other"),), "the first case must be 'default'"),
        ((Case("default"), Case("default")), "two of its cases are called 'default'"),
        ((Case("default", {"y": Normal()}),), "unknown input tensor of rms_norm in case 'default' 'y'"),
        ((Case("default", {"n": Normal()}),), "unknown input tensor"),
        ((Case("default", scalars={"m": 1}),), "unknown scalar of rms_norm in case 'default' 'm'"),
        ((Case("default", scalars={"n": 2.5}),), "scalar n: value 2.5 is a float"),
    ],
)
def test_rejects_cases(cases: tuple[Case, ...], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        op_with(*cases)


def test_accepts_cases_with_other_scalars_and_distributions() -> None:
    op = op_with(Case("default"), Case("seven", {"x": Constant(7.0)}, {"n": 7}))
    inputs = op.inputs("seven")
    assert list(inputs) == ["x", "n"]
    assert inputs["n"] == 7
    assert inputs["x"].tolist() == [7.0] * 8
    assert op.inputs()["n"] == 3


def test_rejects_a_distribution_that_draws_something_else() -> None:
    class Wrong:
        def draw(self, ctx: object, spec: TensorSpec) -> torch.Tensor:
            return torch.zeros(2, *spec.shape)

    with pytest.raises(SpecError, match=r"rms_norm.x: Wrong drew torch.float32 \(2, 8\), expected contiguous"):
        op_with(Case("default", {"x": Wrong()})).inputs()


def test_rejects_tensors_that_need_each_other() -> None:
    class NeedsItself:
        def draw(self, ctx: Any, spec: TensorSpec) -> torch.Tensor:
            tensor: torch.Tensor = ctx.tensor("x")
            return tensor

    with pytest.raises(SpecError, match="x -> x need each other"):
        op_with(Case("default", {"x": NeedsItself()})).inputs()
