"""moe_dispatch: routed tokens to the ranks of their experts, a host program (contracts/moe_and_layers.md, 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from goldens.numerics.routes import lane_loads
from specs.capacity import refuse_overflow
from specs.distributions import (
    Q8,
    Constant,
    DistinctTable,
    DuplicateTable,
    HotTable,
    LowestTable,
    MatchingScale,
    NextRankRoutes,
    OneRankTable,
    RoundRobinTable,
    Rows,
    TokenRoutes,
    Uniform,
    ZipfTable,
)
from specs.model import Deployment, ModelConfig
from specs.registry import Case, Inputs, Masks, Op
from specs.requirements import require_multiple
from specs.tensors import Distribution, TensorSpec


def build(config: ModelConfig, deployment: Deployment) -> Op:
    """indices [EP, T, K], x_norm_i8 [EP, T, D], x_norm_scale [EP, T, 1], weights [EP, T, K], num_tokens [EP, 1] ->
    recv_x_out [EP, N_LOCAL, RECV_MAX, D], recv_scale_out, recv_w_out, recv_r_route_out [EP, N_LOCAL, RECV_MAX],
    recv_count_out [EP, N_LOCAL, 1], recv_meta [EP, EP, N_LOCAL], overflow [EP, 4].

    num_tokens is per rank, clamped to 0..T in the program. recv_meta is a copy of each rank's window: [rank, source,
    local expert]. Row r of overflow is (source, expert, load, depth) of the first lane that rank r overfills, by global
    expert id: source r, the rows it would send there and the MAX_PER_SRC that there are; zeros if there is none. A
    rank with such a lane sends no route at all, publishes counts of zero and still notifies every peer.

    D must be a multiple of 32, RECV_MAX of 16 and N_LOCAL of 8.
    """
    ranks, tokens, hidden = deployment.ep_world_size, deployment.tokens, config.hidden_size
    local, rows, width = deployment.local_experts(config), deployment.recv_max, config.num_experts_per_tok
    require_multiple("moe_dispatch", "D", hidden, 32)
    require_multiple("moe_dispatch", "RECV_MAX", rows, 16)
    require_multiple("moe_dispatch", "N_LOCAL", local, 8)  # a row of counts is whole tiles of 32 bytes
    int8, int32, fp32 = torch.int8, torch.int32, torch.float32
    return Op(
        name="moe_dispatch",
        config=config,
        deployment=deployment,
        signature=(
            TensorSpec("indices", (ranks, tokens, width), int32, TokenRoutes(DistinctTable()), "in"),
            TensorSpec("x_norm_i8", (ranks, tokens, hidden), int8, Q8(), "in"),
            TensorSpec("x_norm_scale", (ranks, tokens, 1), fp32, MatchingScale("x_norm_i8"), "in"),
            TensorSpec("weights", (ranks, tokens, width), fp32, Uniform(), "in"),
            TensorSpec("num_tokens", (ranks, 1), int32, Constant(tokens), "in"),
            TensorSpec("recv_x_out", (ranks, local, rows, hidden), int8, None, "out"),
            TensorSpec("recv_scale_out", (ranks, local, rows), fp32, None, "out"),
            TensorSpec("recv_w_out", (ranks, local, rows), fp32, None, "out"),
            TensorSpec("recv_r_route_out", (ranks, local, rows), int32, None, "out"),
            TensorSpec("recv_count_out", (ranks, local, 1), int32, None, "out"),
            TensorSpec("recv_meta", (ranks, ranks, local), int32, None, "out"),
            TensorSpec("overflow", (ranks, 4), int32, None, "out"),
        ),
        cases=(
            Case("default", tags=("default",)),
            *_routing_cases(),
            *token_count_cases(tokens),
            # A token may name an expert twice as long as the lane holds both rows.
            Case(
                "duplicates",
                {"indices": TokenRoutes(DuplicateTable()), "num_tokens": Constant(tokens // 2)},
                tags=("edge", "partial"),
            ),
            # Scales and weights are copied whatever they are.
            Case(
                "not_finite",
                {
                    "x_norm_scale": Rows(MatchingScale("x_norm_i8"), (None, Constant(math.nan))),
                    "weights": Rows(Uniform(), (Constant(-math.inf), None)),
                },
                tags=("edge",),
            ),
            Case("overflow_first", {"indices": Constant(0)}, tags=("overflow", "invalid")),
            # Rows beyond the last lane of the last expert would lie beyond the window.
            Case("overflow_last", {"indices": Constant(config.n_routed_experts - 1)}, tags=("overflow", "invalid")),
        ),
        parameters={"n_local": local, "recv_max": rows},
        validity=_validity,
        refusal=_refusal,
        world=ranks,
    )


def _routing_cases() -> tuple[Case, ...]:
    def routed(name: str, ids: Distribution) -> Case:
        return Case(name, {"indices": ids}, tags=("skew",))

    return tuple(routed(name, ids) for name, ids in routings().items())


def routings() -> dict[str, Distribution]:
    """Ids [EP, T, K] of every routing distribution but the uniform one, which is the default."""
    return {
        "skew_zipf": TokenRoutes(ZipfTable()),
        "skew_zipf_steep": TokenRoutes(ZipfTable(alpha=2.0)),
        "skew_hot": TokenRoutes(HotTable(share=0.75)),
        "one_rank": TokenRoutes(OneRankTable(rank=1)),
        "next_rank": NextRankRoutes(),
        "ties_all": TokenRoutes(LowestTable()),
        "round_robin": TokenRoutes(RoundRobinTable()),
    }


def token_count_cases(tokens: int) -> tuple[Case, ...]:
    """num_tokens [EP, 1] at both ends, beyond them, and different per rank."""

    def counted(name: str, distribution: Distribution, *tags: str) -> Case:
        return Case(name, {"num_tokens": distribution}, tags=("edge", *tags))

    full = Constant(tokens)
    return (
        counted("tokens_5", Constant(5), "partial"),
        counted("tokens_1", Constant(1), "partial"),
        counted("tokens_0", Constant(0), "partial"),
        counted("tokens_over", Constant(tokens + 5)),
        counted("tokens_negative", Constant(-3), "partial"),
        counted("tokens_first_idle", Rows(full, (Constant(0), None)), "partial"),
        counted("tokens_differ", Rows(full, (Constant(tokens + 1), Constant(3))), "partial"),
    )


def _tensor(inputs: Inputs, name: str) -> Tensor:
    value = inputs[name]
    assert isinstance(value, Tensor)
    return value


def _refusal(op: Op, inputs: Inputs) -> None:
    refuse_overflow(op.name, _tensor(inputs, "indices"), _tensor(inputs, "num_tokens"), op.config, op.deployment)


def _validity(op: Op, inputs: Inputs) -> Masks:
    """Compact rows are defined below the count of their expert (3.4)."""
    ranks, local = op.world, op.deployment.local_experts(op.config)
    loads = lane_loads(_tensor(inputs, "indices"), _tensor(inputs, "num_tokens"), ranks * local)
    rows = torch.arange(op.deployment.recv_max) < loads.sum(0).reshape(ranks, local, 1)
    masks: Masks = {spec.name: None for spec in op.outputs}
    masks["recv_x_out"] = rows.unsqueeze(3).expand(*rows.shape, op.config.hidden_size)
    for name in ("recv_scale_out", "recv_w_out", "recv_r_route_out"):
        masks[name] = rows
    return masks
