"""hc_post: hyper-connection post-mix, the next streams of a token (contracts/hc_gate_experts.md, 2)."""

from __future__ import annotations

import torch

from specs.distributions import (
    Constant,
    FromHcPre,
    IdentityComb,
    Normal,
    OneSidedComb,
    Rows,
    RowStochasticComb,
    SigmoidGate,
)
from specs.model import Deployment, ModelConfig
from specs.registry import Case, Op
from specs.requirements import require_between, require_multiple
from specs.tensors import TensorSpec

STREAM = Normal(std=0.05)
CASES = (
    Case("default", tags=("default",)),
    Case("asymmetric", {"comb": OneSidedComb()}),
    Case("unit_scale", {"x": Normal(), "residual": Normal()}, tags=("magnitude",)),
    # Columns of comb sum to 1 here, rows do not.
    Case("from_hc_pre", {"post": FromHcPre("post"), "comb": FromHcPre("comb")}, tags=("composed",)),
    # y equals residual, up to the sign of zero.
    Case("identity", {"post": Constant(0.0), "comb": IdentityComb()}, tags=("exact",)),
    # Each stream of y equals x.
    Case("replace", {"post": Constant(1.0), "comb": Constant(0.0)}, tags=("exact",)),
    Case(
        "zero_rows",
        {"x": Rows(STREAM, (None, Constant(0.0))), "residual": Rows(STREAM, (None, Constant(0.0)))},
        tags=("edge",),
    ),
    Case("large", {"x": Normal(std=1e4), "residual": Normal(std=1e4)}, tags=("magnitude",)),
)


def build(config: ModelConfig, deployment: Deployment) -> Op:
    """x [T, D], residual [T, HC, D] BF16, post [T, HC], comb [T, HC*HC] FP32 -> y [T, HC, D] BF16.

    T must be a multiple of 4 and HC 4.
    """
    tokens, hidden, streams = deployment.tokens, config.hidden_size, config.hc_mult
    require_multiple("hc_post", "T", tokens, 4)
    require_between("hc_post", "HC", streams, 4, 4)
    return Op(
        name="hc_post",
        config=config,
        deployment=deployment,
        signature=(
            TensorSpec("x", (tokens, hidden), torch.bfloat16, STREAM, "in"),
            TensorSpec("residual", (tokens, streams, hidden), torch.bfloat16, STREAM, "in"),
            TensorSpec("post", (tokens, streams), torch.float32, SigmoidGate(), "in"),
            TensorSpec("comb", (tokens, streams * streams), torch.float32, RowStochasticComb(), "in"),
            TensorSpec("y", (tokens, streams, hidden), torch.bfloat16, None, "out"),
        ),
        cases=CASES,
    )
