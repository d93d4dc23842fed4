"""Golden of decode_attention_csa: the attention sub-layer of a ratio-4 layer, for one decode step.

contracts/decode_attention.md, section 7; the step numbers are those of 7.3.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from goldens.checks import expect
from goldens.decode_compressor_ratio4 import decode_compressor_ratio4
from goldens.decode_indexer import decode_indexer
from goldens.decode_sparse_attn_csa import decode_sparse_attn_csa
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
from goldens.numerics.visibility import BLOCK, csa_columns, csa_window

OP = "decode_attention_csa"
RATIO = 4
INDEXER_STAGES = (
    "q_codes", "q_scale", "weights", "inner_row_bf16", "inner_kv", "inner_compress_state", "idx_kv_cache", "score",
    "envelope", "selection", "topk_idxs",
)  # fmt: skip
"""Stages of decode_indexer that the layer takes over, in order; see there."""

STAGES = (
    *INPUT_STAGES, "cmp_cos", "cmp_sin", "idx_cos", "idx_sin", "compress_state", "pooled_kv", "cmp_kv", *INDEXER_STAGES,
    "cmp_sparse_indices", "valid_block_mask", *PROJECTION_STAGES, "kv_cache", "x_out",
)  # fmt: skip


def _listed(positions: Tensor, topk_idxs: Tensor, win: int, index_topk: int) -> Tensor:
    """Step 6: the window in physical order, then what the indexer selected, less what lies behind the token.

    topk_idxs [B, S, SCORE_LEN] INT32 holds raw indices. A rejected entry leaves a hole; nothing moves up. INT32
    [T, columns].
    """
    seq = positions.shape[1]
    first = win + seq
    raw = topk_idxs[..., :index_topk].reshape(-1, index_topk)
    behind = first + (positions.reshape(-1, 1) + 1) // RATIO
    selected = torch.where((raw >= first) & (raw < behind), raw, -1)
    listed = torch.cat([csa_window(positions, win), selected], dim=1)
    return pad(listed, (0, csa_columns(win, index_topk) - listed.shape[1]), value=-1)


def _block_mask(listed: Tensor) -> Tensor:
    """Step 7: INT32 [T, columns / 128]; 1 where a block lists something, and always for the window's."""
    mask = (listed.reshape(listed.shape[0], -1, BLOCK) >= 0).any(dim=2).int()
    mask[:, 0] = 1
    return mask


def decode_attention_csa(
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
    idx_wq_b: Tensor,
    idx_wq_b_scale: Tensor,
    weights_proj: Tensor,
    hadamard_idx: Tensor,
    inner_wkv: Tensor,
    inner_wgate: Tensor,
    inner_ape: Tensor,
    inner_norm_w: Tensor,
    inner_compress_state: Tensor,
    inner_compress_state_block_table: Tensor,
    kv_cache: Tensor,
    ori_block_table: Tensor,
    cmp_kv: Tensor,
    cmp_block_table: Tensor,
    idx_kv_cache: Tensor,
    idx_block_table: Tensor,
    ori_slot_mapping: Tensor,
    cmp_slot_mapping: Tensor,
    idx_slot_mapping: Tensor,
    state_slot_mapping: Tensor,
    inner_state_slot_mapping: Tensor,
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
    index_topk: int,
    weights_scale: float,
    score_len: int,
    softmax_scale: float,
    visible_by: Literal["token", "request"] = "token",
    query_rope: Literal["token", "request"] = "token",
    inner_rope: Literal["group", "query"] = "group",
    taps: dict[str, Tensor] | None = None,
    given: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """As decode_attention_swa, and up to index_topk compressed rows of the indexer's choice are attended, too.

    The compressors' and the indexer's parameters are those of decode_compressor_ratio4 and decode_indexer, slot
    mappings flat [T] INT64; kv_seq_lens [B] INT32 counts the committed positions. A group that closes in this step
    competes, and is attended, in this step.

    Returns compress_state, inner_compress_state, kv_cache, cmp_kv and idx_kv_cache after the step (new tensors) and
    x_out [T, HC, D] BF16. `given` may hold any stage of a device.

    The reference's faults are variants, as in decode_indexer: visible_by="request", query_rope="request" and
    inner_rope="query" together are the layer as the reference has it (7.3, 7.4).

    Raises GoldenInputError as decode_attention_swa, decode_compressor_ratio4 and decode_indexer.
    """
    chain = Chain(OP, given)
    batch, _ = expect(f"{OP}: ori_block_table", ori_block_table, (None, None), torch.int32)
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
    x = stages["x_normed"].view(*positions.shape, -1)
    cos, sin = half_rows(freqs_cos, freqs_sin, group_starts(positions, RATIO))  # step 2
    cmp_cos, cmp_sin = chain.put("cmp_cos", cos), chain.put("cmp_sin", sin)
    cos, sin = half_rows(freqs_cos, freqs_sin, position_ids)
    idx_cos, idx_sin = chain.put("idx_cos", cos), chain.put("idx_sin", sin)

    compressed = decode_compressor_ratio4(  # step 4: before attention, which sees its row
        x,
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

    indexed: dict[str, Tensor] = {}
    decode_indexer(  # step 5
        x,
        stages["qr"],
        stages["qr_scale"],
        idx_wq_b,
        idx_wq_b_scale,
        weights_proj,
        idx_cos,
        idx_sin,
        cmp_cos,
        cmp_sin,
        hadamard_idx,
        inner_compress_state,
        inner_compress_state_block_table,
        inner_wkv,
        inner_wgate,
        inner_ape,
        inner_norm_w,
        idx_kv_cache,
        idx_block_table,
        positions,
        idx_slot_mapping.view(positions.shape),
        inner_state_slot_mapping.view(positions.shape),
        kv_seq_lens,
        win + positions.shape[1],
        rms_eps=rms_eps,
        index_topk=index_topk,
        weights_scale=weights_scale,
        score_len=score_len,
        visible_by=visible_by,
        query_rope=query_rope,
        inner_rope=inner_rope,
        taps=indexed,
        given=chain.only(*INDEXER_STAGES),
    )
    for name in INDEXER_STAGES:
        chain.put(name, indexed[name])

    listed = chain.put("cmp_sparse_indices", _listed(positions, stages["topk_idxs"], win, index_topk))
    mask = chain.put("valid_block_mask", _block_mask(listed))
    inner: dict[str, Tensor] = {}
    decode_sparse_attn_csa(  # step 8
        stages["q"],
        kv_cache,
        ori_block_table,
        stages["kv"],
        pool,
        cmp_block_table,
        listed,
        mask,
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
    attention_result(chain, x_hc, kv_cache, ori_slot_mapping)  # steps 9, 10
    if taps is not None:
        taps.update(stages)
    pools = ("compress_state", "inner_compress_state", "kv_cache", "cmp_kv", "idx_kv_cache")
    return {name: stages[name] for name in (*pools, "x_out")}
