"""qkv_proj_rope: low-rank query, rotated query heads and rotated KV vector (contracts/dense.md, 7)."""

from __future__ import annotations

import torch

from specs.distributions import ColumnQ8, Constant, HalfRead, Integers, MatchingScale, Normal, RopeRows, Rows, Uniform
from specs.model import Deployment, ModelConfig
from specs.registry import Case, Op
from specs.requirements import require_boxes, require_multiple
from specs.tensors import Distribution, TensorSpec

SIGNED = Uniform(-1.0, 1.0)
WEIGHT = Uniform(-0.1, 0.1)
ONE, ZERO = Constant(1.0), Constant(0.0)
BASE, COMPRESSED = 0, 4
"""Compress ratios of the two rotary profiles."""


def build(config: ModelConfig, deployment: Deployment) -> Op:
    """x [T, D], wq_a [D, Q_LORA] BF16, wq_b [Q_LORA, H*HEAD_DIM] INT8 with FP32 scale [H*HEAD_DIM], wkv [D, HEAD_DIM],
    rope_cos, rope_sin [T, ROPE_DIM], gamma_cq [Q_LORA], gamma_ckv [HEAD_DIM] BF16 -> q [T, H, HEAD_DIM], kv
    [T, HEAD_DIM] BF16, qr [T, Q_LORA] INT8, qr_scale [T, 1] FP32.

    By default the codes of wq_b are uniform, as those of a uniform weight are, and the scales of its columns differ
    by up to 8 times: with those of the reference, all about 7.8e-4, exchanged columns would not be seen. The rotary
    rows are no rotation, and their second half, which is not read, differs from the first.

    T must be a multiple of 8 and, beyond 16, of 16; D of 128, Q_LORA and ROPE_DIM of 32; HEAD_DIM, beyond its rotary
    lanes, of ROPE_DIM.
    """
    tokens, hidden, lora = deployment.tokens, config.hidden_size, config.q_lora_rank
    heads, head_dim, rope_dim = config.num_attention_heads, config.head_dim, config.qk_rope_head_dim
    require_multiple("qkv_proj_rope", "T", tokens, 8)
    require_boxes("qkv_proj_rope", tokens)
    require_multiple("qkv_proj_rope", "D", hidden, 128)
    require_multiple("qkv_proj_rope", "Q_LORA", lora, 32)
    require_multiple("qkv_proj_rope", "ROPE_DIM", rope_dim, 32)
    require_multiple("qkv_proj_rope", "HEAD_DIM", head_dim, rope_dim)
    bf16, fp32, int8 = torch.bfloat16, torch.float32, torch.int8
    return Op(
        name="qkv_proj_rope",
        config=config,
        deployment=deployment,
        signature=(
            TensorSpec("x", (tokens, hidden), bf16, SIGNED, "in"),
            TensorSpec("wq_a", (hidden, lora), bf16, WEIGHT, "in"),
            TensorSpec("wq_b", (lora, heads * head_dim), int8, Integers(-127, 127), "in"),
            TensorSpec("wq_b_scale", (heads * head_dim,), fp32, Uniform(2e-4, 1.6e-3), "in"),
            TensorSpec("wkv", (hidden, head_dim), bf16, WEIGHT, "in"),
            TensorSpec("rope_cos", (tokens, rope_dim), bf16, SIGNED, "in"),
            TensorSpec("rope_sin", (tokens, rope_dim), bf16, SIGNED, "in"),
            TensorSpec("gamma_cq", (lora,), bf16, SIGNED, "in"),
            TensorSpec("gamma_ckv", (head_dim,), bf16, SIGNED, "in"),
            TensorSpec("q", (tokens, heads, head_dim), bf16, None, "out"),
            TensorSpec("kv", (tokens, head_dim), bf16, None, "out"),
            TensorSpec("qr", (tokens, lora), int8, None, "out"),
            TensorSpec("qr_scale", (tokens, 1), fp32, None, "out"),
        ),
        cases=_cases(hidden, lora),
        parameters={"rms_eps": config.rms_norm_eps},
    )


def _rope(ratio: int, place: float) -> dict[str, Distribution]:
    return {"rope_cos": RopeRows("cos", ratio, place), "rope_sin": RopeRows("sin", ratio, place)}


def _cases(hidden: int, lora: int) -> tuple[Case, ...]:
    # What an attention block receives.
    attention: dict[str, Distribution] = {
        "x": Normal(),
        "wq_a": Normal(std=hidden**-0.5),
        "wq_b": ColumnQ8(Normal(std=lora**-0.5)),
        "wq_b_scale": MatchingScale("wq_b"),
        "wkv": Normal(std=hidden**-0.5),
        "gamma_cq": ONE,
        "gamma_ckv": ONE,
    }
    tiny = (None, Normal(std=1e-4), Normal(std=1e-3), Constant(1e-6), Normal(std=1e-2))
    return (
        Case("default", tags=("default",)),
        Case("attention_base", {**attention, **_rope(BASE, 0.5)}, tags=("real",)),
        Case("attention_compressed", {**attention, **_rope(COMPRESSED, 1.0)}, tags=("real",)),
        Case("first_positions", _rope(BASE, 0.0), tags=("edge",)),
        Case("no_rotation", {"rope_cos": ONE, "rope_sin": ZERO}, tags=("exact",)),
        # Lanes change places: lane 2i becomes minus lane 2i + 1.
        Case("quarter_turn", {"rope_cos": ZERO, "rope_sin": ONE}, tags=("exact",)),
        Case("half_read", {"rope_cos": HalfRead(SIGNED), "rope_sin": HalfRead(SIGNED)}, tags=("edge",)),
        Case("zero_rows", {"x": Rows(SIGNED, (None, ZERO))}, tags=("edge",)),
        # Mean squares of the projections around RMS_EPS.
        Case("tiny_tokens", {"x": Rows(SIGNED, tiny)}, tags=("edge", "eps", "magnitude")),
        Case("large_tokens", {"x": Rows(Normal(std=1e3), (None, Normal(std=1e8)))}, tags=("magnitude",)),
        # Mean squares of the heads around RMS_EPS.
        Case("tiny_scales", {"wq_b_scale": Uniform(1e-7, 8e-6)}, tags=("edge", "eps", "magnitude")),
        # The quantiser's floor of 1e-4: rows whose largest value lies above and below.
        Case("tiny_gamma", {"gamma_cq": Normal(std=3e-5)}, tags=("edge", "magnitude")),
    )
