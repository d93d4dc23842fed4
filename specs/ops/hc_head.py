"""hc_head: the streams of the last layer collapsed into one hidden vector (contracts/dense.md, 8)."""

from __future__ import annotations

import torch

from specs.distributions import CSA_LAYER8, Constant, Equal, Normal, Rows, TieStreams, Values
from specs.model import Deployment, ModelConfig
from specs.registry import Case, Op
from specs.requirements import require_between, require_boxes, require_multiple
from specs.tensors import TensorSpec

STREAMS = Normal(std=0.05)
CHUNK = 512
"""Columns of one row sum of the device."""


def build(config: ModelConfig, deployment: Deployment) -> Op:
    """x_hc [T, HC, D] BF16, hc_head_fn [HC, HC*D], hc_head_scale [1], hc_head_base [HC] FP32 -> y [T, D] BF16.

    T must be a multiple of 8 and, beyond 16, of 16; HC 4; HC*D a multiple of 512. The cases tagged "eps" are those
    whose outputs depend on HC_EPS or RMS_EPS visibly.
    """
    tokens, hidden, streams = deployment.tokens, config.hidden_size, config.hc_mult
    require_multiple("hc_head", "T", tokens, 8)
    require_boxes("hc_head", tokens)
    require_between("hc_head", "HC", streams, 4, 4)
    require_multiple("hc_head", "HC_DIM", config.hc_dim, CHUNK)
    return Op(
        name="hc_head",
        config=config,
        deployment=deployment,
        signature=(
            TensorSpec("x_hc", (tokens, streams, hidden), torch.bfloat16, STREAMS, "in"),
            TensorSpec("hc_head_fn", (streams, config.hc_dim), torch.float32, CSA_LAYER8.fn(config.hc_dim), "in"),
            TensorSpec("hc_head_scale", (1,), torch.float32, Values(CSA_LAYER8.scale[:1]), "in"),
            TensorSpec("hc_head_base", (streams,), torch.float32, Values(CSA_LAYER8.base[:4]), "in"),
            TensorSpec("y", (tokens, hidden), torch.bfloat16, None, "out"),
        ),
        cases=CASES,
        parameters={"hc_eps": config.hc_eps, "rms_eps": config.rms_norm_eps},
    )


ZERO = Constant(0.0)
CASES = (
    Case("default", tags=("default", "real")),
    # With the real base stream 0 has nearly all the weight; here every gate counts.
    Case("even_gates", {"hc_head_base": Normal(), "hc_head_scale": Constant(0.3)}),
    Case("unit_scale", {"x_hc": Normal(), "hc_head_base": Normal()}, tags=("magnitude",)),
    # Gates from the base alone, equal for every token.
    Case("base_only", {"hc_head_fn": ZERO, "hc_head_base": Normal()}, tags=("exact",)),
    Case("equal_streams", {"x_hc": Equal(STREAMS, axis=1), "hc_head_base": Normal()}),
    Case("zero_tokens", {"x_hc": Rows(STREAMS, (None, ZERO))}, tags=("edge",)),
    # Mean squares around RMS_EPS.
    Case(
        "tiny_tokens",
        {
            "x_hc": Rows(STREAMS, (Normal(std=1e-4), Normal(std=1e-3), Constant(1e-6), Normal(std=1e-2))),
            "hc_head_base": Normal(),
        },
        tags=("edge", "eps", "magnitude"),
    ),
    Case("large_tokens", {"x_hc": Rows(Normal(std=1e3), (None, Normal(std=1e8)))}, tags=("magnitude",)),
    # All gates are closed but for HC_EPS: y is about 1e-6 of the sum. exp(-logit) overflows below -88.7.
    Case("closed_gates", {"hc_head_base": Values((-30.0, -60.0, -40.0, -25.0))}, tags=("edge", "eps", "extreme")),
    Case("extreme_logits", {"hc_head_base": Values((-100.0, 100.0, -89.0, 40.0))}, tags=("edge", "extreme")),
    # Gates of 1 + HC_EPS, so that y falls exactly between two BF16 values.
    Case(
        "bf16_ties",
        {"x_hc": TieStreams(), "hc_head_fn": ZERO, "hc_head_base": Constant(30.0)},
        tags=("edge", "rounding"),
    ),
)
