"""moe_combine: expert rows back to their routes, then their sum. Contract: moe_and_layers.md, sections 4 and 7.

    return   weighted rows to the ranks they came from, a signal, a wait for every peer   one task
    reduce   shared expert plus TOPK routed rows, FP32, choices ascending                 block: TOKENS tokens
    close    the own cell of `combine_arrived` says that this call is summed              one task

`return` walks the dense rows of an expert in the order in which moe_dispatch laid them: by source, then slot. A
row goes to row key of `routed_y_buf` on its source, which has one writer per route. Rows are puts, complete when they
return, so that the signal cannot overtake them; it counts calls. A key that is no route is not written anywhere.

Nobody signals the own cell of `combine_arrived`: `close` writes the call's number there, and the next moe_dispatch
of this rank waits for it before it sends. It is a plain write, so that the runtime orders that task after the sum, too.
"""

import pypto.language as pl
import pypto.language.distributed as pld

from kernels.sizes import EP_WORLD_SIZE, N_EXPERTS, N_LOCAL, RECV_MAX, TOPK, D, T, choose

TOKENS = choose(pr672=1, before_pr672=4)

if EP_WORLD_SIZE * N_LOCAL != N_EXPERTS:
    raise ValueError(f"moe_combine: {EP_WORLD_SIZE} ranks of {N_LOCAL} experts do not make N_EXPERTS = {N_EXPERTS}")
if T % TOKENS:
    raise ValueError(f"moe_combine: T = {T} is not a multiple of {TOKENS}")

N_ROUTES = T * TOPK


