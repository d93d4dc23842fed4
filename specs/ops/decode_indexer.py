"""decode_indexer: scores of all visible compressed rows, the best of them.

contracts/decode_compressor_indexer.md, section 5.
"""

from __future__ import annotations

import math

import torch

from specs.compressors import (
    CSA_INNER,
    cache_spec,
    compressor_mapping,
    kv_validity,
    mixed_starts,
    position_spec,
    reference_state,
    rope_specs,
    slot_specs,
    start_cases,
    state_specs,
    weight_specs,
)
from specs.distributions import (
    Q8,
    CompressedRows,
    CompressedSlots,
    Constant,
    IdentityTable,
    KvTable,
    MatchingScale,
    Normal,
    Positions,
    RopeAt,
    Rows,
    Sylvester,
    TransposedFp8Weight,
    Uniform,
    VisibleLengths,
)
from specs.distributions.positions import csa_starts, legal
from specs.model import Deployment, ModelConfig
from specs.paging import paging
from specs.registry import Case, Inputs, Masks, Op
from specs.requirements import require_between, require_boxes, require_decode, require_multiple
from specs.tensors import Distribution, ScalarSpec, TensorSpec

OP = "decode_indexer"
RATIO = CSA_INNER.ratio
STATE, STATE_TABLE = "inner_compress_state", "inner_compress_state_block_table"
CACHE, SLOTS, STATE_SLOTS = "idx_kv_cache", "idx_slot_mapping", "inner_state_slot_mapping"
LONGEST_SCORES = 4096
QUERY_STD, QUERY_SPREAD = 0.108, 0.56
WEIGHTS_STD, MEASURED_AT = 0.2313, 4096


def build(config: ModelConfig, deployment: Deployment) -> Op:
    """x [B, S, D], the INT8 query qr [T, Q_LORA] with its scale, the projections, rotary rows, the inner compressor's
    state and weights, the pool of index keys, positions, slots, lengths and an offset -> score [B, S, SCORE_LEN] FP32,
    topk_idxs [B, S, SCORE_LEN] INT32; inner_kv, the inner state and the pool as decode_indexer_compressor leaves them.

    Rotary rows are those of the model: cos, sin [T, ROPE_DIM/2] turn the query of each token at its own position,
    inner_cos, inner_sin [B, ROPE_DIM/2] turn the new key at the first position of its group. The reference has one
    pair per request for both (contract 5.4, faults 1 and 2); the golden offers that as a variant.

    B must be a multiple of 4, B*S of 8 and at most 16, D and Q_LORA of 128, IDX_TOPK a multiple of 8 and at most
    SCORE_LEN, SCORE_LEN at most 4096.
    """
    batch, seq, tokens = deployment.batch, deployment.seq, deployment.tokens
    heads, width, lora = config.index_n_heads, config.index_head_dim, config.q_lora_rank
    scores = config.max_position_embeddings // RATIO
    require_decode(OP, config, deployment)
    require_multiple(OP, "B", batch, 4)
    require_multiple(OP, "T", tokens, 8)
    require_boxes(OP, tokens)
    require_multiple(OP, "D", config.hidden_size, 128)
    require_multiple(OP, "Q_LORA", lora, 128)
    require_multiple(OP, "IDX_TOPK", config.index_topk, 8)
    require_between(OP, "IDX_TOPK", config.index_topk, 8, scores)
    require_between(OP, "SCORE_LEN", scores, 128, LONGEST_SCORES)
    pages = paging(config, deployment)
    bf16, fp32, int32 = torch.bfloat16, torch.float32, torch.int32
    gain = math.sqrt(MEASURED_AT / config.hidden_size)
    inner_kv_state, inner_table = state_specs(CSA_INNER, config, deployment, width, "inner_")
    return Op(
        name=OP,
        config=config,
        deployment=deployment,
        signature=(
            TensorSpec("x", (batch, seq, config.hidden_size), bf16, Normal(), "in"),
            TensorSpec("qr", (tokens, lora), torch.int8, Q8(), "in"),
            TensorSpec("qr_scale", (tokens, 1), fp32, MatchingScale("qr"), "in"),
            TensorSpec("wq_b", (lora, heads * width), torch.int8, TransposedFp8Weight(QUERY_STD, QUERY_SPREAD), "in"),
            TensorSpec("wq_b_scale", (heads * width,), fp32, MatchingScale("wq_b"), "in"),
            TensorSpec("weights_proj", (config.hidden_size, heads), bf16, Normal(std=WEIGHTS_STD * gain), "in"),
            TensorSpec("cos", (tokens, config.rope_half), fp32, RopeAt("cos", RATIO, "token"), "in"),
            TensorSpec("sin", (tokens, config.rope_half), fp32, RopeAt("sin", RATIO, "token"), "in"),
            *rope_specs(config, deployment, RATIO, "inner_"),
            TensorSpec("hadamard", (width, width), bf16, Sylvester(), "in"),
            TensorSpec("inner_kv", (batch, seq, width), fp32, None, "out"),
            inner_kv_state,
            inner_table,
            *weight_specs(CSA_INNER, config, width, "inner_"),
            cache_spec(CACHE, pages.idx_block_num, width, "idx_block_table", RATIO),
            TensorSpec("idx_block_table", (batch, pages.idx_max_blocks), int32, KvTable(RATIO), "in"),
            TensorSpec("score", (batch, seq, scores), fp32, None, "out"),
            TensorSpec("topk_idxs", (batch, seq, scores), int32, None, "out"),
            position_spec(mixed_starts(config, deployment, RATIO), deployment),
            *slot_specs(deployment, CSA_INNER, SLOTS, "idx_block_table", STATE_SLOTS, STATE_TABLE),
            TensorSpec("kv_seq_lens", (batch,), int32, VisibleLengths(), "in"),
            ScalarSpec("offset", int32, config.sliding_window + seq),
        ),
        cases=_cases(config, deployment),
        parameters={
            "rms_eps": config.rms_norm_eps,
            "index_topk": config.index_topk,
            "weights_scale": config.index_weights_scale,
            "score_len": scores,
        },
        validity=_validity,
        mapping=_mapping,
    )


