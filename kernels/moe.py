"""moe: the FFN half of a layer on every rank, a host program. Contract: moe_and_layers.md, sections 5 to 7.

Per rank, each step the kernel of its own op, spliced in:

    hc_pre -> gate -> expert_shared
                   -> moe_dispatch -> expert_routed -> moe_combine -> hc_post

The GM tensors between them carry the names of the contract. `moe_inline` is for programs that call it once per layer:
the windows stay, `moe_epoch` counts the calls. The router leaves rows beyond the last active box unwritten and gives
inactive rows a scale of zero; the codes start from zero, so that the shared expert makes +0 of them and not of garbage.
"""

import pypto.language as pl
import pypto.language.distributed as pld

from kernels.expert_routed import expert_routed_inline
from kernels.expert_shared import expert_shared_inline
from kernels.gate import gate_inline
from kernels.hc_post import hc_post_inline
from kernels.hc_pre import hc_pre_inline
from kernels.moe_combine import moe_combine_inline
from kernels.moe_dispatch import moe_dispatch_inline
from kernels.sizes import (
    EP_WORLD_SIZE,
    HC_DIM,
    HC_MULT,
    MIX_HC,
    MOE_INTER,
    N_EXPERTS,
    N_LOCAL,
    RECV_MAX,
    TOPK,
    VOCAB,
    D,
    T,
)

LANES = 8  # columns of a side row: 32 bytes
RECORD = 4  # source, global expert, load, depth
LANE_ROWS = N_LOCAL * RECV_MAX
N_ROUTES = T * TOPK


