"""decode_compressor_ratio128: the compressed KV row of a closed group of 128.

contracts/decode_compressor_indexer.md, section 3.
"""

from __future__ import annotations

from specs.compressors import HCA_MAIN, Memory, compressor_op
from specs.model import Deployment, ModelConfig
from specs.paging import paging
from specs.registry import Op

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
    pages = paging(config, deployment)
    memory = Memory(CACHE, "cmp_block_table", SLOTS, STATE_SLOTS, pages.cmp_max_blocks, pages.cmp_block_num)
    return compressor_op(OP, KIND, config, deployment, config.head_dim, memory)
