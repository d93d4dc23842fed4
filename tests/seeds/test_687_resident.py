"""Seed #687, weights stay on the devices: its claims, one test per row (contracts/moe_and_layers.md, 15.1)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from specs.distributions import Normal
from specs.errors import SpecError
from specs.registry import Op, all_ops, load_op
from specs.residency import CLASSES, classes
from specs.tensors import ScalarSpec, TensorSpec

MOE_RESIDENT = {
    *("hc_ffn_fn", "hc_ffn_scale", "hc_ffn_base", "norm_w", "gate_w", "gate_bias", "tid2eid"),
    *("routed_w1", "routed_w1_scale", "routed_w3", "routed_w3_scale", "routed_w2", "routed_w2_scale"),
    *("shared_w1", "shared_w1_scale", "shared_w3", "shared_w3_scale", "shared_w2", "shared_w2_scale"),
}
"""6.6, by name."""
RESIDENT = {"moe": 19, "lm_head": 1, "moe_dispatch": 0, "moe_combine": 0}
"""How many names of each program are resident."""


def programs() -> list[str]:
    """The multi-rank programs that there are."""
    return [name for name in all_ops() if load_op(name).world > 1]


def tensor(op: Op, name: str) -> TensorSpec:
    return next(spec for spec in op.signature if isinstance(spec, TensorSpec) and spec.name == name)


def with_tensor(op: Op, spec: TensorSpec) -> Op:
    """The op with one of its tensors specified otherwise."""
    return replace(op, signature=tuple(spec if one.name == spec.name else one for one in op.signature))


@pytest.mark.parametrize("name", programs())
def test_687_2_five_disjoint_classes_cover_all_tensors(name: str) -> None:
    op = load_op(name)
    by_class = classes(op)
    assert tuple(by_class) == CLASSES
    together = [tensor for names in by_class.values() for tensor in names]
    assert len(together) == len(set(together))
    assert set(together) == {spec.name for spec in op.signature if not isinstance(spec, ScalarSpec)}
    assert name not in RESIDENT or len(by_class["resident"]) == RESIDENT[name]


def test_687_2_the_resident_names_of_moe_are_the_contracts() -> None:
    by_class = classes(load_op("moe"))
    assert set(by_class["resident"]) == MOE_RESIDENT
    assert by_class["activation"] == ("x_hc",)
    assert by_class["metadata"] == ("input_ids",)
    assert by_class["output"] == ("x_next", "overflow")
    assert by_class["cache"] == ()


def test_687_2_a_kernel_of_one_chip_has_no_classes() -> None:
    with pytest.raises(SpecError, match=r"^gate runs on one chip"):
        classes(load_op("gate"))


@pytest.mark.parametrize("mode", ["stackd", "Stacked", True, -1, 1.0])
def test_687_4_an_unknown_mode_is_refused_after_construction_too(mode: object) -> None:
    with pytest.raises(SpecError, match="routed_w1: resident="):
        tensor(load_op("moe"), "routed_w1").replace(resident=mode)


@pytest.mark.parametrize("name", ["x_next", "overflow"])
@pytest.mark.parametrize("mode", ["stacked", 0])
def test_687_4_and_5_an_output_cannot_be_made_resident(name: str, mode: object) -> None:
    """It would be compared with the host's placeholder: the mark is refused, so no run begins."""
    with pytest.raises(SpecError, match=f"{name}: an output cannot be resident"):
        tensor(load_op("moe"), name).replace(resident=mode)
    with pytest.raises(AttributeError):
        tensor(load_op("moe"), name).resident = mode  # type: ignore[misc, assignment]


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_687_6_shards_are_the_slices_of_the_leading_axis(ranks: int) -> None:
    op = load_op("moe", ep_world_size=ranks)
    assert all(tensor(op, name).resident == "stacked" for name in MOE_RESIDENT)
    assert all(tensor(op, name).shape[0] == ranks for name in MOE_RESIDENT)


@pytest.mark.parametrize("extent", [1, 3, 4])
def test_687_6_another_leading_extent_than_the_world_is_refused(extent: int) -> None:
    op = load_op("moe", ep_world_size=2)
    wrong = tensor(op, "norm_w").replace(shape=(extent, 256), init=Normal())
    with pytest.raises(SpecError, match=rf"moe.norm_w: resident='stacked' .* which has {extent}, expected 2$"):
        with_tensor(op, wrong)


def test_687_6_a_whole_tensor_has_a_worker_of_the_world() -> None:
    op = load_op("moe", ep_world_size=2)
    weight = tensor(op, "norm_w")
    for worker in (0, 1):
        assert tensor(with_tensor(op, weight.replace(resident=worker)), "norm_w").resident == worker
    with pytest.raises(SpecError, match="norm_w: resident=2, but there are 2 ranks"):
        with_tensor(op, weight.replace(resident=2))


def test_687_1_residency_does_not_reach_the_values() -> None:
    """The inputs and the golden of a program without any mark are the same, bit for bit."""
    op = load_op("moe", ep_world_size=2)
    bare = replace(
        op,
        signature=tuple(s if isinstance(s, ScalarSpec) else s.replace(resident=None) for s in op.signature),
    )
    marked, unmarked = op.inputs("score_bias"), bare.inputs("score_bias")
    for name, value in marked.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(unmarked[name]))
    assert torch.equal(op.golden(marked)["x_next"], bare.golden(unmarked)["x_next"])
