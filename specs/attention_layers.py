"""What the three decode attention layers share: parameters, pools, cases, what a step may write.

contracts/decode_attention.md 5.2, 6.2, 7.2 and A.2. Block tables are shuffled over all requests and have holes;
positions of the reference's fixtures are one case among ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specs.attention import projection_tensors, require_step
from specs.compressors import rows_mask, start_cases
from specs.distributions import (
    Constant,
    HcSet,
    KvTable,
    MatchingScale,
    Normal,
    PooledNormal,
    Positions,
    RopeRows,
    Rows,
    Uniform,
    VisibleLengths,
    WindowRows,
    WindowSlots,
)
from specs.distributions.attention import PooledQ8
from specs.distributions.positions import Starts
from specs.model import Deployment, ModelConfig
from specs.paging import BLOCK_SIZE, paging
from specs.registry import Case, Inputs, Masks, Op, all_defined
from specs.requirements import require_between, require_multiple
from specs.tensors import Distribution, Number, TensorSpec

BF16, FP32, INT32, INT64 = torch.bfloat16, torch.float32, torch.int32, torch.int64
NORM_WEIGHT = Normal(mean=1.0, std=0.1)
"""The reference has ones, which hide a norm without its weight."""


def require_layer(op: str, config: ModelConfig, deployment: Deployment) -> None:
    """Raise SpecError for what a whole attention layer cannot do: at most two tokens per request (contract 5.4), and
    the sizes that its parts need."""
    require_step(op, config, deployment)
    require_between(op, "S", deployment.seq, 1, 2)
    require_multiple(op, "B", deployment.batch, 4)
    require_multiple(op, "D", config.hidden_size, 128)
    require_multiple(op, "Q_LORA", config.q_lora_rank, 128)
    require_multiple(op, "HEAD_DIM", config.head_dim, 64)
    require_between(op, "HC", config.hc_mult, 4, 4)


def input_tensors(config: ModelConfig, deployment: Deployment, gates: HcSet, ratio: int) -> tuple[TensorSpec, ...]:
    """Parameters 1 to 13 of every layer: streams, gates, q and kv projections, the rotary tables of its profile."""
    hidden, lora, head_dim = config.hidden_size, config.q_lora_rank, config.head_dim
    heads = config.num_attention_heads * head_dim
    rope = (config.max_position_embeddings, config.qk_rope_head_dim)
    return (
        TensorSpec("x_hc", (deployment.tokens, config.hc_mult, hidden), BF16, Uniform(-1.0, 1.0), "in"),
        TensorSpec("hc_attn_fn", (config.mix_hc, config.hc_dim), FP32, gates.fn(config.hc_dim), "in"),
        TensorSpec("hc_attn_scale", (3,), FP32, gates.scale_values(), "in"),
        TensorSpec("hc_attn_base", (config.mix_hc,), FP32, gates.base_values(), "in"),
        TensorSpec("attn_norm_w", (hidden,), BF16, NORM_WEIGHT, "in"),
        TensorSpec("wq_a", (hidden, lora), BF16, PooledNormal(hidden**-0.5), "in"),
        TensorSpec("wq_b", (lora, heads), torch.int8, PooledQ8(lora**-0.5, "columns"), "in"),
        TensorSpec("wq_b_scale", (heads,), FP32, MatchingScale("wq_b"), "in"),
        TensorSpec("wkv", (hidden, head_dim), BF16, PooledNormal(hidden**-0.5), "in"),
        TensorSpec("gamma_cq", (lora,), BF16, NORM_WEIGHT, "in"),
        TensorSpec("gamma_ckv", (head_dim,), BF16, NORM_WEIGHT, "in"),
        TensorSpec("freqs_cos", rope, BF16, RopeRows("cos", ratio, 0.0), "in"),
        TensorSpec("freqs_sin", rope, BF16, RopeRows("sin", ratio, 0.0), "in"),
    )


def ring_tensors(config: ModelConfig, deployment: Deployment, table: str) -> tuple[TensorSpec, TensorSpec]:
    """The ring pool, in place, and its block table. Rows of no position yet are large: they must have no weight."""
    pages = paging(config, deployment)
    ring = (pages.ori_block_num, BLOCK_SIZE, 1, config.head_dim)
    return (
        TensorSpec("kv_cache", ring, BF16, WindowRows(table), "inout"),
        TensorSpec(table, (deployment.batch, pages.ori_max_blocks), INT32, KvTable(1), "in"),
    )


def slot_tensor(name: str, deployment: Deployment, slots: Distribution) -> TensorSpec:
    """A slot mapping [T] INT64."""
    return TensorSpec(name, (deployment.tokens,), INT64, slots, "in")


def position_tensor(config: ModelConfig, deployment: Deployment, starts: Starts) -> TensorSpec:
    """position_ids [T] INT32."""
    return TensorSpec("position_ids", (deployment.tokens,), INT32, Positions(starts), "in")


def length_tensor(deployment: Deployment) -> TensorSpec:
    """kv_seq_lens [B] INT32: all tokens of the step are committed."""
    return TensorSpec("kv_seq_lens", (deployment.batch,), INT32, VisibleLengths(), "in")


def output_tensors(config: ModelConfig, deployment: Deployment) -> tuple[TensorSpec, ...]:
    """The last parameters of every layer: sinks, output projection, the next streams."""
    x_out = (deployment.tokens, config.hc_mult, config.hidden_size)
    return (
        TensorSpec("attn_sink", (config.num_attention_heads,), FP32, Normal(std=2.0), "in"),
        *projection_tensors(config),
        TensorSpec("x_out", x_out, BF16, None, "out"),
    )


def layer_parameters(config: ModelConfig) -> dict[str, Number]:
    """Keyword parameters of every layer's golden."""
    return {
        "rms_eps": config.rms_norm_eps,
        "hc_eps": config.hc_eps,
        "sinkhorn_iters": config.hc_sinkhorn_iters,
        "win": config.sliding_window,
        "softmax_scale": config.softmax_scale,
    }


