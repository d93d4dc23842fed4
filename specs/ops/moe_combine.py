"""moe_combine: expert rows back to their tokens, and their sum, a host program (contracts/moe_and_layers.md, 4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from goldens.numerics.routes import active_mask
from specs.distributions import (
    CompactRows,
    Constant,
    DistinctTable,
    Integers,
    MatchingCounts,
    Normal,
    RouteKeys,
    Rows,
    TokenRoutes,
)
from specs.model import Deployment, ModelConfig
from specs.ops.moe_dispatch import routings, token_count_cases
from specs.registry import Case, Inputs, Masks, Op
from specs.requirements import require_multiple
from specs.tensors import Distribution, TensorSpec

KEYS = "recv_r_route_out"
NO_KEY = Constant(-1)
ROUTED = Normal(std=0.05)
SHARED = Normal(std=0.1)


def build(config: ModelConfig, deployment: Deployment) -> Op:
    """recv_y [EP, N_LOCAL, RECV_MAX, D] BF16, recv_r_route_out [EP, N_LOCAL, RECV_MAX] INT32, sh [EP, T, D] BF16,
    recv_meta [EP, EP, N_LOCAL], num_tokens [EP, 1] INT32 -> ffn_out [EP, T, D], routed_y_buf [EP, T*K, D] BF16.

    recv_meta is [rank, source, local expert]; the program loads each rank's window from it. routed_y_buf is a copy of
    each rank's window, defined in the rows of active tokens. Beyond the counts recv_y and its keys may hold anything.

    D must be a multiple of 32, RECV_MAX of 16 and N_LOCAL of 8.
    """
    ranks, tokens, hidden = deployment.ep_world_size, deployment.tokens, config.hidden_size
    local, rows, width = deployment.local_experts(config), deployment.recv_max, config.num_experts_per_tok
    require_multiple("moe_combine", "D", hidden, 32)
    require_multiple("moe_combine", "RECV_MAX", rows, 16)
    require_multiple("moe_combine", "N_LOCAL", local, 8)  # a row of counts is whole tiles of 32 bytes
    bf16, int32 = torch.bfloat16, torch.int32
    return Op(
        name="moe_combine",
        config=config,
        deployment=deployment,
        signature=(
            TensorSpec("recv_y", (ranks, local, rows, hidden), bf16, ROUTED, "in"),
            TensorSpec(KEYS, (ranks, local, rows), int32, keys(TokenRoutes(DistinctTable())), "in"),
            TensorSpec("sh", (ranks, tokens, hidden), bf16, SHARED, "in"),
            TensorSpec("recv_meta", (ranks, ranks, local), int32, MatchingCounts(KEYS), "in"),
            TensorSpec("num_tokens", (ranks, 1), int32, Constant(tokens), "in"),
            TensorSpec("ffn_out", (ranks, tokens, hidden), bf16, None, "out"),
            TensorSpec("routed_y_buf", (ranks, tokens * width, hidden), bf16, None, "out"),
        ),
        cases=(
            Case("default", tags=("default",)),
            *(Case(name, {KEYS: keys(ids)}, tags=("skew",)) for name, ids in routings().items()),
            *token_count_cases(tokens),
            *_value_cases(),
        ),
        parameters={"topk": width},
        validity=_validity,
        world=ranks,
    )


def keys(ids: Distribution, tail: Distribution = NO_KEY) -> RouteKeys:
    """Route keys for ids [EP, T, K]."""
    return RouteKeys(ids, "num_tokens", tail)


def _value_cases() -> tuple[Case, ...]:
    zero = Constant(0.0)
    stale: dict[str, Distribution] = {
        "recv_y": CompactRows(KEYS, ROUTED, tail=Constant(math.nan)),
        KEYS: keys(TokenRoutes(DistinctTable()), tail=Integers(-(2**31), 2**31 - 1)),
    }
    return (
        # ffn_out is sh, bit for bit; where sh is -0 a routed +0 makes it +0.
        Case("routed_zero", {"recv_y": zero}, tags=("edge", "exact")),
        Case("shared_zero", {"sh": zero}, tags=("edge",)),
        Case("negative_zero", {"recv_y": zero, "sh": Constant(-0.0)}, tags=("edge", "exact")),
        # Partial sums round: another order, or an accumulator in BF16, shows in many elements.
        Case("magnitudes", {"recv_y": Normal(std=4.0), "sh": Normal(std=64.0)}, tags=("magnitude",)),
        # The experts of every other rank outweigh the rest: where two of a token's cancel, the order decides.
        Case("cancelling", {"recv_y": Rows(ROUTED, (None, Normal(std=1e4)))}, tags=("magnitude",)),
        # Beyond the counts rows are NaN and keys point anywhere.
        Case("stale", stale, tags=("edge", "stale")),
        Case("stale_partial", {**stale, "num_tokens": Constant(3)}, tags=("edge", "stale", "partial")),
    )


def _validity(op: Op, inputs: Inputs) -> Masks:
    """ffn_out is defined everywhere, routed_y_buf in the rows of active tokens (4.4)."""
    num_tokens = inputs["num_tokens"]
    assert isinstance(num_tokens, Tensor)
    active = active_mask(num_tokens, op.deployment.tokens)
    rows = active.repeat_interleave(op.config.num_experts_per_tok, dim=1).unsqueeze(2)
    return {"ffn_out": None, "routed_y_buf": rows.expand(*rows.shape[:2], op.config.hidden_size)}
