"""decode_indexer_compressor: the index key of a closed group of 4, rotated by a Hadamard matrix.

contracts/decode_compressor_indexer.md, section 4.
"""

from __future__ import annotations

import torch

from specs.compressors import (
    CSA_INNER,
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
from specs.distributions import Normal, Sylvester
from specs.model import Deployment, ModelConfig
from specs.paging import paging
from specs.registry import Case, Inputs, Masks, Op
from specs.requirements import require_boxes, require_decode, require_multiple
from specs.tensors import TensorSpec

OP = "decode_indexer_compressor"
KIND = CSA_INNER
CACHE, SLOTS, STATE_SLOTS = "idx_kv_cache", "idx_slot_mapping", "inner_state_slot_mapping"


def build(config: ModelConfig, deployment: Deployment) -> Op:
    """As decode_compressor_ratio4 with rows of IDX_HEAD_DIM, and hadamard [IDX_HEAD_DIM, IDX_HEAD_DIM] BF16 between the
    rotary rows and the pool, idx_kv_cache. kv is the rotated row before its rounding to BF16.

    B must be a multiple of 4, B*S at most 16 or a multiple of 16, D of 128, IDX_HEAD_DIM of 64.
    """
    width, pages = config.index_head_dim, paging(config, deployment)
    require_decode(OP, config, deployment)
    require_multiple(OP, "B", deployment.batch, 4)
    require_boxes(OP, deployment.tokens)
    require_multiple(OP, "D", config.hidden_size, 128)
    require_multiple(OP, "IDX_HEAD_DIM", width, 64)
    table = cache_table("idx_block_table", pages.idx_max_blocks, KIND.ratio)
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
            TensorSpec("hadamard", (width, width), torch.bfloat16, Sylvester(), "in"),
            cache_spec(CACHE, pages.idx_block_num, width, table, KIND.ratio),
            position_spec(mixed_starts(config, deployment, KIND.ratio), deployment),
            *slot_specs(deployment, KIND, SLOTS, table, STATE_SLOTS, "compress_state_block_table"),
        ),
        cases=(
            *compressor_cases(KIND, config, deployment, CACHE, SLOTS, table, STATE_SLOTS),
            # A matrix that is not symmetric: multiplied from the left it would give another row.
            Case("random_rotation", {"hadamard": Normal(std=width**-0.5)}, tags=("edge",)),
        ),
        parameters={"rms_eps": config.rms_norm_eps},
        validity=_validity,
        mapping=_mapping,
    )


def _validity(op: Op, inputs: Inputs) -> Masks:
    return kv_validity(op, inputs, KIND.ratio, SLOTS)


def _mapping(op: Op, inputs: Inputs) -> Masks:
    return compressor_mapping(op, inputs, KIND.ratio, "compress_state", STATE_SLOTS, CACHE, SLOTS)
