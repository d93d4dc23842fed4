"""mtp_projection: input projection of the multi-token-prediction layer in W8A8 (contracts/dense.md, 9)."""

from __future__ import annotations

import torch

from specs.distributions import (
    Q8,
    Constant,
    Integers,
    MatchingScale,
    MxFp8Weight,
    Normal,
    PerToken,
    Rows,
    Uniform,
)
from specs.model import Deployment, ModelConfig
from specs.registry import Case, Op
from specs.requirements import require_boxes, require_multiple
from specs.tensors import TensorSpec

NORMAL, ZERO = Normal(), Constant(0.0)


def build(config: ModelConfig, deployment: Deployment) -> Op:
    """hidden_states, prev_hidden_states [B, S, D] BF16; enorm_w, hnorm_w [D] FP32; per branch weight [D, D] INT8,
    scale [D] and smoothing [D] FP32 -> hidden_states_out [B, S, D] BF16.

    The reference's own inputs are blind to much (9.7): norm weights and smoothing of one, weights of one sign with
    equal scales. Here weights have both signs and channels that differ by more than 10 times, norm weights are not
    one, smoothing covers 5 times. With norm weights of one, moreover, a code is a quotient of two BF16 numbers, which
    falls exactly on .5 in 0.3 % of all cases: there the last bit of 1/rms decides, legally.

    T = B*S must be a multiple of 8 and, beyond 16, of 16; D a multiple of 128.
    """
    hidden = config.hidden_size
    require_multiple("mtp_projection", "T", deployment.tokens, 8)
    require_boxes("mtp_projection", deployment.tokens)
    require_multiple("mtp_projection", "D", hidden, 128)
    rows = (deployment.batch, deployment.seq, hidden)
    fp32, bf16, int8 = torch.float32, torch.bfloat16, torch.int8
    weight = MxFp8Weight(hidden**-0.5, 1.0)
    around_one, smooth = Normal(mean=1.0, std=0.3), Uniform(0.5, 2.5)
    return Op(
        name="mtp_projection",
        config=config,
        deployment=deployment,
        signature=(
            TensorSpec("hidden_states", rows, bf16, NORMAL, "in"),
            TensorSpec("prev_hidden_states", rows, bf16, NORMAL, "in"),
            TensorSpec("enorm_w", (hidden,), fp32, around_one, "in"),
            TensorSpec("hnorm_w", (hidden,), fp32, around_one, "in"),
            TensorSpec("e_proj_w", (hidden, hidden), int8, weight, "in"),
            TensorSpec("e_proj_w_scale", (hidden,), fp32, MatchingScale("e_proj_w"), "in"),
            TensorSpec("e_proj_smooth", (hidden,), fp32, smooth, "in"),
            TensorSpec("h_proj_w", (hidden, hidden), int8, weight, "in"),
            TensorSpec("h_proj_w_scale", (hidden,), fp32, MatchingScale("h_proj_w"), "in"),
            TensorSpec("h_proj_smooth", (hidden,), fp32, smooth, "in"),
            TensorSpec("hidden_states_out", rows, bf16, None, "out"),
        ),
        cases=_cases(hidden),
        parameters={"rms_eps": config.rms_norm_eps},
    )


def _cases(hidden: int) -> tuple[Case, ...]:
    tiny = (None, Normal(std=1e-4), Normal(std=1e-3), Constant(1e-6), Normal(std=1e-2))
    codes = Integers(100, 127)
    one_sided = Q8(Uniform(0.0, hidden**-0.5))
    return (
        Case("default", tags=("default",)),
        # The reference's weights: all outputs of a token share a large common part.
        Case("one_sided", {"e_proj_w": one_sided, "h_proj_w": one_sided}),
        Case("zero_rows", {"hidden_states": PerToken(Rows(NORMAL, (None, ZERO)))}, tags=("edge",)),
        Case("no_previous", {"prev_hidden_states": ZERO}, tags=("edge",)),
        # Mean squares around RMS_EPS.
        Case("tiny_tokens", {"hidden_states": PerToken(Rows(NORMAL, tiny))}, tags=("edge", "eps", "magnitude")),
        Case(
            "large_tokens",
            {"hidden_states": Normal(std=1e3), "prev_hidden_states": Normal(std=1e8)},
            tags=("magnitude",),
        ),
        # Normalised tokens whose amax is around the quantiser's floor of 1e-4.
        Case("tiny_gamma", {"enorm_w": Normal(std=3e-5), "hnorm_w": Normal(std=1e-5)}, tags=("edge", "magnitude")),
        # Codes 100 to 127 everywhere: from 1300 inputs on (FLASH) sums pass 2^24 and FP32 rounds them.
        Case(
            "large_accumulators",
            {
                "hidden_states": Uniform(0.85, 1.0),
                "prev_hidden_states": Uniform(0.85, 1.0),
                "enorm_w": Uniform(0.98, 1.0),
                "hnorm_w": Uniform(0.98, 1.0),
                "e_proj_smooth": Uniform(0.98, 1.0),
                "h_proj_smooth": Uniform(0.98, 1.0),
                "e_proj_w": codes,
                "h_proj_w": codes,
                "e_proj_w_scale": Uniform(1.0 / hidden, 3.0 / hidden),
                "h_proj_w_scale": Uniform(1.0 / hidden, 3.0 / hidden),
            },
            tags=("edge", "magnitude"),
        ),
    )
