"""moe: the FFN half of a layer on every rank, a host program (contracts/moe_and_layers.md, 5 and 6)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from goldens.numerics.routes import expect_capacity, lane_loads
from specs.capacity import routed_ids
from specs.distributions import (
    FFN_LAYER0,
    Constant,
    DistinctTable,
    DuplicateTable,
    Equal,
    EqualCodes,
    HotBias,
    HotTable,
    MatchingScale,
    MxFp4Weight,
    MxFp8Weight,
    NextRankTokens,
    Normal,
    OneRankBias,
    OneRankTable,
    OutOfRangeTable,
    PerRank,
    RankRowsTable,
    RoundRobinTable,
    Rows,
    Tied,
    TokenIds,
    ZipfBias,
    ZipfTable,
)
from specs.model import FLASH, Deployment, ModelConfig
from specs.ops import expert_routed, expert_shared, gate, hc_post, hc_pre, moe_combine, moe_dispatch
from specs.registry import Case, Inputs, Masks, Op
from specs.tensors import Distribution, ScalarSpec, TensorSpec

PARTS = (hc_pre, gate, expert_shared, moe_dispatch, expert_routed, moe_combine, hc_post)
STREAMS = Normal()
WEIGHTS = {
    "routed_w1": 1.08e-2,
    "routed_w3": 1.10e-2,
    "routed_w2": 2.54e-2,
    "shared_w1": 7.65e-3,
    "shared_w3": 7.39e-3,
    "shared_w2": 2.39e-2,
}
"""Standard deviations of the dequantised weights at FLASH, below the real ones on purpose (5.2)."""
CHANNEL_SPREAD = {"shared_w1": 0.50, "shared_w3": 0.50, "shared_w2": 0.33}


def build(config: ModelConfig, deployment: Deployment) -> Op:
    """x_hc [EP, T, HC, D] BF16 and the weights of 5.2, each with a rank axis -> x_next [EP, T, HC, D] BF16,
    overflow [EP, 4] INT32; scalars layer_id and num_tokens, the same for all ranks.

    Windows, my_rank and moe_epoch = 1 are made by the program. Row r of overflow is as in moe_dispatch.

    Sizes must suit each of its seven parts.
    """
    for part in PARTS:
        part.build(config, deployment)  # refuses sizes that a part cannot do
    ranks, tokens = deployment.ep_world_size, deployment.tokens
    hidden, streams = config.hidden_size, config.hc_mult
    bf16, int32 = torch.bfloat16, torch.int32
    x_shape = (ranks, tokens, streams, hidden)
    return Op(
        name="moe",
        config=config,
        deployment=deployment,
        signature=(
            TensorSpec("x_hc", x_shape, bf16, STREAMS, "in"),
            *_router_weights(config, ranks),
            TensorSpec("input_ids", (ranks, tokens), torch.int64, PerRank(TokenIds()), "in"),
            *_expert_weights(config, deployment),
            TensorSpec("x_next", x_shape, bf16, None, "out"),
            TensorSpec("overflow", (ranks, 4), int32, None, "out"),
            ScalarSpec("layer_id", int32, 0),
            ScalarSpec("num_tokens", int32, tokens),
        ),
        cases=_cases(config, tokens),
        parameters={
            "recv_max": deployment.recv_max,
            "hc_eps": config.hc_eps,
            "rms_eps": config.rms_norm_eps,
            "sinkhorn_iters": config.hc_sinkhorn_iters,
            "n_hash_layers": config.num_hash_layers,
            "routed_scaling": config.routed_scaling_factor,
            "swiglu_limit": config.swiglu_limit,
        },
        validity=_validity,
        stage_validity=_stage_validity,
        refusal=_refusal,
        world=ranks,
    )


def _router_weights(config: ModelConfig, ranks: int) -> tuple[TensorSpec, ...]:
    """Hyper-connection, norm, router and table: one draw, the same on every rank (tensors 2 to 8 of 5.2)."""
    hidden, experts = config.hidden_size, config.n_routed_experts
    fp32 = torch.float32

    def replicated(name: str, shape: tuple[int, ...], dtype: torch.dtype, base: Distribution) -> TensorSpec:
        return TensorSpec(name, (ranks, *shape), dtype, Equal(base, 0), "in", resident="stacked")

    return (
        replicated("hc_ffn_fn", (config.mix_hc, config.hc_dim), fp32, FFN_LAYER0.fn(config.hc_dim)),
        replicated("hc_ffn_scale", (3,), fp32, FFN_LAYER0.scale_values()),
        replicated("hc_ffn_base", (config.mix_hc,), fp32, FFN_LAYER0.base_values()),
        replicated("norm_w", (hidden,), torch.bfloat16, Constant(1.0)),
        replicated("gate_w", (experts, hidden), fp32, router(config)),
        replicated("gate_bias", (experts,), fp32, Constant(0.0)),
        replicated("tid2eid", (config.vocab_size, config.num_experts_per_tok), torch.int32, DistinctTable()),
    )


def _expert_weights(config: ModelConfig, deployment: Deployment) -> tuple[TensorSpec, ...]:
    """Codes and scales of the routed experts, a shard per rank, and of the shared one, the same on every rank."""
    ranks, local = deployment.ep_world_size, deployment.local_experts(config)
    hidden, inner = config.hidden_size, config.moe_intermediate_size
    matrices = {"w1": (inner, hidden), "w3": (inner, hidden), "w2": (hidden, inner)}
    out: list[TensorSpec] = []
    for kind, lead in (("routed", (ranks, local)), ("shared", (ranks,))):
        for matrix, shape in matrices.items():
            name = f"{kind}_{matrix}"
            codes = weight(config, name)
            out += [
                TensorSpec(name, (*lead, *shape), torch.int8, codes, "in", resident="stacked"),
                TensorSpec(
                    f"{name}_scale", (*lead, shape[0]), torch.float32, MatchingScale(name), "in", resident="stacked"
                ),
            ]
    return tuple(out)


def router(config: ModelConfig) -> Distribution:
    """gate_w: logits of unit variance."""
    return Normal(std=config.hidden_size**-0.5)


def weight(config: ModelConfig, name: str, std: float | None = None) -> Distribution:
    """Codes of an expert weight for a dequantised deviation at FLASH; elsewhere products keep their magnitude."""
    into_hidden = name.endswith("w2")
    width = config.moe_intermediate_size if into_hidden else config.hidden_size
    flash_width = FLASH.moe_intermediate_size if into_hidden else FLASH.hidden_size
    scaled = (WEIGHTS[name] if std is None else std) * math.sqrt(flash_width / width)
    if name.startswith("shared"):
        return EqualCodes(MxFp8Weight(scaled, CHANNEL_SPREAD[name]))
    return MxFp4Weight(scaled)


def _cases(config: ModelConfig, tokens: int) -> tuple[Case, ...]:
    first_score = config.num_hash_layers
    last = config.num_hidden_layers - 1
    return (
        Case("default", tags=("default", "routing", "hash" if first_score else "score")),
        *(Case("hash_last", scalars={"layer_id": first_score - 1}, tags=("hash",)) for _ in range(first_score > 0)),
        Case("score_first", scalars={"layer_id": first_score}, tags=("score", "routing")),
        Case("score_last", scalars={"layer_id": last}, tags=("score",)),
        *_token_count_cases(first_score, tokens),
        *_score_cases(config, first_score),
        *(_hash_cases(config) if first_score else ()),
        *_value_cases(config, first_score),
    )


def _token_count_cases(score_layer: int, tokens: int) -> tuple[Case, ...]:
    """num_tokens at both ends and beyond them, in both kinds of layers."""
    counts = {"5": 5, "1": 1, "0": 0, "over": tokens + 5, "negative": -3}
    return tuple(
        Case(f"{kind}_tokens_{name}", scalars={"layer_id": layer, "num_tokens": count}, tags=("edge", "partial", kind))
        for kind, layer in (("hash", 0), ("score", score_layer))
        for name, count in counts.items()
        if kind == "score" or score_layer
    )


def _score_cases(config: ModelConfig, layer: int) -> tuple[Case, ...]:
    """Every skew that a selection bias can make."""

    def biased(name: str, bias: Distribution, **more: Distribution) -> Case:
        overrides = {name: Equal(base, 0) for name, base in {"gate_bias": bias, **more}.items()}
        return Case(name, overrides, {"layer_id": layer}, ("score", "skew", "routing"))

    return (
        biased("score_bias", Normal(std=0.1)),
        biased("score_zipf", ZipfBias()),
        biased("score_hot", HotBias(share=0.75)),
        biased("score_one_rank", OneRankBias(rank=1)),
        # All scores are equal: every token takes experts 0 to K - 1, and their lanes are full.
        biased("score_ties_all", Constant(0.0), gate_w=Tied(router(config), 0)),
        biased("score_ties_some", Tied(Normal(std=0.1), 4), gate_w=Tied(router(config), 4)),
    )


def _hash_cases(config: ModelConfig) -> tuple[Case, ...]:
    """Every skew that a table or token ids can make, and tables that must be refused."""

    def table(name: str, rows: Distribution, *tags: str, **more: Distribution) -> Case:
        routing = () if "invalid" in tags else ("routing",)
        return Case(f"hash_{name}", {"tid2eid": Equal(rows, 0), **more}, tags=("hash", *tags, *routing))

    return (
        table("round_robin", RoundRobinTable()),
        table("zipf", ZipfTable(), "skew"),
        table("zipf_steep", ZipfTable(alpha=2.0), "skew"),
        table("hot", HotTable(share=0.75), "skew"),
        table("one_rank", OneRankTable(rank=1), "skew"),
        # All tokens of rank r go to rank r + 1.
        table("next_rank", RankRowsTable(), "skew", input_ids=NextRankTokens()),
        # Every token names the same experts: their lanes are full.
        Case("hash_same_token", {"input_ids": Constant(7)}, tags=("hash", "skew", "routing")),
        table("duplicate", DuplicateTable(), "invalid"),
        table("out_of_range", OutOfRangeTable(), "invalid"),
        Case("hash_bad_token", {"input_ids": Constant(config.vocab_size)}, tags=("hash", "invalid")),
    )


def _value_cases(config: ModelConfig, score_layer: int) -> tuple[Case, ...]:
    zero = Constant(0.0)

    def real(names: tuple[str, ...], std: float) -> dict[str, Distribution]:
        return {name: weight(config, name, std) for name in names}

    routed, shared = ("routed_w1", "routed_w3", "routed_w2"), ("shared_w1", "shared_w3", "shared_w2")
    score = {"layer_id": score_layer}
    return (
        # Weights as large as the real ones.
        Case("real_weights", {**real(routed, 2.46e-2), **real(shared, 1.70e-2)}, score, ("magnitude", "score")),
        Case("gamma_spread", {"norm_w": Equal(Normal(mean=1.0, std=0.5), 0)}, score, ("magnitude", "score")),
        # Zero streams: router logits are all 0, x_next is exactly 0.
        Case("zero_tokens", {"x_hc": PerRank(Rows(STREAMS, (None, zero)))}, score, ("edge", "score")),
        # ffn_out is the shared expert's output alone.
        Case("no_routed", {"routed_w2_scale": zero}, score, ("exact", "score")),
        # ffn_out is the routed experts' sum alone.
        Case("no_shared", {"shared_w2_scale": zero}, score, ("exact", "score")),
        # ffn_out is 0: x_next is the mix of the old streams alone.
        Case("no_ffn", {"routed_w2_scale": zero, "shared_w2_scale": zero}, score, ("exact", "score")),
    )


def _lane_loads(op: Op, inputs: Inputs) -> Tensor:
    num_tokens = inputs["num_tokens"]
    assert isinstance(num_tokens, int)
    counts = torch.full((op.world, 1), num_tokens, dtype=torch.int32)
    return lane_loads(routed_ids(inputs, op.config), counts, op.config.n_routed_experts)


def _refusal(op: Op, inputs: Inputs) -> None:
    """Lanes of the worst case hold every routing that the router allows: each expert once per token."""
    if op.deployment.max_per_src < op.deployment.tokens:
        expect_capacity(op.name, _lane_loads(op, inputs), op.deployment.max_per_src)


def _validity(op: Op, inputs: Inputs) -> Masks:
    """All outputs are defined everywhere, x_next in inactive rows too (5.4). Of the stages, normed tokens are defined
    in whole tiles up to the last active one, compact rows below the count of their expert."""
    config, deployment = op.config, op.deployment
    num_tokens = inputs["num_tokens"]
    assert isinstance(num_tokens, int)
    ranks, tokens, hidden = op.world, deployment.tokens, config.hidden_size
    normed = (torch.arange(tokens) < gate.normed_rows(num_tokens, tokens)).reshape(1, -1, 1)
    masks: Masks = {spec.name: None for spec in op.outputs}
    for name in ("x_norm", "x_norm_i8"):
        masks[name] = normed.expand(ranks, tokens, hidden)
    return masks | _compact_rows(op, _lane_loads(op, inputs).sum(0))


def _stage_validity(op: Op, inputs: Inputs, stages: Mapping[str, Tensor]) -> Masks:
    """Compact rows as they arrive by the ids that the device chose."""
    return _compact_rows(op, stages["recv_count_out"])


def _compact_rows(op: Op, counts: Tensor) -> Masks:
    """Masks of the compact rows below `counts`, one per expert of all ranks."""
    rows = torch.arange(op.deployment.recv_max) < counts.reshape(op.world, -1, 1)
    masks: Masks = dict.fromkeys(("recv_scale_out", "recv_w_out", "recv_r_route_out"), rows)
    for name in ("recv_x_out", "recv_y"):
        masks[name] = rows.unsqueeze(3).expand(*rows.shape, op.config.hidden_size)
    return masks
