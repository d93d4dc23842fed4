"""CALLS dispatches and combines in one program of a rank, on one set of windows, with inputs of their own.

In place of the experts stands a product that tells them apart: code * scale * weight * (global expert id + 1). No data
leads from one call to the next, so that only the protocol orders them. At the end a rank copies its signal cells.
"""

import pypto.language as pl
import pypto.language.distributed as pld

from kernels.moe_combine import moe_combine_inline
from kernels.moe_dispatch import moe_dispatch_inline
from kernels.sizes import EP_WORLD_SIZE, N_LOCAL, RECV_MAX, TOPK, D, T

CALLS = 3
LANES = 8
RECORD = 4
LANE_ROWS = N_LOCAL * RECV_MAX
N_ROUTES = T * TOPK
CELLS = 2  # arrived, combine_arrived


@pl.jit
def moe_calls_rank(
    indices: pl.Tensor[[CALLS, T, TOPK], pl.INT32],
    x_norm_i8: pl.Tensor[[CALLS, T, D], pl.INT8],
    x_norm_scale: pl.Tensor[[CALLS, T, 1], pl.FP32],
    weights: pl.Tensor[[CALLS, T, TOPK], pl.FP32],
    sh: pl.Tensor[[CALLS, T, D], pl.BF16],
    num_tokens: pl.Tensor[[CALLS], pl.INT32],
    ffn_out: pl.Out[pl.Tensor[[CALLS, T, D], pl.BF16]],
    recv_meta: pl.Out[pl.Tensor[[CALLS, EP_WORLD_SIZE, N_LOCAL], pl.INT32]],
    recv_r_route_out: pl.Out[pl.Tensor[[CALLS, N_LOCAL, RECV_MAX], pl.INT32]],
    overflow: pl.Out[pl.Tensor[[CALLS, RECORD], pl.INT32]],
    signals: pl.Out[pl.Tensor[[CELLS, EP_WORLD_SIZE], pl.INT32]],
    meta_window: pld.DistributedTensor[[EP_WORLD_SIZE, N_LOCAL], pl.INT32],
    recv_x: pld.DistributedTensor[[LANE_ROWS, D], pl.INT8],
    recv_aux: pld.DistributedTensor[[LANE_ROWS, LANES], pl.FP32],
    recv_route: pld.DistributedTensor[[LANE_ROWS, LANES], pl.INT32],
    arrived: pld.DistributedTensor[[EP_WORLD_SIZE, 1], pl.INT32],
    routed_window: pld.DistributedTensor[[N_ROUTES, D], pl.BF16],
    combine_arrived: pld.DistributedTensor[[EP_WORLD_SIZE, 1], pl.INT32],
    my_rank: pl.Scalar[pl.INT32],
):
    for call in pl.range(CALLS):
        epoch = pl.cast(call + 1, pl.INT32)
        active = pl.read(num_tokens, [call])
        recv_x_out = pl.create_tensor([N_LOCAL, RECV_MAX, D], dtype=pl.INT8)
        recv_scale_out = pl.create_tensor([N_LOCAL, RECV_MAX], dtype=pl.FP32)
        recv_w_out = pl.create_tensor([N_LOCAL, RECV_MAX], dtype=pl.FP32)
        recv_count_out = pl.create_tensor([N_LOCAL, 1], dtype=pl.INT32)
        recv_y = pl.create_tensor([N_LOCAL, RECV_MAX, D], dtype=pl.BF16)
        call_indices = indices[call]
        call_codes = x_norm_i8[call]
        call_scale = x_norm_scale[call]
        call_weights = weights[call]
        call_shared = sh[call]
        call_keys = recv_r_route_out[call]
        call_meta = recv_meta[call]
        call_overflow = overflow[call]
        call_out = ffn_out[call]
        moe_dispatch_inline(
            call_indices,
            call_codes,
            call_scale,
            call_weights,
            recv_x_out,
            recv_scale_out,
            recv_w_out,
            call_keys,
            recv_count_out,
            call_meta,
            call_overflow,
            meta_window,
            recv_x,
            recv_aux,
            recv_route,
            arrived,
            combine_arrived,
            active,
            my_rank,
            epoch,
        )

        x_rows = pl.reshape(recv_x_out, [LANE_ROWS, D])
        y_rows = pl.reshape(recv_y, [LANE_ROWS, D])
        for e in pl.spmd(N_LOCAL, name_hint="expert"):
            expert = pl.cast(my_rank * N_LOCAL + e + 1, pl.FP32)
            for c in pl.range(pl.read(recv_count_out, [e, 0])):
                row = e * RECV_MAX + c
                codes = pl.cast(pl.cast(x_rows[row : row + 1, 0:D], pl.FP16), pl.FP32)
                scaled = pl.mul(pl.mul(codes, pl.read(recv_scale_out, [e, c])), pl.read(recv_w_out, [e, c]))
                y_rows[row : row + 1, 0:D] = pl.cast(pl.mul(scaled, expert), pl.BF16, mode="rint")

        moe_combine_inline(
            recv_y,
            call_keys,
            call_shared,
            call_meta,
            call_out,
            routed_window,
            combine_arrived,
            active,
            my_rank,
            epoch,
        )

    with pl.at(level=pl.Level.CORE_GROUP, name_hint="signals"):
        for peer in pl.range(EP_WORLD_SIZE):
            pl.write(signals, [0, peer], pl.read(arrived, [peer, 0]))
            pl.write(signals, [1, peer], pl.read(combine_arrived, [peer, 0]))
    return ffn_out, recv_meta, recv_r_route_out, overflow, signals


@pl.jit.host
def moe_calls(
    indices: pl.Tensor[[EP_WORLD_SIZE, CALLS, T, TOPK], pl.INT32],
    x_norm_i8: pl.Tensor[[EP_WORLD_SIZE, CALLS, T, D], pl.INT8],
    x_norm_scale: pl.Tensor[[EP_WORLD_SIZE, CALLS, T, 1], pl.FP32],
    weights: pl.Tensor[[EP_WORLD_SIZE, CALLS, T, TOPK], pl.FP32],
    sh: pl.Tensor[[EP_WORLD_SIZE, CALLS, T, D], pl.BF16],
    num_tokens: pl.Tensor[[EP_WORLD_SIZE, CALLS], pl.INT32],
    ffn_out: pl.Out[pl.Tensor[[EP_WORLD_SIZE, CALLS, T, D], pl.BF16]],
    recv_meta: pl.Out[pl.Tensor[[EP_WORLD_SIZE, CALLS, EP_WORLD_SIZE, N_LOCAL], pl.INT32]],
    recv_r_route_out: pl.Out[pl.Tensor[[EP_WORLD_SIZE, CALLS, N_LOCAL, RECV_MAX], pl.INT32]],
    overflow: pl.Out[pl.Tensor[[EP_WORLD_SIZE, CALLS, RECORD], pl.INT32]],
    signals: pl.Out[pl.Tensor[[EP_WORLD_SIZE, CELLS, EP_WORLD_SIZE], pl.INT32]],
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
        moe_calls_rank(
            indices[rank],
            x_norm_i8[rank],
            x_norm_scale[rank],
            weights[rank],
            sh[rank],
            num_tokens[rank],
            ffn_out[rank],
            recv_meta[rank],
            recv_r_route_out[rank],
            overflow[rank],
            signals[rank],
            meta_window,
            recv_x,
            recv_aux,
            recv_route,
            arrived,
            routed_window,
            combine_arrived,
            rank,
            device=rank,
        )
    return ffn_out, recv_meta, recv_r_route_out, overflow, signals
