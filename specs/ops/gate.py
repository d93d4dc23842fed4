"""gate: FFN norm, INT8 tokens, router scores, expert selection and weights (contracts/hc_gate_experts.md, 3)."""

from __future__ import annotations

import torch

from specs.distributions import (
    NORM_TIE_WEIGHT,
    BeaconRouter,
    BeaconTokens,
    Constant,
    DistinctTable,
    DuplicateTable,
    HotBias,
    HotTable,
    Normal,
    OneRankBias,
    OneRankTable,
    OutOfRangeTable,
    RoundRobinTable,
    Rows,
    Tied,
    TieRows,
    TokenIds,
    ZipfBias,
    ZipfTable,
)
from specs.model import Deployment, ModelConfig
from specs.registry import Case, Inputs, Masks, Op
from specs.requirements import require_between, require_multiple
from specs.tensors import Distribution, ScalarSpec, TensorSpec

ROW_TILE = 16
"""Rows that the device norms at a time."""

SCORE_LAYER = 10
TOKENS = Normal()
BIAS = Normal(std=0.1)
NO_BIAS = Constant(0.0)


def build(config: ModelConfig, deployment: Deployment) -> Op:
    """x_mixed [T, D], norm_w [D] BF16, gate_w [N, D], gate_bias [N] FP32, tid2eid [VOCAB, K], input_ids [T] ->
    x_norm [T, D] BF16, x_norm_i8 [T, D], x_norm_scale [T, 1] FP32, indices, weights [T, K].

    T must be a multiple of 8, D of 256, N of 16 and at most 512, K at most 8.
    """
    tokens, hidden = deployment.tokens, config.hidden_size
    experts, width = config.n_routed_experts, config.num_experts_per_tok
    require_multiple("gate", "T", tokens, 8)
    require_multiple("gate", "D", hidden, 256)
    require_multiple("gate", "N", experts, 16)
    require_between("gate", "N", experts, 16, 512)
    require_between("gate", "K", width, 1, 8)
    router = Normal(std=hidden**-0.5)
    return Op(
        name="gate",
        config=config,
        deployment=deployment,
        signature=(
            TensorSpec("x_mixed", (tokens, hidden), torch.bfloat16, TOKENS, "in"),
            TensorSpec("norm_w", (hidden,), torch.bfloat16, Constant(1.0), "in"),
            TensorSpec("gate_w", (experts, hidden), torch.float32, router, "in"),
            TensorSpec("gate_bias", (experts,), torch.float32, BIAS, "in"),
            ScalarSpec("layer_id", torch.int32, max(SCORE_LAYER, config.num_hash_layers)),
            ScalarSpec("num_tokens", torch.int32, tokens),
            TensorSpec("tid2eid", (config.vocab_size, width), torch.int32, DistinctTable(), "in"),
            TensorSpec("input_ids", (tokens,), torch.int64, TokenIds(), "in"),
            TensorSpec("x_norm", (tokens, hidden), torch.bfloat16, None, "out"),
            TensorSpec("x_norm_i8", (tokens, hidden), torch.int8, None, "out"),
            TensorSpec("x_norm_scale", (tokens, 1), torch.float32, None, "out"),
            TensorSpec("indices", (tokens, width), torch.int32, None, "out"),
            TensorSpec("weights", (tokens, width), torch.float32, None, "out"),
        ),
        cases=(
            Case("default", tags=("default", "score")),
            Case("score_first", scalars={"layer_id": config.num_hash_layers}, tags=("score",)),
            *_row_cases(),
            *_token_count_cases(tokens),
            *_routing_cases(router),
            *_logit_cases(),
            *(_hash_cases(config) if config.num_hash_layers else ()),
        ),
        parameters={
            "rms_eps": config.rms_norm_eps,
            "n_hash_layers": config.num_hash_layers,
            "routed_scaling": config.routed_scaling_factor,
        },
        validity=_validity,
    )


def _row_cases() -> tuple[Case, ...]:
    tiny = (None, Constant(0.0), Constant(1e-6), Normal(std=1e-4), Normal(std=1e3))
    return (
        Case("gamma_spread", {"norm_w": Normal(mean=1.0, std=0.5)}, tags=("magnitude",)),
        # A row amax of the normed token around the quantiser's floor of 1e-4: gamma makes the whole row small.
        Case("tiny_gamma", {"norm_w": Normal(std=3e-5)}, tags=("edge", "magnitude")),
        Case("zero_rows", {"x_mixed": Rows(TOKENS, (None, Constant(0.0)))}, tags=("edge",)),
        Case("mixed_rows", {"x_mixed": Rows(TOKENS, tiny)}, tags=("edge", "magnitude")),
        # Three lanes of 16 of the normed token lie exactly between two BF16 values.
        Case("bf16_ties", {"x_mixed": TieRows(), "norm_w": Constant(NORM_TIE_WEIGHT)}, tags=("edge", "rounding")),
    )


