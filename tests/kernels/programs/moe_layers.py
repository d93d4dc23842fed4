"""Three MoE layers in one program of a rank, on one set of windows: routed by the table, by score, by score again.

The streams go from layer to layer, as in a forward program; only data and the protocol order the calls.
"""

import pypto.language as pl
import pypto.language.distributed as pld

from kernels.moe import moe_inline
from kernels.sizes import (
    EP_WORLD_SIZE,
    HC_DIM,
    HC_MULT,
    MIX_HC,
    MOE_INTER,
    N_EXPERTS,
    N_HASH_LAYERS,
    N_LOCAL,
    RECV_MAX,
    TOPK,
    VOCAB,
    D,
    T,
)

LAYERS = 3
LANES = 8
RECORD = 4
LANE_ROWS = N_LOCAL * RECV_MAX
N_ROUTES = T * TOPK


@pl.jit
def moe_layers_rank(
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
    overflow: pl.Out[pl.Tensor[[LAYERS, RECORD], pl.INT32]],
    meta_window: pld.DistributedTensor[[EP_WORLD_SIZE, N_LOCAL], pl.INT32],
    recv_x: pld.DistributedTensor[[LANE_ROWS, D], pl.INT8],
    recv_aux: pld.DistributedTensor[[LANE_ROWS, LANES], pl.FP32],
    recv_route: pld.DistributedTensor[[LANE_ROWS, LANES], pl.INT32],
    arrived: pld.DistributedTensor[[EP_WORLD_SIZE, 1], pl.INT32],
    routed_window: pld.DistributedTensor[[N_ROUTES, D], pl.BF16],
    combine_arrived: pld.DistributedTensor[[EP_WORLD_SIZE, 1], pl.INT32],
    num_tokens: pl.Scalar[pl.INT32],
    my_rank: pl.Scalar[pl.INT32],
):
    first = pl.create_tensor([T, HC_MULT, D], dtype=pl.BF16)
    second = pl.create_tensor([T, HC_MULT, D], dtype=pl.BF16)
    overflow0 = overflow[0]
    moe_inline(
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
        first,
        overflow0,
        meta_window,
        recv_x,
        recv_aux,
        recv_route,
        arrived,
        routed_window,
        combine_arrived,
        0,
        num_tokens,
        my_rank,
        pl.const(1, pl.INT32),
    )
    overflow1 = overflow[1]
    moe_inline(
        first,
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
        second,
        overflow1,
        meta_window,
        recv_x,
        recv_aux,
        recv_route,
        arrived,
        routed_window,
        combine_arrived,
        N_HASH_LAYERS,
        num_tokens,
        my_rank,
        pl.const(2, pl.INT32),
    )
    overflow2 = overflow[2]
    moe_inline(
        second,
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
        overflow2,
        meta_window,
        recv_x,
        recv_aux,
        recv_route,
        arrived,
        routed_window,
        combine_arrived,
        N_HASH_LAYERS + 1,
        num_tokens,
        my_rank,
        pl.const(3, pl.INT32),
    )
    return x_next, overflow


@pl.jit.host
def moe_layers(
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
    overflow: pl.Out[pl.Tensor[[EP_WORLD_SIZE, LAYERS, RECORD], pl.INT32]],
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
        moe_layers_rank(
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
            num_tokens,
            rank,
            device=rank,
        )
    return x_next, overflow
