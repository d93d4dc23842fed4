"""Receive capacity of the distributed MoE: lane loads of a routing, and the depths that hold it.

contracts/moe_and_layers.md, section 8. Every source rank has a lane of RECV_MAX / EP rows at every expert. A depth is
RECV_MAX, the rows of all lanes of one expert: a multiple of 16.
"""

from __future__ import annotations

import math

from torch import Tensor

from goldens.numerics.routes import expect_capacity, lane_loads
from specs.model import RECV_TILE, Deployment, ModelConfig


def worst_case_depth(deployment: Deployment) -> int:
    """EP*T: what no routing with distinct ids per token can overflow."""
    return deployment.ep_world_size * deployment.tokens


def formula_depth(config: ModelConfig, deployment: Deployment, safety: float) -> int:
    """The historical formula of 8.2: `safety` times the uniform load per expert, over all sources, made legal."""
    routes = deployment.ep_world_size * deployment.tokens * config.num_experts_per_tok
    return legal_depth(safety * routes / config.n_routed_experts)


def legal_depth(rows: float) -> int:
    """The smallest depth of at least so many rows."""
    return max(1, math.ceil(rows / RECV_TILE)) * RECV_TILE


def smallest_depth(loads: Tensor) -> int:
    """The smallest depth whose lanes hold loads [EP, N]: rows of each source for each expert."""
    return legal_depth(loads.shape[0] * int(loads.max()))


def refuse_overflow(op: str, indices: Tensor, num_tokens: Tensor, config: ModelConfig, deployment: Deployment) -> None:
    """Raise CapacityError if a lane load of ids [EP, T, K] exceeds the depth of a lane."""
    expect_capacity(op, lane_loads(indices, num_tokens, config.n_routed_experts), deployment.max_per_src)
