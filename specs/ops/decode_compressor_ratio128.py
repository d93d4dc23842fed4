"""decode_compressor_ratio128: the compressed KV row of a closed group of 128.

contracts/decode_compressor_indexer.md, section 3.
"""

from __future__ import annotations

import torch

from specs.compressors import (
    HCA_MAIN,
    cache_spec,
    cache_table,
    compressor_cases,
    compressor_mapping,
    kv_validity,
    mixed_starts,
    position_spec,
    rope_specs,
    slot_specs,
    state_specs,
    weight_specs,
)
from specs.distributions import Normal
from specs.model import Deployment, ModelConfig
from specs.paging import paging
from specs.registry import Inputs, Masks, Op
from specs.requirements import require_boxes, require_decode, require_multiple
from specs.tensors import TensorSpec

OP = "decode_compressor_ratio128"
KIND = HCA_MAIN
CACHE, SLOTS, STATE_SLOTS = "cmp_kv_cache", "cmp_slot_mapping", "state_slot_mapping"


def build(config: ModelConfig, deployment: Deployment) -> Op:
    """x [B, S, D], compress_state and its block table, wkv, wgate [HEAD_DIM, D], ape [128, HEAD_DIM], norm_w
    [HEAD_DIM], cos, sin [B, ROPE_DIM/2], the compressed pool, position_ids and two slot mappings [B, S] ->
    kv [B, S, HEAD_DIM] FP32, defined in kv[b, 0] of the requests that close a committed group, and the state and the
    pool in place.

    The block table of the pool is no input: the caller has lowered it to cmp_slot_mapping. B must be a multiple of 4,
    B*S at most 16 or a multiple of 16, D of 128, HEAD_DIM of 64.
    """
    width, pages = config.head_dim, paging(config, deployment)
    require_decode(OP, config, deployment)
    require_multiple(OP, "B", deployment.batch, 4)
    require_boxes(OP, deployment.tokens)
    require_multiple(OP, "D", config.hidden_size, 128)
    require_multiple(OP, "HEAD_DIM", width, 64)
    table = cache_table("cmp_block_table", pages.cmp_max_blocks, KIND.ratio)
    rows = (deployment.batch, deployment.seq)
    return Op(
        name=OP,
        config=config,
        deployment=deployment,
        signature=(
            TensorSpec("x", (*rows, config.hidden_size), torch.bfloat16, Normal(), "in"),
            TensorSpec("kv", (*rows, width), torch.float32, None, "out"),
            *state_specs(KIND, config, deployment, width),
            *weight_specs(KIND, config, width),
            *rope_specs(config, deployment, KIND.ratio),
            cache_spec(CACHE, pages.cmp_block_num, width, table, KIND.ratio),
            position_spec(mixed_starts(config, deployment, KIND.ratio), deployment),
            *slot_specs(deployment, KIND, SLOTS, table, STATE_SLOTS, "compress_state_block_table"),
        ),
        cases=compressor_cases(KIND, config, deployment, CACHE, SLOTS, table, STATE_SLOTS),
        parameters={"rms_eps": config.rms_norm_eps},
        validity=_validity,
        mapping=_mapping,
    )


def _validity(op: Op, inputs: Inputs) -> Masks:
    return kv_validity(op, inputs, KIND.ratio, SLOTS)


def _mapping(op: Op, inputs: Inputs) -> Masks:
    return compressor_mapping(op, inputs, KIND.ratio, "compress_state", STATE_SLOTS, CACHE, SLOTS)