@pl.jit.inline
def moe_combine_inline(
    recv_y: pl.Tensor[[N_LOCAL, RECV_MAX, D], pl.BF16],
    recv_r_route_out: pl.Tensor[[N_LOCAL, RECV_MAX], pl.INT32],
    sh: pl.Tensor[[T, D], pl.BF16],
    recv_meta: pl.Tensor[[EP_WORLD_SIZE, N_LOCAL], pl.INT32],
    ffn_out: pl.Out[pl.Tensor[[T, D], pl.BF16]],
    routed_window: pld.DistributedTensor[[N_ROUTES, D], pl.BF16],
    combine_arrived: pld.DistributedTensor[[EP_WORLD_SIZE, 1], pl.INT32],
    num_tokens: pl.Scalar[pl.INT32],
    my_rank: pl.Scalar[pl.INT32],
    moe_epoch: pl.Scalar[pl.INT32],
):
    """`recv_meta` are the counts that moe_dispatch of the same call took as arrived, row = source."""
    active = pl.max(pl.min(num_tokens, T), 0)
    y_rows = pl.reshape(recv_y, [N_LOCAL * RECV_MAX, D])

    with pl.at(level=pl.Level.CORE_GROUP, name_hint="moe_return"):
        for e in pl.range(N_LOCAL):
            base = pl.const(0, pl.INT32)
            for source in pl.range(EP_WORLD_SIZE):
                count = pl.read(recv_meta, [source, e])
                for s in pl.range(count):
                    column = base + s
                    key = pl.read(recv_r_route_out, [e, column])
                    if key >= 0 and key < N_ROUTES:
                        pld.tensor.put(routed_window, source, y_rows, [key, 0], [e * RECV_MAX + column, 0], [1, D])
                base = base + count
        for peer in pl.range(EP_WORLD_SIZE):
            if peer != my_rank:
                pld.system.notify(combine_arrived, peer, [my_rank, 0], 1, op=pld.NotifyOp.AtomicAdd)
        for peer in pl.range(EP_WORLD_SIZE):
            if peer != my_rank:
                pld.system.wait(combine_arrived, [peer, 0], moe_epoch, cmp=pld.WaitCmp.Ge)

    with pl.spmd(T // TOKENS, name_hint="moe_reduce") as reduce_task:
        t0 = pl.tile.get_block_idx() * TOKENS
        for t in pl.range(t0, t0 + TOKENS):
            if t < active:
                total = pl.cast(sh[t : t + 1, 0:D], pl.FP32)
                for k in pl.range(TOPK):
                    route = t * TOPK + k
                    total = pl.add(total, pl.cast(routed_window[route : route + 1, 0:D], pl.FP32))
                ffn_out[t : t + 1, 0:D] = pl.cast(total, pl.BF16, mode="rint")
            else:
                ffn_out[t : t + 1, 0:D] = sh[t : t + 1, 0:D]

    with pl.at(level=pl.Level.CORE_GROUP, name_hint="moe_close", deps=[reduce_task]):
        pl.write(combine_arrived, [my_rank, 0], moe_epoch)

    return ffn_out


@pl.jit
def moe_combine_rank(
    recv_y: pl.Tensor[[N_LOCAL, RECV_MAX, D], pl.BF16],
    recv_r_route_out: pl.Tensor[[N_LOCAL, RECV_MAX], pl.INT32],
    sh: pl.Tensor[[T, D], pl.BF16],
    recv_meta: pl.Tensor[[EP_WORLD_SIZE, N_LOCAL], pl.INT32],
    num_tokens: pl.Tensor[[1], pl.INT32],
    ffn_out: pl.Out[pl.Tensor[[T, D], pl.BF16]],
    routed_y_buf: pl.Out[pl.Tensor[[N_ROUTES, D], pl.BF16]],
    routed_window: pld.DistributedTensor[[N_ROUTES, D], pl.BF16],
    combine_arrived: pld.DistributedTensor[[EP_WORLD_SIZE, 1], pl.INT32],
    my_rank: pl.Scalar[pl.INT32],
    moe_epoch: pl.Scalar[pl.INT32],
):
    active = pl.read(num_tokens, [0])
    ffn_out = moe_combine_inline(
        recv_y,
        recv_r_route_out,
        sh,
        recv_meta,
        ffn_out,
        routed_window,
        combine_arrived,
        active,
        my_rank,
        moe_epoch,
    )
    for t in pl.spmd(T, name_hint="moe_copy_routed"):
        for k in pl.range(TOPK):
            route = t * TOPK + k
            routed_y_buf[route : route + 1, 0:D] = routed_window[route : route + 1, 0:D]
    return ffn_out, routed_y_buf


@pl.jit.host
def moe_combine(
    recv_y: pl.Tensor[[EP_WORLD_SIZE, N_LOCAL, RECV_MAX, D], pl.BF16],
    recv_r_route_out: pl.Tensor[[EP_WORLD_SIZE, N_LOCAL, RECV_MAX], pl.INT32],
    sh: pl.Tensor[[EP_WORLD_SIZE, T, D], pl.BF16],
    recv_meta: pl.Tensor[[EP_WORLD_SIZE, EP_WORLD_SIZE, N_LOCAL], pl.INT32],
    num_tokens: pl.Tensor[[EP_WORLD_SIZE, 1], pl.INT32],
    ffn_out: pl.Out[pl.Tensor[[EP_WORLD_SIZE, T, D], pl.BF16]],
    routed_y_buf: pl.Out[pl.Tensor[[EP_WORLD_SIZE, N_ROUTES, D], pl.BF16]],
):
    routed_buffer = pld.alloc_window_buffer(N_ROUTES * D * 2)
    combine_arrived_buffer = pld.alloc_window_buffer(EP_WORLD_SIZE * 4)
    routed_window = pld.window(routed_buffer, [N_ROUTES, D], dtype=pl.BF16)
    combine_arrived = pld.window(combine_arrived_buffer, [EP_WORLD_SIZE, 1], dtype=pl.INT32)

    for rank in pl.range(pld.world_size()):
        moe_combine_rank(
            recv_y[rank],
            recv_r_route_out[rank],
            sh[rank],
            recv_meta[rank],
            num_tokens[rank],
            ffn_out[rank],
            routed_y_buf[rank],
            routed_window,
            combine_arrived,
            rank,
            pl.const(1, pl.INT32),
            device=rank,
        )
    return ffn_out, routed_y_buf
