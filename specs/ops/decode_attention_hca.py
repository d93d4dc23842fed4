"""decode_attention_hca: the attention sub-layer of a ratio-128 layer (contracts/decode_attention.md, 6)."""

from __future__ import annotations

import torch

from goldens.numerics.visibility import hca_slots
from specs.attention import require_whole_tail
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
from specs.compressors import HCA_MAIN, cache_spec, state_specs, weight_specs
from specs.distributions import (
    HCA_LAYER9,
    CompressedSlots,
    KvTable,
    StateRows,
    StateSlots,
    VisibleLengths,
    WindowSlots,
)
from specs.distributions.positions import hca_starts, mixed_starts
from specs.model import Deployment, ModelConfig
from specs.paging import paging
from specs.registry import Case, Inputs, Masks, Op
from specs.tensors import TensorSpec

OP = "decode_attention_hca"
RATIO = HCA_MAIN.ratio
TABLE, STATE_TABLE, POOL_TABLE = "ori_block_table", "compress_state_block_table", "cmp_block_table"


def build(config: ModelConfig, deployment: Deployment) -> Op:
    """As decode_attention_swa, with rotary tables of the compressed profile, and the ratio-128 compressor: its weights,
    its paged state in place, the compressed pool cmp_kv in place, and their block tables and slot mappings.

    Stages: those of decode_attention_swa, but for win_bias, and cmp_cos, cmp_sin [B, ROPE_DIM/2] FP32 (at the start of
    the group of the step's first token), compress_state and cmp_kv after the step, pooled_kv [B, S, HEAD_DIM] FP32 (in
    pooled_kv[b, 0] the compressed row of a request that stores one), cmp_sparse_indices [T, columns] INT32 in the form
    of decode_sparse_attn_hca.

    T must be 8 or 16, S at most 2, B a multiple of 4, WIN 128. Refused where the list has no room for all slots.
    """
    require_layer(OP, config, deployment)
    require_whole_tail(OP, config)
    pages = paging(config, deployment)
    return Op(
        name=OP,
        config=config,
        deployment=deployment,
        signature=(
            *input_tensors(config, deployment, HCA_LAYER9, RATIO),
            *weight_specs(HCA_MAIN, config, config.head_dim, "cmp_"),
            *state_specs(HCA_MAIN, config, deployment, config.head_dim),
            *ring_tensors(config, deployment, TABLE),
            cache_spec("cmp_kv", pages.cmp_block_num, config.head_dim, POOL_TABLE, RATIO),
            TensorSpec(POOL_TABLE, (deployment.batch, pages.cmp_max_blocks), torch.int32, KvTable(RATIO), "in"),
            slot_tensor("ori_slot_mapping", deployment, WindowSlots(TABLE)),
            slot_tensor("cmp_slot_mapping", deployment, CompressedSlots(POOL_TABLE, RATIO)),
            slot_tensor("state_slot_mapping", deployment, StateSlots(STATE_TABLE, HCA_MAIN.page)),
            position_tensor(config, deployment, mixed_starts(config, deployment, RATIO)),
            length_tensor(deployment),
            *output_tensors(config, deployment),
        ),
        cases=(*layer_cases(config, deployment, RATIO, hca_starts(config, deployment), TABLE), *_cases(deployment)),
        parameters=layer_parameters(config) | {"slots": hca_slots(config.max_position_embeddings, config.index_topk)},
        validity=_validity,
        mapping=_mapping,
    )


def _cases(deployment: Deployment) -> tuple[Case, ...]:
    committed = deployment.seq - 1
    return (
        # The last token of a step is not committed: the slot it closes is neither written nor attended.
        Case(
            "uncommitted",
            {
                "kv_seq_lens": VisibleLengths(committed),
                "cmp_slot_mapping": CompressedSlots(POOL_TABLE, RATIO, commit_tokens=committed),
            },
            tags=("edge",),
        ),
        # The state of the reference's fixture: zeros, the scores, too.
        Case(
            "zero_state",
            {"compress_state": StateRows(STATE_TABLE, RATIO, kv_std=0.0, score_std=0.0, dead="zero")},
            tags=("reference",),
        ),
    )


def _validity(op: Op, inputs: Inputs) -> Masks:
    return pooled_rows(op, inputs, {"pooled_kv": ("cmp_slot_mapping", op.config.head_dim)})


def _mapping(op: Op, inputs: Inputs) -> Masks:
    pools = {
        "compress_state": "state_slot_mapping",
        "kv_cache": "ori_slot_mapping",
        "cmp_kv": "cmp_slot_mapping",
    }
    return written_rows(op, inputs, pools)
