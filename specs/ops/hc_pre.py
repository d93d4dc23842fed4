"""hc_pre: hyper-connection pre-mix, the sublayer input and the two gates (contracts/hc_gate_experts.md, 1)."""

from __future__ import annotations

import torch

from specs.distributions import (
    CSA_LAYER8,
    FFN_LAYER0,
    HCA_LAYER9,
    SWA_LAYER0,
    Constant,
    HcSet,
    Normal,
    Rows,
    TieStreams,
    Uniform,
    Values,
)
from specs.model import Deployment, ModelConfig
from specs.registry import Case, Op
from specs.requirements import require_between, require_multiple
from specs.tensors import Distribution, TensorSpec

STREAMS = Normal(std=0.05)
K_SLICES = 16
"""Parts that the device splits the flattened streams into."""

# exp(-logit) overflows below -88.7: pre is then HC_EPS and post 0. In comb whole rows vanish but for HC_EPS.
OVERFLOWING_BASE = Values(
    (
        *(-100.0, 100.0, -89.0, 0.0),
        *(-100.0, 100.0, -89.0, 20.0),
        *(90.0, -90.0, 0.0, 1.0),
        *(-60.0, 60.0, 0.0, -1.0),
        *(0.0, -100.0, 3.0, 100.0),
        *(1.0, 0.0, 80.0, -80.0),
    )
)


def build(config: ModelConfig, deployment: Deployment) -> Op:
    """x [T, HC, D] BF16, hc_fn [MIX, HC*D], hc_scale [3], hc_base [MIX] FP32 ->
    x_mixed [T, D] BF16, post [T, HC], comb [T, HC*HC] FP32.

    T must be a multiple of 8, HC 4, HC*D a multiple of 16. HC_EPS and RMS_EPS are the config's `hc_eps` and
    `rms_norm_eps`; the cases tagged "eps" are those whose outputs depend on them visibly.
    """
    tokens, hidden, streams = deployment.tokens, config.hidden_size, config.hc_mult
    require_multiple("hc_pre", "T", tokens, 8)
    require_between("hc_pre", "HC", streams, 4, 4)
    require_multiple("hc_pre", "HC_DIM", config.hc_dim, K_SLICES)
    return Op(
        name="hc_pre",
        config=config,
        deployment=deployment,
        signature=(
            TensorSpec("x", (tokens, streams, hidden), torch.bfloat16, STREAMS, "in"),
            TensorSpec("hc_fn", (config.mix_hc, config.hc_dim), torch.float32, CSA_LAYER8.fn(config.hc_dim), "in"),
            TensorSpec("hc_scale", (3,), torch.float32, CSA_LAYER8.scale_values(), "in"),
            TensorSpec("hc_base", (config.mix_hc,), torch.float32, CSA_LAYER8.base_values(), "in"),
            TensorSpec("x_mixed", (tokens, hidden), torch.bfloat16, None, "out"),
            TensorSpec("post", (tokens, streams), torch.float32, None, "out"),
            TensorSpec("comb", (tokens, streams * streams), torch.float32, None, "out"),
        ),
        cases=_cases(config.hc_dim),
        parameters={
            "hc_eps": config.hc_eps,
            "rms_eps": config.rms_norm_eps,
            "sinkhorn_iters": config.hc_sinkhorn_iters,
        },
    )


def _cases(hc_dim: int) -> tuple[Case, ...]:
    zero = Constant(0.0)
    return (
        Case("default", tags=("default", "real")),
        Case("csa_layer8", {"x": Uniform(-1.0, 1.0)}, tags=("real",)),
        _real("hca_layer9", HCA_LAYER9, hc_dim, Uniform(-1.0, 1.0)),
        _real("swa_layer0", SWA_LAYER0, hc_dim, Uniform(-1.0, 1.0)),
        _real("ffn_layer0", FFN_LAYER0, hc_dim, Normal()),
        # Logits are the base alone; x_mixed is 0.
        Case("zero_tokens", {"x": Rows(STREAMS, (None, zero))}, tags=("edge", "eps")),
        # Mean squares around RMS_EPS.
        Case(
            "tiny_tokens",
            {"x": Rows(STREAMS, (Normal(std=1e-4), Normal(std=1e-3), Constant(1e-6), Normal(std=1e-2)))},
            tags=("edge", "eps", "magnitude"),
        ),
        Case("large_tokens", {"x": Rows(Normal(std=1e3), (None, Normal(std=1e8)))}, tags=("magnitude",)),
        Case("extreme_logits", {"hc_base": OVERFLOWING_BASE}, tags=("edge", "eps", "extreme")),
        # Gates from the base alone: pre 1 + HC_EPS, so that x_mixed falls exactly between BF16 values.
        Case(
            "bf16_ties",
            {"x": TieStreams(), "hc_fn": zero, "hc_base": Values((30.0,) * 4 + (0.0,) * 20)},
            tags=("edge", "rounding"),
        ),
    )


def _real(name: str, parameters: HcSet, hc_dim: int, x: Distribution) -> Case:
    overrides = {
        "x": x,
        "hc_fn": parameters.fn(hc_dim),
        "hc_scale": parameters.scale_values(),
        "hc_base": parameters.base_values(),
    }
    return Case(name, overrides, tags=("real",))
