"""rms_norm: RMS normalisation of token rows with a learned weight (contracts/dense.md, 4)."""

from __future__ import annotations

import torch

from specs.distributions import NORM_TIE_WEIGHT, Constant, Normal, Rows, TieRows
from specs.model import Deployment, ModelConfig
from specs.registry import Case, Op
from specs.requirements import require_multiple
from specs.tensors import TensorSpec

X = Normal(mean=-0.5)
CASES = (
    Case("default", tags=("default",)),
    Case("unit_weight", {"norm_w": Constant(1.0)}),
    Case("wide_weight", {"norm_w": Normal(std=8.0)}, tags=("magnitude",)),
    Case("zero_rows", {"x": Rows(X, (None, Constant(0.0)))}, tags=("edge",)),
    # EPS decides: a constant row of 1e-6, mean squares of 1e-8 to 1e-4, and a row of subnormal squares.
    Case(
        "tiny",
        {"x": Rows(X, (Constant(1e-6), Normal(std=1e-4), Normal(std=1e-3), Normal(std=1e-2), Normal(std=1e-22)))},
        tags=("edge", "magnitude"),
    ),
    Case("large", {"x": Rows(Normal(std=1e3), (None, Normal(std=1e8), Normal(std=1e16)))}, tags=("magnitude",)),
    # The sum of squares overflows, 1/rms is 0 and the whole row becomes 0 (4.4); other rows are untouched.
    Case("overflow", {"x": Rows(X, (None, Normal(std=1e21)))}, tags=("edge", "extreme")),
    # Three lanes of 16 lie exactly between two BF16 values.
    Case("bf16_ties", {"x": TieRows(), "norm_w": Constant(NORM_TIE_WEIGHT)}, tags=("edge", "rounding")),
)


def build(config: ModelConfig, deployment: Deployment) -> Op:
    """x [T, D] BF16, norm_w [D] BF16 -> x_normed [T, D] BF16. T must be a multiple of 8, D of 128."""
    tokens, hidden = deployment.tokens, config.hidden_size
    require_multiple("rms_norm", "T", tokens, 8)
    require_multiple("rms_norm", "D", hidden, 128)
    return Op(
        name="rms_norm",
        config=config,
        deployment=deployment,
        signature=(
            TensorSpec("x", (tokens, hidden), torch.bfloat16, X, "in"),
            TensorSpec("norm_w", (hidden,), torch.bfloat16, Normal(mean=1.0, std=0.1), "in"),
            TensorSpec("x_normed", (tokens, hidden), torch.bfloat16, None, "out"),
        ),
        cases=CASES,
        parameters={"rms_eps": config.rms_norm_eps},
    )