@pl.jit.inline
def moe_inline(
    x_hc: pl.Tensor[[T, HC_MULT, D], pl.BF16],
    hc_ffn_fn: pl.Tensor[[MIX_HC, HC_DIM], pl.FP32],
    hc_ffn_scale: pl.Tensor[[3], pl.FP32],
    hc_ffn_base: pl.Tensor[[MIX_HC], pl.FP32],
    norm_w: pl.Tensor[[D], pl.BF16],
    gate_w: pl.Tensor[[N_EXPERTS, D], pl.FP32],
    gate_bias: pl.Tensor[[N_EXPERTS], pl.FP32],
    tid2eid: pl.Tensor[[VOCAB, TOPK], pl.INT32],
    input_ids: pl.Tensor[[T], pl.INT64],
    routed_w1: pl.Tensor[[N_LOCAL, MOE_INTER, D], pl.INT8],
    routed_w1_scale: pl.Tensor[[N_LOCAL, MOE_INTER], pl.FP32],
    routed_w3: pl.Tensor[[N_LOCAL, MOE_INTER, D], pl.INT8],
    routed_w3_scale: pl.Tensor[[N_LOCAL, MOE_INTER], pl.FP32],
    routed_w2: pl.Tensor[[N_LOCAL, D, MOE_INTER], pl.INT8],
    routed_w2_scale: pl.Tensor[[N_LOCAL, D], pl.FP32],
    shared_w1: pl.Tensor[[MOE_INTER, D], pl.INT8],
    shared_w1_scale: pl.Tensor[[MOE_INTER], pl.FP32],
    shared_w3: pl.Tensor[[MOE_INTER, D], pl.INT8],
    shared_w3_scale: pl.Tensor[[MOE_INTER], pl.FP32],
    shared_w2: pl.Tensor[[D, MOE_INTER], pl.INT8],
    shared_w2_scale: pl.Tensor[[D], pl.FP32],
    x_next: pl.Out[pl.Tensor[[T, HC_MULT, D], pl.BF16]],
    overflow: pl.Out[pl.Tensor[[RECORD], pl.INT32]],
    meta_window: pld.DistributedTensor[[EP_WORLD_SIZE, N_LOCAL], pl.INT32],
    recv_x: pld.DistributedTensor[[LANE_ROWS, D], pl.INT8],
    recv_aux: pld.DistributedTensor[[LANE_ROWS, LANES], pl.FP32],
    recv_route: pld.DistributedTensor[[LANE_ROWS, LANES], pl.INT32],
    arrived: pld.DistributedTensor[[EP_WORLD_SIZE, 1], pl.INT32],
    routed_window: pld.DistributedTensor[[N_ROUTES, D], pl.BF16],
    combine_arrived: pld.DistributedTensor[[EP_WORLD_SIZE, 1], pl.INT32],
    layer_id: pl.Scalar[pl.INT32],
    num_tokens: pl.Scalar[pl.INT32],
    my_rank: pl.Scalar[pl.INT32],
    moe_epoch: pl.Scalar[pl.INT32],
):
    x_mixed = pl.create_tensor([T, D], dtype=pl.BF16)
    post = pl.create_tensor([T, HC_MULT], dtype=pl.FP32)
    comb = pl.create_tensor([T, HC_MULT * HC_MULT], dtype=pl.FP32)
    x_norm = pl.create_tensor([T, D], dtype=pl.BF16)
    x_norm_i8 = pl.create_tensor([T, D], dtype=pl.INT8, init_value=0)
    x_norm_scale = pl.create_tensor([T, 1], dtype=pl.FP32)
    indices = pl.create_tensor([T, TOPK], dtype=pl.INT32)
    weights = pl.create_tensor([T, TOPK], dtype=pl.FP32)
    sh = pl.create_tensor([T, D], dtype=pl.BF16)
    recv_x_out = pl.create_tensor([N_LOCAL, RECV_MAX, D], dtype=pl.INT8)
    recv_scale_out = pl.create_tensor([N_LOCAL, RECV_MAX], dtype=pl.FP32)
    recv_w_out = pl.create_tensor([N_LOCAL, RECV_MAX], dtype=pl.FP32)
    recv_r_route_out = pl.create_tensor([N_LOCAL, RECV_MAX], dtype=pl.INT32)
    recv_count_out = pl.create_tensor([N_LOCAL, 1], dtype=pl.INT32)
    recv_meta = pl.create_tensor([EP_WORLD_SIZE, N_LOCAL], dtype=pl.INT32)
    recv_y = pl.create_tensor([N_LOCAL, RECV_MAX, D], dtype=pl.BF16)
    ffn_out = pl.create_tensor([T, D], dtype=pl.BF16)

    hc_pre_inline(x_hc, hc_ffn_fn, hc_ffn_scale, hc_ffn_base, x_mixed, post, comb)
    gate_inline(
        x_mixed,
        norm_w,
        gate_w,
        gate_bias,
        layer_id,
        num_tokens,
        tid2eid,
        input_ids,
        x_norm,
        x_norm_i8,
        x_norm_scale,
        indices,
        weights,
    )
    expert_shared_inline(
        x_norm_i8,
        x_norm_scale,
        shared_w1,
        shared_w1_scale,
        shared_w3,
        shared_w3_scale,
        shared_w2,
        shared_w2_scale,
        sh,
    )
    moe_dispatch_inline(
        indices,
        x_norm_i8,
        x_norm_scale,
        weights,
        recv_x_out,
        recv_scale_out,
        recv_w_out,
        recv_r_route_out,
        recv_count_out,
        recv_meta,
        overflow,
        meta_window,
        recv_x,
        recv_aux,
        recv_route,
        arrived,
        combine_arrived,
        num_tokens,
        my_rank,
        moe_epoch,
    )
    expert_routed_inline(
        recv_x_out,
        recv_scale_out,
        recv_w_out,
        recv_count_out,
        routed_w1,
        routed_w1_scale,
        routed_w3,
        routed_w3_scale,
        routed_w2,
        routed_w2_scale,
        recv_y,
    )
    moe_combine_inline(
        recv_y,
        recv_r_route_out,
        sh,
        recv_meta,
        ffn_out,
        routed_window,
        combine_arrived,
        num_tokens,
        my_rank,
        moe_epoch,
    )
    hc_post_inline(ffn_out, x_hc, post, comb, x_next)
    return x_next, overflow


