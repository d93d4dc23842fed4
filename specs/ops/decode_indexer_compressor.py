"""decode_indexer_compressor: the index key of a closed group of 4, rotated by a Hadamard matrix.

contracts/decode_compressor_indexer.md, section 4.
"""

from __future__ import annotations

import torch

from specs.compressors import CSA_INNER, Memory, compressor_op
from specs.distributions import Normal, Sylvester
from specs.model import Deployment, ModelConfig
from specs.paging import paging
from specs.registry import Case, Op
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
    memory = Memory(CACHE, "idx_block_table", SLOTS, STATE_SLOTS, pages.idx_max_blocks, pages.idx_block_num)
    return compressor_op(
        OP,
        KIND,
        config,
        deployment,
        width,
        memory,
        rotation=(TensorSpec("hadamard", (width, width), torch.bfloat16, Sylvester(), "in"),),
        # A matrix that is not symmetric: multiplied from the left it would give another row.
        more_cases=(Case("random_rotation", {"hadamard": Normal(std=width**-0.5)}, tags=("edge",)),),
    )