def _token_count_cases(tokens: int) -> tuple[Case, ...]:
    """num_tokens around the row tiles of 8 and 16, at both ends and beyond them."""
    inside = sorted({n for n in (0, 1, 7, 8, 9, 15, 16, 17, tokens - 1) if n < tokens})
    return (
        *(Case(f"tokens_{n}", scalars={"num_tokens": n}, tags=("partial", "edge")) for n in inside),
        Case("tokens_over", scalars={"num_tokens": tokens + 5}, tags=("edge",)),
        Case("tokens_negative", scalars={"num_tokens": -3}, tags=("partial", "edge")),
    )


def _routing_cases(router: Distribution) -> tuple[Case, ...]:
    return (
        Case("no_bias", {"gate_bias": NO_BIAS}),
        Case("bias_large", {"gate_bias": Normal(std=4.0)}, tags=("magnitude",)),
        # Every expert scores below 0, where a pad of 0 behind the last expert would be chosen.
        Case("bias_negative", {"gate_bias": Normal(mean=-10.0, std=1.0)}, tags=("magnitude", "edge")),
        Case("skew_zipf", {"gate_bias": ZipfBias()}, tags=("skew",)),
        Case("skew_hot", {"gate_bias": HotBias(share=0.75)}, tags=("skew",)),
        Case("one_rank", {"gate_bias": OneRankBias(rank=1)}, tags=("skew",)),
        Case("ties_all", {"gate_w": Tied(router, 0), "gate_bias": NO_BIAS}, tags=("ties", "edge")),
        # Of four equal experts the selection often takes only some: the lower ids.
        Case("ties_some", {"gate_w": Tied(router, 4), "gate_bias": Tied(BIAS, 4)}, tags=("ties", "edge")),
    )


def _logit_cases() -> tuple[Case, ...]:
    def logits(name: str, low: float, high: float, *tags: str) -> Case:
        overrides: dict[str, Distribution] = {
            "x_mixed": BeaconTokens(),
            "gate_w": BeaconRouter(low, high),
            "gate_bias": NO_BIAS,
        }
        return Case(name, overrides, tags=("softplus", *tags))

    return (
        logits("high_logits", 2.0, 30.0),
        logits("low_logits", -9.0, -3.0),
        # The device's log(1 + e^l) is off by up to 41 % of the score here (3.3, step 6); below -16.64 it is exact.
        logits("low_logits_tail", -17.0, -9.0, "extreme"),
        logits("vanishing_logits", -60.0, -18.0, "extreme"),
    )


def _hash_cases(config: ModelConfig) -> tuple[Case, ...]:
    def table(name: str, distribution: Distribution, *tags: str) -> Case:
        return Case(name, {"tid2eid": distribution}, {"layer_id": 0}, ("hash", *tags))

    return (
        Case("hash", scalars={"layer_id": 0}, tags=("hash",)),
        Case("hash_last", scalars={"layer_id": config.num_hash_layers - 1}, tags=("hash",)),
        Case("hash_partial", scalars={"layer_id": 0, "num_tokens": 5}, tags=("hash", "partial")),
        table("hash_round_robin", RoundRobinTable()),
        table("hash_skewed", ZipfTable(), "skew"),
        table("hash_hot", HotTable(share=0.75), "skew"),
        table("hash_one_rank", OneRankTable(rank=1), "skew"),
        Case("hash_same_token", {"input_ids": Constant(7)}, {"layer_id": 0}, ("hash", "skew")),
        # All chosen experts may score so low that a softplus which rounds to 0 makes the weights 0/0.
        Case(
            "hash_low_logits",
            {"x_mixed": BeaconTokens(), "gate_w": BeaconRouter(-60.0, -18.0)},
            {"layer_id": 0},
            ("hash", "softplus", "extreme"),
        ),
        table("hash_duplicate", DuplicateTable(), "invalid"),
        table("hash_out_of_range", OutOfRangeTable(), "invalid"),
        Case("hash_bad_token", {"input_ids": Constant(config.vocab_size)}, {"layer_id": 0}, ("hash", "invalid")),
    )


def normed_rows(num_tokens: int, tokens: int) -> int:
    """Rows that the device norms: whole tiles up to the last active token."""
    active = min(max(num_tokens, 0), tokens)
    return min(tokens, -(-active // ROW_TILE) * ROW_TILE)


def _validity(op: Op, inputs: Inputs) -> Masks:
    """x_norm and its codes are defined in whole tiles of 16 rows up to the last active token (3.4)."""
    tokens = op.deployment.tokens
    requested = inputs["num_tokens"]
    assert isinstance(requested, int)
    normed = normed_rows(requested, tokens)
    masks: Masks = {spec.name: None for spec in op.outputs}
    if normed < tokens:
        rows = torch.arange(tokens).unsqueeze(1) < normed
        for name in ("x_norm", "x_norm_i8"):
            masks[name] = rows.expand(tokens, op.config.hidden_size).contiguous()
    return masks