@pl.jit
def moe_rank(
    x_hc: pl.Tensor[[T, HC_MULT, D], pl.BF16],
    hc_ffn_fn: pl.Tensor[[MIX_HC, HC_DIM], pl.FP32],
    hc_ffn_scale: pl.Tensor[[3], pl.FP32],
    hc_ffn_base: pl.Tensor[[MIX_HC], pl.FP32],
    norm_w: pl.Tensor[[D], pl.BF16],
    gate_w: pl.Tensor[[N_EXPERTS, D], pl.FP32],
    gate_bias: pl.Tensor[[N_EXPERTS], pl.FP32],
    tid2eid: pl.Tensor[[VOCAB, TOPK], pl.INT32],
    input_ids: pl.Tensor[[T], pl.INT64],
    routed_w1: pl.Tensor[[N_LOCAL, MOE_INTER, D], pl.INT8],
    routed_w1_scale: pl.Tensor[[N_LOCAL, MOE_INTER], pl.FP32],
    routed_w3: pl.Tensor[[N_LOCAL, MOE_INTER, D], pl.INT8],
    routed_w3_scale: pl.Tensor[[N_LOCAL, MOE_INTER], pl.FP32],
    routed_w2: pl.Tensor[[N_LOCAL, D, MOE_INTER], pl.INT8],
    routed_w2_scale: pl.Tensor[[N_LOCAL, D], pl.FP32],
    shared_w1: pl.Tensor[[MOE_INTER, D], pl.INT8],
    shared_w1_scale: pl.Tensor[[MOE_INTER], pl.FP32],
    shared_w3: pl.Tensor[[MOE_INTER, D], pl.INT8],
    shared_w3_scale: pl.Tensor[[MOE_INTER], pl.FP32],
    shared_w2: pl.Tensor[[D, MOE_INTER], pl.INT8],
    shared_w2_scale: pl.Tensor[[D], pl.FP32],
    x_next: pl.Out[pl.Tensor[[T, HC_MULT, D], pl.BF16]],
    overflow: pl.Out[pl.Tensor[[RECORD], pl.INT32]],
    meta_window: pld.DistributedTensor[[EP_WORLD_SIZE, N_LOCAL], pl.INT32],
    recv_x: pld.DistributedTensor[[LANE_ROWS, D], pl.INT8],
    recv_aux: pld.DistributedTensor[[LANE_ROWS, LANES], pl.FP32],
    recv_route: pld.DistributedTensor[[LANE_ROWS, LANES], pl.INT32],
    arrived: pld.DistributedTensor[[EP_WORLD_SIZE, 1], pl.INT32],
    routed_window: pld.DistributedTensor[[N_ROUTES, D], pl.BF16],
    combine_arrived: pld.DistributedTensor[[EP_WORLD_SIZE, 1], pl.INT32],
    layer_id: pl.Scalar[pl.INT32],
    num_tokens: pl.Scalar[pl.INT32],
    my_rank: pl.Scalar[pl.INT32],
    moe_epoch: pl.Scalar[pl.INT32],
):
    return moe_inline(
        x_hc,
        hc_ffn_fn,
        hc_ffn_scale,
        hc_ffn_base,
        norm_w,
        gate_w,
        gate_bias,
        tid2eid,
        input_ids,
        routed_w1,
        routed_w1_scale,
        routed_w3,
        routed_w3_scale,
        routed_w2,
        routed_w2_scale,
        shared_w1,
        shared_w1_scale,
        shared_w3,
        shared_w3_scale,
        shared_w2,
        shared_w2_scale,
        x_next,
        overflow,
        meta_window,
        recv_x,
        recv_aux,
        recv_route,
        arrived,
        routed_window,
        combine_arrived,
        layer_id,
        num_tokens,
        my_rank,
        moe_epoch,
    )


