"""Golden of decode_attention_hca: the attention sub-layer of a ratio-128 layer, for one decode step.

contracts/decode_attention.md, section 6; the step numbers are those of 6.3.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from goldens.checks import expect
from goldens.decode_compressor_ratio128 import decode_compressor_ratio128
from goldens.decode_sparse_attn_hca import decode_sparse_attn_hca
from goldens.numerics.attention_layers import (
    INPUT_STAGES,
    PROJECTION_STAGES,
    Chain,
    attention_input,
    attention_result,
    group_starts,
    step_positions,
)
from goldens.numerics.rope import half_rows
from goldens.numerics.visibility import hca_list

OP = "decode_attention_hca"
RATIO = 128
STAGES = (
    *INPUT_STAGES, "cmp_cos", "cmp_sin", "compress_state", "pooled_kv", "cmp_kv", "cmp_sparse_indices",
    *PROJECTION_STAGES, "kv_cache", "x_out",
)  # fmt: skip


def decode_attention_hca(
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
    cmp_wkv: Tensor,
    cmp_wgate: Tensor,
    cmp_ape: Tensor,
    cmp_norm_w: Tensor,
    compress_state: Tensor,
    compress_state_block_table: Tensor,
    kv_cache: Tensor,
    ori_block_table: Tensor,
    cmp_kv: Tensor,
    cmp_block_table: Tensor,
    ori_slot_mapping: Tensor,
    cmp_slot_mapping: Tensor,
    state_slot_mapping: Tensor,
    position_ids: Tensor,
    kv_seq_lens: Tensor,
    attn_sink: Tensor,
    wo_a: Tensor,
    wo_b: Tensor,
    wo_b_scale: Tensor,
    *,
    rms_eps: float,
    hc_eps: float,
    sinkhorn_iters: int,
    win: int,
    slots: int,
    softmax_scale: float,
    taps: dict[str, Tensor] | None = None,
    given: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """As decode_attention_swa, and every compressed row of a closed group of 128 positions is attended, too.

    The compressor's parameters are those of decode_compressor_ratio128, its slot mappings flat [T] INT64; kv_seq_lens
    [B] INT32 counts the committed positions; `slots` is the most compressed rows that are attended. A group that closes
    in this step is attended in this step.

    Returns compress_state, kv_cache and cmp_kv after the step (new tensors) and x_out [T, HC, D] BF16. `given` may hold
    any stage of a device. Raises GoldenInputError as decode_attention_swa and decode_compressor_ratio128.
    """
    chain = Chain(OP, given)
    batch, _ = expect(f"{OP}: ori_block_table", ori_block_table, (None, None), torch.int32)
    length, _ = expect(f"{OP}: freqs_cos", freqs_cos, (None, None), torch.bfloat16)
    expect(f"{OP}: kv_seq_lens", kv_seq_lens, (batch,), torch.int32)
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
    cos, sin = half_rows(freqs_cos, freqs_sin, group_starts(positions, RATIO))
    cmp_cos, cmp_sin = chain.put("cmp_cos", cos), chain.put("cmp_sin", sin)
    compressed = decode_compressor_ratio128(  # step 4: before attention, which sees its row
        stages["x_normed"].view(*positions.shape, -1),
        compress_state,
        compress_state_block_table,
        cmp_wkv,
        cmp_wgate,
        cmp_ape,
        cmp_norm_w,
        cmp_cos,
        cmp_sin,
        cmp_kv,
        positions,
        cmp_slot_mapping.view(positions.shape),
        state_slot_mapping.view(positions.shape),
        rms_eps=rms_eps,
        given=chain.only("compress_state", pooled_kv="kv"),
    )
    chain.put("compress_state", compressed["compress_state"])
    chain.put("pooled_kv", compressed["kv"])
    pool = chain.put("cmp_kv", compressed["cmp_kv_cache"])
    listed = chain.put("cmp_sparse_indices", hca_list(positions, kv_seq_lens, win, slots))  # step 5
    inner: dict[str, Tensor] = {}
    decode_sparse_attn_hca(  # step 6
        stages["q"],
        kv_cache,
        ori_block_table,
        stages["kv"],
        pool,
        cmp_block_table,
        listed,
        attn_sink,
        stages["rope_cos"],
        stages["rope_sin"],
        wo_a,
        wo_b,
        wo_b_scale,
        win=win,
        slots=slots,
        softmax_scale=softmax_scale,
        taps=inner,
        given=chain.only(*PROJECTION_STAGES[:-1]),
    )
    for name in PROJECTION_STAGES:
        chain.put(name, inner[name])
    attention_result(chain, x_hc, kv_cache, ori_slot_mapping)  # steps 7, 8
    if taps is not None:
        taps.update(stages)
    return {name: stages[name] for name in ("compress_state", "kv_cache", "cmp_kv", "x_out")}
