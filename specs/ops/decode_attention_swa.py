"""decode_attention_swa: the attention sub-layer of a layer without compression (contracts/decode_attention.md, 5)."""

from __future__ import annotations

import torch

from specs.attention_layers import (
    input_tensors,
    layer_cases,
    layer_parameters,
    output_tensors,
    position_tensor,
    require_layer,
    ring_tensors,
    slot_tensor,
    written_rows,
)
from specs.distributions import SWA_LAYER0, Constant, Integers, WindowSlots
from specs.distributions.positions import mixed_starts, swa_starts
from specs.model import Deployment, ModelConfig
from specs.paging import BLOCK_SIZE, paging
from specs.registry import Inputs, Masks, Op
from specs.tensors import TensorSpec

OP = "decode_attention_swa"
RATIO = 0
TABLE = "block_table"


def build(config: ModelConfig, deployment: Deployment) -> Op:
    """x_hc [T, HC, D] BF16, gates, projections and rotary tables of the base profile, the ring pool kv_cache in place
    with its block table and slot mapping, positions, sinks and the output projection -> x_out [T, HC, D] BF16.

    cmp_kv and cmp_block_table are not read: they hold NaN and page numbers out of range.

    Stages, by the names of the kernel's intermediates: x_mixed [T, D] BF16, post [T, HC], comb [T, HC*HC] FP32,
    rope_cos, rope_sin [T, ROPE_DIM] BF16, x_normed [T, D] BF16, qr [T, Q_LORA] INT8, qr_scale [T, 1] FP32,
    q [T, H, HEAD_DIM], kv [T, HEAD_DIM] BF16, win_bias [T, WIN + 128] FP32, o_packed, o_r, o_codes, o_scale and
    attn_out as in decode_sparse_attn_swa, kv_cache, x_out.

    T must be 8 or 16, S at most 2, B a multiple of 4, WIN 128.
    """
    require_layer(OP, config, deployment)
    pages = paging(config, deployment)
    pool = (pages.cmp_block_num, BLOCK_SIZE, 1, config.head_dim)
    table = (deployment.batch, pages.cmp_max_blocks)
    stale = Integers(-(2**31), 2**31 - 1)
    return Op(
        name=OP,
        config=config,
        deployment=deployment,
        signature=(
            *input_tensors(config, deployment, SWA_LAYER0, RATIO),
            *ring_tensors(config, deployment, TABLE),
            slot_tensor("ori_slot_mapping", deployment, WindowSlots(TABLE)),
            position_tensor(config, deployment, mixed_starts(config, deployment, 128)),
            TensorSpec("cmp_kv", pool, torch.bfloat16, Constant(torch.nan), "in"),
            TensorSpec("cmp_block_table", table, torch.int32, stale, "in"),
            *output_tensors(config, deployment),
        ),
        cases=layer_cases(config, deployment, RATIO, swa_starts(config, deployment), TABLE),
        parameters=layer_parameters(config),
        mapping=_mapping,
    )


def _mapping(op: Op, inputs: Inputs) -> Masks:
    return written_rows(op, inputs, {"kv_cache": "ori_slot_mapping"})