def layer_cases(
    config: ModelConfig, deployment: Deployment, ratio: int, reference: Starts, table: str
) -> tuple[Case, ...]:
    """Cases of every layer: positions, rows that are not stored, gates and sinks of other sizes."""
    some = Rows(WindowSlots(table), (None, Constant(-1)))
    return (
        Case("default", tags=("default", "real")),
        *start_cases(config, deployment, ratio or 128),
        Case("reference_starts", {"position_ids": Positions(reference)}, tags=("reference",)),
        # Every second token attends, but its row is not stored.
        Case("unstored_rows", {"ori_slot_mapping": some}, tags=("edge",)),
        # All gates near 1: the attention output reaches every stream, which the real gates keep it from.
        Case("open_gates", {"hc_attn_base": Constant(0.0)}, tags=("magnitude",)),
        Case("zero_tokens", {"x_hc": Rows(Uniform(-1.0, 1.0), (None, Constant(0.0)))}, tags=("edge", "eps")),
        Case("strong_sinks", {"attn_sink": Rows(Constant(200.0), (None, Constant(-200.0)))}, tags=("edge", "extreme")),
    )


def written_rows(op: Op, inputs: Inputs, pools: dict[str, str]) -> Masks:
    """For every pool the mask of the rows that its slot mapping names. `pools`: pool -> mapping."""
    shapes = {spec.name: spec.shape for spec in op.outputs}
    masks: Masks = {}
    for pool, mapping in pools.items():
        slots = inputs[mapping]
        assert isinstance(slots, Tensor)
        masks[pool] = rows_mask(shapes[pool], slots)
    return masks


def pooled_rows(op: Op, inputs: Inputs, rows: dict[str, tuple[str, int]]) -> Masks:
    """Everything is defined but for stages that hold a compressor's rows: stage -> (slot mapping, width).

    Such a stage [B, S, width] holds a row in [b, 0] where request b stores one in this step, and nothing else.
    """
    masks = all_defined(op, inputs)
    batch, seq = op.deployment.batch, op.deployment.seq
    for stage, (mapping, width) in rows.items():
        slots = inputs[mapping]
        assert isinstance(slots, Tensor)
        mask = torch.zeros(batch, seq, width, dtype=torch.bool)
        mask[:, 0] = (slots.view(batch, seq) >= 0).any(dim=1, keepdim=True)
        masks[stage] = mask
    return masks
