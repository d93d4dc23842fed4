"""expert_shared: the shared expert's SwiGLU network in W8A8 (contracts/hc_gate_experts.md, 4)."""

from __future__ import annotations

import math

import torch

from specs.distributions import Q8, Constant, Integers, MatchingScale, MxFp8Weight, Normal, Rows, Uniform
from specs.model import FLASH, Deployment, ModelConfig
from specs.registry import Case, Op
from specs.requirements import require_boxes, require_multiple
from specs.tensors import Distribution, TensorSpec

NORMAL = Normal()
BIG_CODE = 113.5
"""Mean of the codes 100 to 127."""

POSITIVE = Uniform(0.8, 1.0)
TIE_SCALE = 1.2111663818359375 * 2.0**-6  # times 1e-4 / 127 as the quantiser forms it, in FP32: 2^-26


def build(config: ModelConfig, deployment: Deployment) -> Op:
    """x_local_i8 [T, D], x_local_scale_dq [T, 1], shared_w1, shared_w3 [I, D], shared_w2 [D, I] with FP32 scales
    [I], [I], [D] -> sh [T, D] BF16.

    T must be at most 16 or a multiple of 16, D and I multiples of 128 (the blocks of the weights' grid).
    """
    tokens, hidden, inner = deployment.tokens, config.hidden_size, config.moe_intermediate_size
    require_boxes("expert_shared", tokens)
    require_multiple("expert_shared", "D", hidden, 128)
    require_multiple("expert_shared", "I", inner, 128)
    int8, fp32 = torch.int8, torch.float32
    w1, w3, w2 = _weights(config, 1.71e-2, 1.70e-2, 1.68e-2)
    return Op(
        name="expert_shared",
        config=config,
        deployment=deployment,
        signature=(
            TensorSpec("x_local_i8", (tokens, hidden), int8, Q8(), "in"),
            TensorSpec("x_local_scale_dq", (tokens, 1), fp32, MatchingScale("x_local_i8"), "in"),
            TensorSpec("shared_w1", (inner, hidden), int8, w1, "in"),
            TensorSpec("shared_w1_scale", (inner,), fp32, MatchingScale("shared_w1"), "in"),
            TensorSpec("shared_w3", (inner, hidden), int8, w3, "in"),
            TensorSpec("shared_w3_scale", (inner,), fp32, MatchingScale("shared_w3"), "in"),
            TensorSpec("shared_w2", (hidden, inner), int8, w2, "in"),
            TensorSpec("shared_w2_scale", (hidden,), fp32, MatchingScale("shared_w2"), "in"),
            TensorSpec("sh", (tokens, hidden), torch.bfloat16, None, "out"),
        ),
        cases=_cases(config),
        parameters={"swiglu_limit": config.swiglu_limit},
    )


def fan_in_std(std: float, width: int, flash_width: int) -> float:
    """`std` of a FLASH weight of `flash_width` inputs, for `width` inputs: products keep their magnitude."""
    return std * math.sqrt(flash_width / width)


def _weights(config: ModelConfig, w1: float, w3: float, w2: float) -> tuple[MxFp8Weight, ...]:
    """w1, w3 and w2 for dequantised standard deviations at FLASH."""
    hidden, inner = config.hidden_size, config.moe_intermediate_size
    return (
        MxFp8Weight(fan_in_std(w1, hidden, FLASH.hidden_size), 0.50),
        MxFp8Weight(fan_in_std(w3, hidden, FLASH.hidden_size), 0.50),
        MxFp8Weight(fan_in_std(w2, inner, FLASH.moe_intermediate_size), 0.33),
    )


def _cases(config: ModelConfig) -> tuple[Case, ...]:
    def weights(w1: float = 1.71e-2, w3: float = 1.70e-2, w2: float = 1.68e-2) -> dict[str, Distribution]:
        names = ("shared_w1", "shared_w3", "shared_w2")
        return dict(zip(names, _weights(config, w1, w3, w2), strict=True))

    tiny = (None, Normal(std=3e-5), Constant(1e-4), Constant(9.9e-5), Normal(std=1e-5))
    return (
        Case("default", tags=("default",)),
        Case("moe_magnitudes", weights(7.65e-3, 7.39e-3, 2.39e-2), tags=("magnitude",)),
        # The clamp at +-LIM: from above on the gate, on both sides of up, and both at once.
        Case("clamp_gate", weights(w1=0.25), tags=("clamp", "magnitude")),
        Case("clamp_up", weights(w3=0.25), tags=("clamp", "magnitude")),
        Case("clamp", weights(w1=0.25, w3=0.25), tags=("clamp", "magnitude")),
        # No gate of a row is above -LIM: a limit there would make h six times as large.
        Case(
            "gate_below",
            {"x_local_i8": Q8(POSITIVE), **weight_of_gates_below("shared_w1", config)},
            tags=("clamp", "edge"),
        ),
        # Inactive tokens: codes stand, their scale is 0, the output must be exactly 0.
        Case(
            "zero_scale",
            {"x_local_scale_dq": Rows(MatchingScale("x_local_i8"), (None, Constant(0.0)))},
            tags=("edge",),
        ),
        Case("zero_rows", {"x_local_i8": Q8(Rows(NORMAL, (None, Constant(0.0))))}, tags=("edge",)),
        # Rows whose amax is at, just below and far below the quantiser's floor of 1e-4.
        Case("tiny_amax", {"x_local_i8": Q8(Rows(NORMAL, tiny))}, tags=("edge", "magnitude")),
        _large_accumulators(config),
        # Far below the quantiser's floor: row and column scale make 2^-26, and many outputs halves of a BF16 step.
        Case(
            "bf16_ties",
            {"x_local_i8": Q8(Normal(std=2.0**-8)), "shared_w2_scale": Constant(TIE_SCALE)},
            tags=("edge", "rounding"),
        ),
    )


def weight_of_gates_below(name: str, config: ModelConfig) -> dict[str, Distribution]:
    """A weight that makes every gate of a POSITIVE row about -12, with scales that spread by 5 %."""
    scale = 12.0 / (config.hidden_size * 0.9 * BIG_CODE)
    return {name: Integers(-127, -100), f"{name}_scale": Uniform(0.95 * scale, 1.05 * scale)}


def _large_accumulators(config: ModelConfig) -> Case:
    """Codes 100 to 127 everywhere: from 1300 inputs on (FLASH) sums pass 2^24 and FP32 rounds them."""
    codes = Integers(100, 127)
    to_unit = 1.0 / (config.hidden_size * BIG_CODE)  # times a product with codes of about BIG_CODE: about 1
    narrow = Uniform(0.9 * to_unit / BIG_CODE, 1.1 * to_unit / BIG_CODE)  # so that all codes of h are large too
    overrides: dict[str, Distribution] = {
        "x_local_i8": codes,
        "x_local_scale_dq": Uniform(1.0, 3.0),
        "shared_w1": codes,
        "shared_w3": codes,
        "shared_w2": codes,
        "shared_w1_scale": narrow,
        "shared_w3_scale": narrow,
        "shared_w2_scale": Uniform(0.5 * to_unit, 3.0 * to_unit),
    }
    return Case("large_accumulators", overrides, tags=("edge", "magnitude"))
