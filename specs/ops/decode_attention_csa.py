"""decode_attention_csa: the attention sub-layer of a ratio-4 layer (contracts/decode_attention.md, 7)."""

from __future__ import annotations

import math

import torch

from specs.attention_layers import (
    input_tensors,
    layer_cases,
    layer_parameters,
    length_tensor,
    output_tensors,
    pooled_rows,
    position_tensor,
    require_layer,
    ring_tensors,
    slot_tensor,
    written_rows,
)
from specs.compressors import CSA_INNER, CSA_MAIN, MEASURED_AT, cache_spec, state_specs, weight_specs
from specs.distributions import (
    CSA_LAYER8,
    CompressedSlots,
    Constant,
    KvTable,
    MatchingScale,
    Normal,
    Positions,
    StateRows,
    StateSlots,
    Sylvester,
    TransposedFp8Weight,
    VisibleLengths,
    WindowSlots,
)
from specs.distributions.positions import csa_starts, legal, mixed_starts
from specs.model import Deployment, ModelConfig
from specs.paging import paging
from specs.registry import Case, Inputs, Masks, Op
from specs.requirements import require_between, require_multiple
from specs.tensors import TensorSpec

OP = "decode_attention_csa"
RATIO = CSA_MAIN.ratio
TABLE, POOL_TABLE, KEY_TABLE = "ori_block_table", "cmp_block_table", "idx_block_table"
STATE_TABLE, INNER_TABLE = "compress_state_block_table", "inner_compress_state_block_table"
LONGEST_SCORES = 4096


def build(config: ModelConfig, deployment: Deployment) -> Op:
    """As decode_attention_hca, with the ratio-4 compressor, and the indexer with its inner compressor: weights, paged
    state and pool of keys in place, block tables and slot mappings.

    Stages: x_mixed, post, comb, rope_cos, rope_sin, cmp_cos, cmp_sin [B, ROPE_DIM/2] FP32 (at the start of the group of
    the step's first token: for both compressors), idx_cos, idx_sin [T, ROPE_DIM/2] FP32 (at each token's position: for
    the indexer's query), x_normed, q, kv, qr, qr_scale as in decode_attention_swa; compress_state, pooled_kv and
    cmp_kv as in decode_attention_hca; q_codes, q_scale, weights, inner_kv, inner_compress_state, idx_kv_cache, score
    and topk_idxs of decode_indexer; cmp_sparse_indices [T, columns] and valid_block_mask [T, columns / 128] INT32 in
    the form of decode_sparse_attn_csa; o_packed, o_r, o_codes, o_scale, attn_out, kv_cache, x_out.

    T must be 8 or 16, S at most 2, B a multiple of 4, WIN 128, IDX_TOPK a multiple of 8, SCORE_LEN at most 4096.
    """
    require_layer(OP, config, deployment)
    scores = config.max_position_embeddings // RATIO
    require_multiple(OP, "IDX_TOPK", config.index_topk, 8)
    require_between(OP, "IDX_TOPK", config.index_topk, 8, scores)
    require_between(OP, "SCORE_LEN", scores, 128, LONGEST_SCORES)
    heads, width, lora = config.index_n_heads, config.index_head_dim, config.q_lora_rank
    pages, batch = paging(config, deployment), deployment.batch
    bf16, fp32, int32 = torch.bfloat16, torch.float32, torch.int32
    gain = math.sqrt(MEASURED_AT / config.hidden_size)
    return Op(
        name=OP,
        config=config,
        deployment=deployment,
        signature=(
            *input_tensors(config, deployment, CSA_LAYER8, RATIO),
            *weight_specs(CSA_MAIN, config, config.head_dim, "cmp_"),
            *state_specs(CSA_MAIN, config, deployment, config.head_dim),
            TensorSpec("idx_wq_b", (lora, heads * width), torch.int8, TransposedFp8Weight(0.108, 0.56), "in"),
            TensorSpec("idx_wq_b_scale", (heads * width,), fp32, MatchingScale("idx_wq_b"), "in"),
            TensorSpec("weights_proj", (config.hidden_size, heads), bf16, Normal(std=0.2313 * gain), "in"),
            TensorSpec("hadamard_idx", (width, width), bf16, Sylvester(), "in"),
            *weight_specs(CSA_INNER, config, width, "inner_"),
            *state_specs(CSA_INNER, config, deployment, width, "inner_"),
            *ring_tensors(config, deployment, TABLE),
            cache_spec("cmp_kv", pages.cmp_block_num, config.head_dim, POOL_TABLE, RATIO),
            TensorSpec(POOL_TABLE, (batch, pages.cmp_max_blocks), int32, KvTable(RATIO), "in"),
            cache_spec("idx_kv_cache", pages.idx_block_num, width, KEY_TABLE, RATIO),
            TensorSpec(KEY_TABLE, (batch, pages.idx_max_blocks), int32, KvTable(RATIO), "in"),
            slot_tensor("ori_slot_mapping", deployment, WindowSlots(TABLE)),
            slot_tensor("cmp_slot_mapping", deployment, CompressedSlots(POOL_TABLE, RATIO)),
            slot_tensor("idx_slot_mapping", deployment, CompressedSlots(KEY_TABLE, RATIO)),
            slot_tensor("state_slot_mapping", deployment, StateSlots(STATE_TABLE, CSA_MAIN.page)),
            slot_tensor("inner_state_slot_mapping", deployment, StateSlots(INNER_TABLE, CSA_INNER.page)),
            position_tensor(config, deployment, mixed_starts(config, deployment, RATIO)),
            length_tensor(deployment),
            *output_tensors(config, deployment),
        ),
        cases=(
            *layer_cases(config, deployment, RATIO, csa_starts(config, deployment), TABLE),
            *_cases(config, deployment),
        ),
        parameters=layer_parameters(config)
        | {"index_topk": config.index_topk, "weights_scale": config.index_weights_scale, "score_len": scores},
        validity=_validity,
        mapping=_mapping,
    )


