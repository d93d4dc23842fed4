"""expert_routed: the local routed experts of one rank, W8A8 (contracts/hc_gate_experts.md, 5)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from specs.distributions import (
    FULL,
    Constant,
    HistogramCounts,
    HotCounts,
    Integers,
    ListedCounts,
    MatchingScale,
    MxFp4Weight,
    Normal,
    ReceivedQ8,
    ReceivedRows,
    Rows,
    Uniform,
)
from specs.model import FLASH, Deployment, ModelConfig
from specs.ops.expert_shared import POSITIVE, weight_of_gates_below
from specs.registry import Case, Inputs, Masks, Op
from specs.requirements import require_multiple
from specs.tensors import Distribution, TensorSpec

ROW_TILE = 16
COUNT = "recv_expert_count"
TIE_WEIGHT = 1.2111663818359375
"""Times 1e-4 / 127 as the quantiser forms it, in FP32: 2^-20."""


def build(config: ModelConfig, deployment: Deployment) -> Op:
    """recv_x [E, RECV_MAX, D], recv_scale_dq, recv_weights [E, RECV_MAX], recv_expert_count [E, 1], routed_w1,
    routed_w3 [E, I, D], routed_w2 [E, D, I] with FP32 scales -> recv_y [E, RECV_MAX, D] BF16.

    RECV_MAX must be a multiple of 16, D and I multiples of 32.
    """
    experts, rows = deployment.local_experts(config), deployment.recv_max
    hidden, inner = config.hidden_size, config.moe_intermediate_size
    require_multiple("expert_routed", "RECV_MAX", rows, ROW_TILE)
    require_multiple("expert_routed", "D", hidden, 32)
    require_multiple("expert_routed", "I", inner, 32)
    int8, fp32 = torch.int8, torch.float32
    w1, w3, w2 = _weights(config, 2.47e-2, 2.46e-2, 2.44e-2)
    return Op(
        name="expert_routed",
        config=config,
        deployment=deployment,
        signature=(
            TensorSpec("recv_x", (experts, rows, hidden), int8, ReceivedQ8(COUNT), "in"),
            TensorSpec("recv_scale_dq", (experts, rows), fp32, MatchingScale("recv_x"), "in"),
            TensorSpec("recv_weights", (experts, rows), fp32, ReceivedRows(COUNT, Uniform()), "in"),
            TensorSpec(COUNT, (experts, 1), torch.int32, HistogramCounts(), "in"),
            TensorSpec("routed_w1", (experts, inner, hidden), int8, w1, "in"),
            TensorSpec("routed_w1_scale", (experts, inner), fp32, MatchingScale("routed_w1"), "in"),
            TensorSpec("routed_w3", (experts, inner, hidden), int8, w3, "in"),
            TensorSpec("routed_w3_scale", (experts, inner), fp32, MatchingScale("routed_w3"), "in"),
            TensorSpec("routed_w2", (experts, hidden, inner), int8, w2, "in"),
            TensorSpec("routed_w2_scale", (experts, hidden), fp32, MatchingScale("routed_w2"), "in"),
            TensorSpec("recv_y", (experts, rows, hidden), torch.bfloat16, None, "out"),
        ),
        cases=_cases(config),
        parameters={"swiglu_limit": config.swiglu_limit},
        validity=_validity,
    )


def _weights(config: ModelConfig, w1: float, w3: float, w2: float) -> tuple[MxFp4Weight, ...]:
    """w1, w3 and w2 for dequantised standard deviations at FLASH; elsewhere products keep their magnitude."""
    into_inner = math.sqrt(FLASH.hidden_size / config.hidden_size)
    into_hidden = math.sqrt(FLASH.moe_intermediate_size / config.moe_intermediate_size)
    return MxFp4Weight(w1 * into_inner), MxFp4Weight(w3 * into_inner), MxFp4Weight(w2 * into_hidden)


def _cases(config: ModelConfig) -> tuple[Case, ...]:
    def weights(w1: float = 2.47e-2, w3: float = 2.46e-2, w2: float = 2.44e-2) -> dict[str, Distribution]:
        names = ("routed_w1", "routed_w3", "routed_w2")
        return dict(zip(names, _weights(config, w1, w3, w2), strict=True))

    return (
        Case("default", tags=("default",)),
        Case("moe_magnitudes", weights(1.08e-2, 1.10e-2, 2.54e-2), tags=("magnitude",)),
        Case("unit_weights", {"recv_weights": ReceivedRows(COUNT, Constant(1.0))}),
        *_count_cases(),
        Case("clamp_gate", weights(w1=0.25), tags=("clamp", "magnitude")),
        Case("clamp_up", weights(w3=0.25), tags=("clamp", "magnitude")),
        Case("clamp", weights(w1=0.25, w3=0.25), tags=("clamp", "magnitude")),
        Case(
            "gate_below",
            {"recv_x": ReceivedQ8(COUNT, POSITIVE), **weight_of_gates_below("routed_w1", config)},
            tags=("clamp", "edge"),
        ),
        Case(
            "zero_rows",
            {COUNT: ListedCounts((17, 2), 2), "recv_x": ReceivedQ8(COUNT, Rows(Normal(), (None, Constant(0.0))))},
            tags=("edge",),
        ),
        *_stale_cases(),
        _ties(),
    )


def _ties() -> Case:
    """Outputs that are whole multiples of 2^-26, many of them halfway between two BF16 numbers.

    h stays below the quantiser's floor of 1e-4, so the scale of every row is 1e-4 / 127 whatever its last bits are; the
    routing weight makes that 2^-20 exactly.
    """
    return Case(
        "bf16_ties",
        {
            "recv_x": ReceivedQ8(COUNT, Normal(std=2.5e-3)),
            "recv_weights": ReceivedRows(COUNT, Constant(TIE_WEIGHT)),
            "routed_w2_scale": Constant(2.0**-6),
        },
        tags=("edge", "rounding"),
    )


def _count_cases() -> tuple[Case, ...]:
    """Rows per expert on both sides of the row tile of 16, none and all; ListedCounts stops at RECV_MAX."""

    def counted(name: str, distribution: Distribution, *tags: str) -> Case:
        return Case(name, {COUNT: distribution}, tags=("counts", *tags))

    return (
        counted("empty", Constant(0), "edge"),
        counted("one_row", Constant(1), "edge"),
        counted("one_expert", ListedCounts((0, 5)), "edge", "skew"),
        counted("first_tile", ListedCounts((0, 1, 15, 16)), "edge"),
        counted("second_tile", ListedCounts((17, 31, 32, 33)), "edge"),
        counted("full", ListedCounts((FULL, 0, -1, 1)), "edge"),
        counted("skew_zipf", HistogramCounts(alpha=1.2), "skew"),
        counted("skew_hot", HotCounts(share=0.75), "skew"),
    )


def _stale_cases() -> tuple[Case, ...]:
    """Rows that dispatch did not fill hold whatever was there before."""
    counts = ListedCounts((5, 16, 17), 3)
    nan = Constant(math.nan)
    stale_rows: dict[str, Distribution] = {
        COUNT: counts,
        "recv_x": ReceivedQ8(COUNT, tail=Integers(-127, 127)),
        "recv_scale_dq": ReceivedRows(COUNT, MatchingScale("recv_x"), tail=nan),
    }
    finite = ReceivedRows(COUNT, Uniform(), tail=Uniform(0.5, 1.0))
    return (
        Case("stale_tail", {**stale_rows, "recv_weights": finite}, tags=("edge", "stale")),
        Case(
            "stale_weights",
            {**stale_rows, "recv_weights": ReceivedRows(COUNT, Uniform(), tail=nan)},
            tags=("edge", "stale"),
        ),
    )


def _validity(op: Op, inputs: Inputs) -> Masks:
    """Which rows of recv_y are defined (5.4).

    Rows below the count are. So are the other rows of an expert's last tile of 16, which are 0, as long as their
    routing weight is finite (0 times NaN is NaN). Rows beyond that tile are never written. A consumer reads rows
    below the count only.
    """
    count, weights = inputs[COUNT], inputs["recv_weights"]
    assert isinstance(count, Tensor)
    assert isinstance(weights, Tensor)
    row = torch.arange(op.deployment.recv_max)
    written = row < (count + ROW_TILE - 1) // ROW_TILE * ROW_TILE
    defined = (row < count) | (written & weights.isfinite())
    return {"recv_y": defined.unsqueeze(-1).expand(op.outputs[0].shape).contiguous()}