def _cases(config: ModelConfig, deployment: Deployment) -> tuple[Case, ...]:
    topk, seq = config.index_topk, deployment.seq

    def cache(name: str, rows: CompressedRows, *tags: str) -> Case:
        return Case(name, {CACHE: rows}, tags=tags)

    reference: dict[str, Distribution] = {
        "x": Uniform(0.0, 1.0),
        "qr": Q8(Uniform(0.0, 1.0)),
        "hadamard": Uniform(0.0, config.index_head_dim**-0.5),
        CACHE: Uniform(0.0, 1.0),
        "idx_block_table": IdentityTable(),
        "position_ids": Positions(csa_starts(config, deployment)),
        **reference_state(CSA_INNER, STATE),
    }
    # As many visible rows as are selected, one less and one more.
    around = (*(RATIO * (topk + more) - seq for more in (-1, 0, 1, 2)), RATIO * topk, RATIO * topk + 1)
    return (
        Case("default", tags=("default",)),
        *start_cases(config, deployment, RATIO),
        Case("topk_edge", {"position_ids": Positions(legal(around, config, deployment))}, tags=("edge",)),
        Case("reference_fixture", reference, {"offset": 128}, ("reference",)),
        Case("no_offset", scalars={"offset": 0}, tags=("edge",)),
        # Only the first token of a step is committed: the others see no more than it does.
        Case(
            "uncommitted",
            {"kv_seq_lens": VisibleLengths(seq - 1), SLOTS: _committed(seq - 1)},
            tags=("edge",),
        ),
        # Every key stands in four slots: of equals the lower index comes first.
        cache("ties", CompressedRows("idx_block_table", RATIO, copies=4), "ties"),
        # Keys below the quantiser's floor of 1e-4, and of zeros: all scores are zero.
        cache("tiny_keys", CompressedRows("idx_block_table", RATIO, scale=1e-5), "edge", "magnitude"),
        cache("zero_keys", CompressedRows("idx_block_table", RATIO, scale=0.0), "edge", "ties"),
        cache("large_keys", CompressedRows("idx_block_table", RATIO, scale=1e3), "magnitude"),
        Case("zero_query", {"qr": Q8(Rows(Normal(), (None, Constant(0.0))))}, tags=("edge", "ties")),
        # Every head's weight is negative: the best score is the least.
        Case("negative_weights", {"x": Constant(1.0), "weights_proj": Uniform(-0.02, 0.0)}, tags=("edge",)),
        Case("random_rotation", {"hadamard": Normal(std=config.index_head_dim**-0.5)}, tags=("edge",)),
        Case("zero_tokens", {"x": Constant(0.0)}, tags=("edge", "ties")),
    )


def _committed(tokens: int) -> Distribution:
    return CompressedSlots("idx_block_table", RATIO, commit_tokens=tokens)


def _validity(op: Op, inputs: Inputs) -> Masks:
    return kv_validity(op, inputs, RATIO, SLOTS, "inner_kv")


def _mapping(op: Op, inputs: Inputs) -> Masks:
    return compressor_mapping(op, inputs, RATIO, STATE, STATE_SLOTS, CACHE, SLOTS)