@pl.jit.host
def moe(
    x_hc: pl.Tensor[[EP_WORLD_SIZE, T, HC_MULT, D], pl.BF16],
    hc_ffn_fn: pl.Tensor[[EP_WORLD_SIZE, MIX_HC, HC_DIM], pl.FP32],
    hc_ffn_scale: pl.Tensor[[EP_WORLD_SIZE, 3], pl.FP32],
    hc_ffn_base: pl.Tensor[[EP_WORLD_SIZE, MIX_HC], pl.FP32],
    norm_w: pl.Tensor[[EP_WORLD_SIZE, D], pl.BF16],
    gate_w: pl.Tensor[[EP_WORLD_SIZE, N_EXPERTS, D], pl.FP32],
    gate_bias: pl.Tensor[[EP_WORLD_SIZE, N_EXPERTS], pl.FP32],
    tid2eid: pl.Tensor[[EP_WORLD_SIZE, VOCAB, TOPK], pl.INT32],
    input_ids: pl.Tensor[[EP_WORLD_SIZE, T], pl.INT64],
    routed_w1: pl.Tensor[[EP_WORLD_SIZE, N_LOCAL, MOE_INTER, D], pl.INT8],
    routed_w1_scale: pl.Tensor[[EP_WORLD_SIZE, N_LOCAL, MOE_INTER], pl.FP32],
    routed_w3: pl.Tensor[[EP_WORLD_SIZE, N_LOCAL, MOE_INTER, D], pl.INT8],
    routed_w3_scale: pl.Tensor[[EP_WORLD_SIZE, N_LOCAL, MOE_INTER], pl.FP32],
    routed_w2: pl.Tensor[[EP_WORLD_SIZE, N_LOCAL, D, MOE_INTER], pl.INT8],
    routed_w2_scale: pl.Tensor[[EP_WORLD_SIZE, N_LOCAL, D], pl.FP32],
    shared_w1: pl.Tensor[[EP_WORLD_SIZE, MOE_INTER, D], pl.INT8],
    shared_w1_scale: pl.Tensor[[EP_WORLD_SIZE, MOE_INTER], pl.FP32],
    shared_w3: pl.Tensor[[EP_WORLD_SIZE, MOE_INTER, D], pl.INT8],
    shared_w3_scale: pl.Tensor[[EP_WORLD_SIZE, MOE_INTER], pl.FP32],
    shared_w2: pl.Tensor[[EP_WORLD_SIZE, D, MOE_INTER], pl.INT8],
    shared_w2_scale: pl.Tensor[[EP_WORLD_SIZE, D], pl.FP32],
    x_next: pl.Out[pl.Tensor[[EP_WORLD_SIZE, T, HC_MULT, D], pl.BF16]],
    overflow: pl.Out[pl.Tensor[[EP_WORLD_SIZE, RECORD], pl.INT32]],
    layer_id: pl.Scalar[pl.INT32],
    num_tokens: pl.Scalar[pl.INT32],
):
    meta_buffer = pld.alloc_window_buffer(EP_WORLD_SIZE * N_LOCAL * 4)
    x_buffer = pld.alloc_window_buffer(LANE_ROWS * D)
    aux_buffer = pld.alloc_window_buffer(LANE_ROWS * LANES * 4)
    route_buffer = pld.alloc_window_buffer(LANE_ROWS * LANES * 4)
    arrived_buffer = pld.alloc_window_buffer(EP_WORLD_SIZE * 4)
    routed_buffer = pld.alloc_window_buffer(N_ROUTES * D * 2)
    combine_arrived_buffer = pld.alloc_window_buffer(EP_WORLD_SIZE * 4)
    meta_window = pld.window(meta_buffer, [EP_WORLD_SIZE, N_LOCAL], dtype=pl.INT32)
    recv_x = pld.window(x_buffer, [LANE_ROWS, D], dtype=pl.INT8)
    recv_aux = pld.window(aux_buffer, [LANE_ROWS, LANES], dtype=pl.FP32)
    recv_route = pld.window(route_buffer, [LANE_ROWS, LANES], dtype=pl.INT32)
    arrived = pld.window(arrived_buffer, [EP_WORLD_SIZE, 1], dtype=pl.INT32)
    routed_window = pld.window(routed_buffer, [N_ROUTES, D], dtype=pl.BF16)
    combine_arrived = pld.window(combine_arrived_buffer, [EP_WORLD_SIZE, 1], dtype=pl.INT32)

    for rank in pl.range(pld.world_size()):
        moe_rank(
            x_hc[rank],
            hc_ffn_fn[rank],
            hc_ffn_scale[rank],
            hc_ffn_base[rank],
            norm_w[rank],
            gate_w[rank],
            gate_bias[rank],
            tid2eid[rank],
            input_ids[rank],
            routed_w1[rank],
            routed_w1_scale[rank],
            routed_w3[rank],
            routed_w3_scale[rank],
            routed_w2[rank],
            routed_w2_scale[rank],
            shared_w1[rank],
            shared_w1_scale[rank],
            shared_w3[rank],
            shared_w3_scale[rank],
            shared_w2[rank],
            shared_w2_scale[rank],
            x_next[rank],
            overflow[rank],
            meta_window,
            recv_x,
            recv_aux,
            recv_route,
            arrived,
            routed_window,
            combine_arrived,
            layer_id,
            num_tokens,
            rank,
            pl.const(1, pl.INT32),
            device=rank,
        )
    return x_next, overflow