def _cases(config: ModelConfig, deployment: Deployment) -> tuple[Case, ...]:
    committed, topk = deployment.seq - 1, config.index_topk
    around = tuple(RATIO * (topk + more) - deployment.seq for more in (-1, 0, 1, 2))
    return (
        # As many visible slots as are selected, one less and one more.
        Case("topk_edge", {"position_ids": Positions(legal(around, config, deployment))}, tags=("edge",)),
        # The last token of a step is not committed: the slot it closes is neither written nor attended.
        Case(
            "uncommitted",
            {
                "kv_seq_lens": VisibleLengths(committed),
                "cmp_slot_mapping": CompressedSlots(POOL_TABLE, RATIO, commit_tokens=committed),
                "idx_slot_mapping": CompressedSlots(KEY_TABLE, RATIO, commit_tokens=committed),
            },
            tags=("edge",),
        ),
        # The states of the reference's fixture: small numbers where something was written, empty elsewhere.
        Case(
            "reference_state",
            {
                "compress_state": StateRows(STATE_TABLE, RATIO, kv_std=0.05, score_std=0.05, dead="empty"),
                "inner_compress_state": StateRows(INNER_TABLE, RATIO, kv_std=0.05, score_std=0.05, dead="empty"),
                "attn_sink": Constant(4.0),
            },
            tags=("reference",),
        ),
    )


def _validity(op: Op, inputs: Inputs) -> Masks:
    rows = {
        "pooled_kv": ("cmp_slot_mapping", op.config.head_dim),
        "inner_kv": ("idx_slot_mapping", op.config.index_head_dim),
    }
    return pooled_rows(op, inputs, rows)


def _mapping(op: Op, inputs: Inputs) -> Masks:
    pools = {
        "compress_state": "state_slot_mapping",
        "inner_compress_state": "inner_state_slot_mapping",
        "kv_cache": "ori_slot_mapping",
        "cmp_kv": "cmp_slot_mapping",
        "idx_kv_cache": "idx_slot_mapping",
    }
    return written_rows(op, inputs, pools)
