"""Receive capacity of the distributed MoE: lane loads of a routing, and the depths that hold it.

contracts/moe_and_layers.md, section 8. Every source rank has a lane of RECV_MAX / EP rows at every expert. A depth is
RECV_MAX, the rows of all lanes of one expert: a multiple of 16.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from goldens.gate import gate
from goldens.hc_pre import hc_pre
from goldens.numerics.routes import expect_capacity, lane_loads
from specs.model import RECV_TILE, Deployment, ModelConfig
from specs.tensors import Number

ROUTING_INPUTS = (
    "x_hc", "hc_ffn_fn", "hc_ffn_scale", "hc_ffn_base", "norm_w", "gate_w", "gate_bias", "tid2eid", "input_ids",
)  # fmt: skip
"""Tensors of `moe` that decide who is sent where: no expert weights."""


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


def routed_ids(inputs: Mapping[str, Tensor | Number], config: ModelConfig) -> Tensor:
    """Ids that the router of `moe` chooses, by the goldens of its first two parts. [EP, T, K] INT32

    `inputs` has the ROUTING_INPUTS, layer_id and num_tokens. Raises GoldenInputError for what the router refuses.
    """
    tensors = {name: tensor for name in ROUTING_INPUTS if isinstance(tensor := inputs[name], Tensor)}
    layer_id, num_tokens = int(inputs["layer_id"]), int(inputs["num_tokens"])
    x_hc = tensors["x_hc"]
    if layer_id < config.num_hash_layers:  # ids of a table do not depend on the tokens' values
        x_mixed = torch.zeros(x_hc.shape[0], x_hc.shape[1], x_hc.shape[3], dtype=torch.bfloat16)
    else:
        x_mixed = mixed_tokens(x_hc, [tensors[name][0] for name in ROUTING_INPUTS[1:4]], config)
    ids = [
        gate(
            x_mixed[rank],
            tensors["norm_w"][rank],
            tensors["gate_w"][rank],
            tensors["gate_bias"][rank],
            layer_id,
            num_tokens,
            tensors["tid2eid"][rank],
            tensors["input_ids"][rank],
            rms_eps=config.rms_norm_eps,
            n_hash_layers=config.num_hash_layers,
            routed_scaling=config.routed_scaling_factor,
        )["indices"]
        for rank in range(len(x_hc))
    ]
    return torch.stack(ids)


def mixed_tokens(x_hc: Tensor, parameters: Sequence[Tensor], config: ModelConfig) -> Tensor:
    """x_mixed [EP, T, D] BF16 of the streams [EP, T, HC, D] of all ranks, by the golden of hc_pre.

    parameters   hc_ffn_fn, hc_ffn_scale and hc_ffn_base of one rank
    """
    mixed = hc_pre(
        x_hc.flatten(0, 1),
        *parameters,
        hc_eps=config.hc_eps,
        rms_eps=config.rms_norm_eps,
        sinkhorn_iters=config.hc_sinkhorn_iters,
    )
    return mixed["x_mixed"].view(*x_hc.shape[:2], -1)
