"""Golden of decode_attention_swa: the attention sub-layer of a layer without compression, for one decode step.

contracts/decode_attention.md, section 5; the step numbers are those of 5.3.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from goldens.checks import expect
from goldens.decode_sparse_attn_swa import decode_sparse_attn_swa
from goldens.numerics.attention_layers import (
    INPUT_STAGES,
    PROJECTION_STAGES,
    Chain,
    attention_input,
    attention_result,
    step_positions,
)
from goldens.numerics.visibility import window_bias

OP = "decode_attention_swa"
STAGES = (*INPUT_STAGES, "win_bias", *PROJECTION_STAGES, "kv_cache", "x_out")


def decode_attention_swa(
    x_hc: Tensor,
    hc_attn_fn: Tensor,
    hc_attn_scale: Tensor,
    hc_attn_base: Tensor,
    attn_norm_w: Tensor,
    wq_a: Tensor,
    wq_b: Tensor,
    wq_b_scale: Tensor,
    wkv: Tensor,
    gamma_cq: Tensor,
    gamma_ckv: Tensor,
    freqs_cos: Tensor,
    freqs_sin: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    ori_slot_mapping: Tensor,
    position_ids: Tensor,
    cmp_kv: Tensor,
    cmp_block_table: Tensor,
    attn_sink: Tensor,
    wo_a: Tensor,
    wo_b: Tensor,
    wo_b_scale: Tensor,
    *,
    rms_eps: float,
    hc_eps: float,
    sinkhorn_iters: int,
    win: int,
    softmax_scale: float,
    taps: dict[str, Tensor] | None = None,
    given: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Mix the streams, attend the last WIN positions, write this step's rows to the ring, mix back.

    x_hc [T, HC, D] BF16, hc_attn_fn [MIX, HC*D], hc_attn_scale [3], hc_attn_base [MIX] FP32; the projections as in
    qkv_proj_rope and decode_sparse_attn_csa; freqs_cos, freqs_sin [MAX_SEQ_LEN, ROPE_DIM] BF16; kv_cache
    [pages, 128, 1, HEAD_DIM] BF16 with block_table [B, 1] INT32; ori_slot_mapping [T] INT64, below 0 for rows that are
    not stored; position_ids [T] INT32, consecutive within a request. cmp_kv and cmp_block_table are not read.

    Returns kv_cache after the step (a new tensor, untouched but for the rows written) and x_out [T, HC, D] BF16. All
    tokens attend the ring as it was before the step, and this step's rows, up to their own, from the overlay.
    `given` may hold any stage of a device.

    Raises GoldenInputError for a wrong shape or dtype, a position outside the tables or out of order, and a page or a
    slot outside the pool.
    """
    chain = Chain(OP, given)
    batch, _ = expect(f"{OP}: block_table", block_table, (None, None), torch.int32)
    length, _ = expect(f"{OP}: freqs_cos", freqs_cos, (None, None), torch.bfloat16)
    positions = step_positions(OP, position_ids, batch, length)
    attention_input(
        chain,
        x_hc,
        (hc_attn_fn, hc_attn_scale, hc_attn_base),
        attn_norm_w,
        (wq_a, wq_b, wq_b_scale, wkv, gamma_cq, gamma_ckv),
        (freqs_cos, freqs_sin),
        position_ids,
        rms_eps=rms_eps,
        hc_eps=hc_eps,
        sinkhorn_iters=sinkhorn_iters,
    )
    stages = chain.stages
    win_bias = chain.put("win_bias", window_bias(positions, win))  # step 5
    inner: dict[str, Tensor] = {}
    unused = torch.full((position_ids.shape[0], win), -1, dtype=torch.int32)
    decode_sparse_attn_swa(  # step 6
        stages["q"],
        kv_cache,
        block_table,
        stages["kv"],
        cmp_kv,
        cmp_block_table,
        unused,
        win_bias,
        attn_sink,
        stages["rope_cos"],
        stages["rope_sin"],
        wo_a,
        wo_b,
        wo_b_scale,
        win=win,
        softmax_scale=softmax_scale,
        taps=inner,
        given=chain.only(*PROJECTION_STAGES[:-1]),
    )
    for name in PROJECTION_STAGES:
        chain.put(name, inner[name])
    attention_result(chain, x_hc, kv_cache, ori_slot_mapping)  # steps 7, 8
    if taps is not None:
        taps.update(stages)
    return {name: stages[name] for name in ("kv_cache", "x_out")}
