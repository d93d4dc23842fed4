"""moe_dispatch: routes of every rank to the ranks that own the experts. Contract: moe_and_layers.md, sections 3 and 7.

One lane of MAX_PER_SRC window rows belongs to every pair of local expert and source, so that senders never
coordinate: row(e, a, s) = e * RECV_MAX + a * MAX_PER_SRC + s. Per rank:

    stage     scale, weight and key of every route as window rows     block: one token
    count     routes per expert; the guard of the lanes               one task
    send      payload, then counts, then a signal to every peer       one task
    arrive    waits for every peer; checks and copies the counts      one task
    gather    lanes to dense rows, ordered by source, token, choice   block: one local expert, by ROWS slots
    check     keys that arrived are routes of their origin            one task

Everything that leaves is a put, which is complete when it returns; a signal could overtake a plain remote store.
What a task waited for it hands on in memory of its own rank (`recv_meta`), so that the data orders later tasks.
Signals count calls: a wait is for `moe_epoch` of them, and is not satisfied by an earlier call on the same windows.
No barrier lies between two calls: a rank sends in call E once its own sum of call E - 1 is done, which moe_combine
writes to the own cell of `combine_arrived`. That sum had the rows of every peer, which had then emptied their lanes;
and peers return rows in call E only after they have heard this send.

The device has no trap. A source that has more than MAX_PER_SRC routes for an expert sends nothing, publishes zero
counts and records (source, expert, load, depth) of the lowest such expert in its `overflow` row; zeros say that all
is well. A receiver records in its own row what a sender without a guard would do to it: a count that no lane holds,
which it takes as 0, or a key that is no route (source, expert, key, N_ROUTES).
"""

import pypto.language as pl
import pypto.language.distributed as pld

from kernels.sizes import EP_WORLD_SIZE, N_EXPERTS, N_LOCAL, RECV_MAX, TOPK, D, T

LANES = 8  # columns of a side row: 32 bytes
ROWS = 8  # slots that are gathered at once

if EP_WORLD_SIZE * N_LOCAL != N_EXPERTS:
    raise ValueError(f"moe_dispatch: {EP_WORLD_SIZE} ranks of {N_LOCAL} experts do not make N_EXPERTS = {N_EXPERTS}")
if RECV_MAX % EP_WORLD_SIZE:
    raise ValueError(f"moe_dispatch: RECV_MAX = {RECV_MAX} does not divide over {EP_WORLD_SIZE} sources")
if N_LOCAL % LANES:
    raise ValueError(f"moe_dispatch: N_LOCAL = {N_LOCAL} is not a multiple of {LANES}")
if TOPK > LANES:
    raise ValueError(f"moe_dispatch: TOPK = {TOPK} is more than {LANES}")

MAX_PER_SRC = RECV_MAX // EP_WORLD_SIZE
LANE_ROWS = N_LOCAL * RECV_MAX
N_ROUTES = T * TOPK
RECORD = 4  # source, global expert, load, depth


@pl.jit.inline
def moe_dispatch_inline(
    indices: pl.Tensor[[T, TOPK], pl.INT32],
    x_norm_i8: pl.Tensor[[T, D], pl.INT8],
    x_norm_scale: pl.Tensor[[T, 1], pl.FP32],
    weights: pl.Tensor[[T, TOPK], pl.FP32],
    recv_x_out: pl.Out[pl.Tensor[[N_LOCAL, RECV_MAX, D], pl.INT8]],
    recv_scale_out: pl.Out[pl.Tensor[[N_LOCAL, RECV_MAX], pl.FP32]],
    recv_w_out: pl.Out[pl.Tensor[[N_LOCAL, RECV_MAX], pl.FP32]],
    recv_r_route_out: pl.Out[pl.Tensor[[N_LOCAL, RECV_MAX], pl.INT32]],
    recv_count_out: pl.Out[pl.Tensor[[N_LOCAL, 1], pl.INT32]],
    recv_meta: pl.Out[pl.Tensor[[EP_WORLD_SIZE, N_LOCAL], pl.INT32]],
    overflow: pl.Out[pl.Tensor[[RECORD], pl.INT32]],
    meta_window: pld.DistributedTensor[[EP_WORLD_SIZE, N_LOCAL], pl.INT32],
    recv_x: pld.DistributedTensor[[LANE_ROWS, D], pl.INT8],
    recv_aux: pld.DistributedTensor[[LANE_ROWS, LANES], pl.FP32],
    recv_route: pld.DistributedTensor[[LANE_ROWS, LANES], pl.INT32],
    arrived: pld.DistributedTensor[[EP_WORLD_SIZE, 1], pl.INT32],
    combine_arrived: pld.DistributedTensor[[EP_WORLD_SIZE, 1], pl.INT32],
    num_tokens: pl.Scalar[pl.INT32],
    my_rank: pl.Scalar[pl.INT32],
    moe_epoch: pl.Scalar[pl.INT32],
):
    """`recv_meta` is the own rank's copy of the counts that arrived, row = source."""
    active = pl.max(pl.min(num_tokens, T), 0)
    x_rows = pl.reshape(recv_x_out, [LANE_ROWS, D])
    aux_rows = pl.create_tensor([N_ROUTES, LANES], dtype=pl.FP32)
    key_rows = pl.create_tensor([N_ROUTES, LANES], dtype=pl.INT32)
    counts = pl.create_tensor([EP_WORLD_SIZE, N_LOCAL], dtype=pl.INT32)

    for t in pl.spmd(T, name_hint="moe_stage"):
        aux = pl.full([LANES, LANES], dtype=pl.FP32, value=0.0)
        keys = pl.full([LANES, LANES], dtype=pl.INT32, value=0)
        for k in pl.range(TOPK):
            pl.write(aux, [k, 0], pl.read(x_norm_scale, [t, 0]))
            pl.write(aux, [k, 1], pl.read(weights, [t, k]))
            pl.write(keys, [k, 0], pl.cast(t * TOPK + k, pl.INT32))
        aux_rows[t * TOPK : t * TOPK + TOPK, 0:LANES] = pl.set_validshape(aux, TOPK, LANES)
        key_rows[t * TOPK : t * TOPK + TOPK, 0:LANES] = pl.set_validshape(keys, TOPK, LANES)

    with pl.at(level=pl.Level.CORE_GROUP, name_hint="moe_count"):
        load = pl.array.create(N_EXPERTS, pl.INT32)
        for e in pl.range(N_EXPERTS):
            load[e] = pl.const(0, pl.INT32)
        for t in pl.range(active):
            for k in pl.range(TOPK):
                chosen = pl.read(indices, [t, k])
                load[chosen] = load[chosen] + pl.const(1, pl.INT32)
        highest = pl.const(0, pl.INT32)
        for i in pl.range(RECORD):
            pl.write(overflow, [i], pl.const(0, pl.INT32))
        for i in pl.range(N_EXPERTS):
            e = N_EXPERTS - 1 - i  # downwards: the lowest expert is recorded last
            highest = pl.max(highest, load[e])
            if load[e] > MAX_PER_SRC:
                pl.write(overflow, [0], my_rank)
                pl.write(overflow, [1], pl.cast(e, pl.INT32))
                pl.write(overflow, [2], load[e])
                pl.write(overflow, [3], pl.const(MAX_PER_SRC, pl.INT32))
        for peer in pl.range(EP_WORLD_SIZE):
            loads = pl.full([1, N_LOCAL], dtype=pl.INT32, value=0)
            if highest <= MAX_PER_SRC:
                for e in pl.range(N_LOCAL):
                    pl.write(loads, [0, e], load[peer * N_LOCAL + e])
            counts[peer : peer + 1, 0:N_LOCAL] = loads

    with pl.at(level=pl.Level.CORE_GROUP, name_hint="moe_send"):
        pld.system.wait(combine_arrived, [my_rank, 0], moe_epoch - 1, cmp=pld.WaitCmp.Ge)
        cursor = pl.array.create(N_EXPERTS, pl.INT32)
        for e in pl.range(N_EXPERTS):
            cursor[e] = pl.const(0, pl.INT32)
        for t in pl.range(active):
            for k in pl.range(TOPK):
                expert = pl.read(indices, [t, k])
                owner = expert // N_LOCAL
                local = expert % N_LOCAL
                slot = cursor[expert]
                # Only what is published is sent: after an overflow that is nothing.
                if slot < pl.read(counts, [owner, local]):
                    cursor[expert] = slot + pl.const(1, pl.INT32)
                    route = t * TOPK + k
                    lane = local * RECV_MAX + my_rank * MAX_PER_SRC + slot
                    pld.tensor.put(recv_x, owner, x_norm_i8, [lane, 0], [t, 0], [1, D])
                    pld.tensor.put(recv_aux, owner, aux_rows, [lane, 0], [route, 0], [1, LANES])
                    pld.tensor.put(recv_route, owner, key_rows, [lane, 0], [route, 0], [1, LANES])
        for peer in pl.range(EP_WORLD_SIZE):
            pld.tensor.put(meta_window, peer, counts, [my_rank, 0], [peer, 0], [1, N_LOCAL])
            if peer != my_rank:
                pld.system.notify(arrived, peer, [my_rank, 0], 1, op=pld.NotifyOp.AtomicAdd)

    with pl.at(level=pl.Level.CORE_GROUP, name_hint="moe_arrive"):
        for source in pl.range(EP_WORLD_SIZE):
            if source != my_rank:
                pld.system.wait(arrived, [source, 0], moe_epoch, cmp=pld.WaitCmp.Ge)
        for source in pl.range(EP_WORLD_SIZE):
            published = meta_window[source : source + 1, 0:N_LOCAL]
            for e in pl.range(N_LOCAL):
                number = pl.read(published, [0, e])
                if number < 0 or number > MAX_PER_SRC:
                    pl.write(overflow, [0], pl.cast(source, pl.INT32))
                    pl.write(overflow, [1], pl.cast(my_rank * N_LOCAL + e, pl.INT32))
                    pl.write(overflow, [2], number)
                    pl.write(overflow, [3], pl.const(MAX_PER_SRC, pl.INT32))
                    pl.write(published, [0, e], pl.const(0, pl.INT32))
            recv_meta[source : source + 1, 0:N_LOCAL] = published

    for e in pl.spmd(N_LOCAL, name_hint="moe_gather"):
        base = pl.const(0, pl.INT32)
        for source in pl.range(EP_WORLD_SIZE):
            count = pl.read(recv_meta, [source, e])
            for i in pl.range((count + ROWS - 1) // ROWS):
                rows = pl.min(ROWS, count - i * ROWS)
                first = e * RECV_MAX + source * MAX_PER_SRC + i * ROWS
                column = base + i * ROWS
                row = e * RECV_MAX + column
                x_rows[row : row + ROWS, 0:D] = pl.slice(recv_x, [ROWS, D], [first, 0], valid_shape=[rows, D])
                side = pl.transpose(pl.slice(recv_aux, [ROWS, LANES], [first, 0], valid_shape=[rows, LANES]), 0, 1)
                routes = pl.transpose(pl.slice(recv_route, [ROWS, LANES], [first, 0], valid_shape=[rows, LANES]), 0, 1)
                recv_scale_out[e : e + 1, column : column + ROWS] = side[0:1, 0:ROWS]
                recv_w_out[e : e + 1, column : column + ROWS] = side[1:2, 0:ROWS]
                recv_r_route_out[e : e + 1, column : column + ROWS] = routes[0:1, 0:ROWS]
            base = base + count
        pl.write(recv_count_out, [e, 0], base)

    with pl.at(level=pl.Level.CORE_GROUP, name_hint="moe_check"):
        for e in pl.range(N_LOCAL):
            below = pl.const(0, pl.INT32)
            for source in pl.range(EP_WORLD_SIZE):
                count = pl.read(recv_meta, [source, e])
                for s in pl.range(count):
                    key = pl.read(recv_r_route_out, [e, below + s])
                    if key < 0 or key >= N_ROUTES:
                        pl.write(overflow, [0], pl.cast(source, pl.INT32))
                        pl.write(overflow, [1], pl.cast(my_rank * N_LOCAL + e, pl.INT32))
                        pl.write(overflow, [2], key)
                        pl.write(overflow, [3], pl.const(N_ROUTES, pl.INT32))
                below = below + count

    return recv_x_out, recv_scale_out, recv_w_out, recv_r_route_out, recv_count_out, recv_meta, overflow


@pl.jit
def moe_dispatch_rank(
    indices: pl.Tensor[[T, TOPK], pl.INT32],
    x_norm_i8: pl.Tensor[[T, D], pl.INT8],
    x_norm_scale: pl.Tensor[[T, 1], pl.FP32],
    weights: pl.Tensor[[T, TOPK], pl.FP32],
    num_tokens: pl.Tensor[[1], pl.INT32],
    recv_x_out: pl.Out[pl.Tensor[[N_LOCAL, RECV_MAX, D], pl.INT8]],
    recv_scale_out: pl.Out[pl.Tensor[[N_LOCAL, RECV_MAX], pl.FP32]],
    recv_w_out: pl.Out[pl.Tensor[[N_LOCAL, RECV_MAX], pl.FP32]],
    recv_r_route_out: pl.Out[pl.Tensor[[N_LOCAL, RECV_MAX], pl.INT32]],
    recv_count_out: pl.Out[pl.Tensor[[N_LOCAL, 1], pl.INT32]],
    recv_meta: pl.Out[pl.Tensor[[EP_WORLD_SIZE, N_LOCAL], pl.INT32]],
    overflow: pl.Out[pl.Tensor[[RECORD], pl.INT32]],
    meta_window: pld.DistributedTensor[[EP_WORLD_SIZE, N_LOCAL], pl.INT32],
    recv_x: pld.DistributedTensor[[LANE_ROWS, D], pl.INT8],
    recv_aux: pld.DistributedTensor[[LANE_ROWS, LANES], pl.FP32],
    recv_route: pld.DistributedTensor[[LANE_ROWS, LANES], pl.INT32],
    arrived: pld.DistributedTensor[[EP_WORLD_SIZE, 1], pl.INT32],
    combine_arrived: pld.DistributedTensor[[EP_WORLD_SIZE, 1], pl.INT32],
    my_rank: pl.Scalar[pl.INT32],
    moe_epoch: pl.Scalar[pl.INT32],
):
    active = pl.read(num_tokens, [0])
    return moe_dispatch_inline(
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
        active,
        my_rank,
        moe_epoch,
    )


@pl.jit.host
def moe_dispatch(
    indices: pl.Tensor[[EP_WORLD_SIZE, T, TOPK], pl.INT32],
    x_norm_i8: pl.Tensor[[EP_WORLD_SIZE, T, D], pl.INT8],
    x_norm_scale: pl.Tensor[[EP_WORLD_SIZE, T, 1], pl.FP32],
    weights: pl.Tensor[[EP_WORLD_SIZE, T, TOPK], pl.FP32],
    num_tokens: pl.Tensor[[EP_WORLD_SIZE, 1], pl.INT32],
    recv_x_out: pl.Out[pl.Tensor[[EP_WORLD_SIZE, N_LOCAL, RECV_MAX, D], pl.INT8]],
    recv_scale_out: pl.Out[pl.Tensor[[EP_WORLD_SIZE, N_LOCAL, RECV_MAX], pl.FP32]],
    recv_w_out: pl.Out[pl.Tensor[[EP_WORLD_SIZE, N_LOCAL, RECV_MAX], pl.FP32]],
    recv_r_route_out: pl.Out[pl.Tensor[[EP_WORLD_SIZE, N_LOCAL, RECV_MAX], pl.INT32]],
    recv_count_out: pl.Out[pl.Tensor[[EP_WORLD_SIZE, N_LOCAL, 1], pl.INT32]],
    recv_meta: pl.Out[pl.Tensor[[EP_WORLD_SIZE, EP_WORLD_SIZE, N_LOCAL], pl.INT32]],
    overflow: pl.Out[pl.Tensor[[EP_WORLD_SIZE, RECORD], pl.INT32]],
):
    meta_buffer = pld.alloc_window_buffer(EP_WORLD_SIZE * N_LOCAL * 4)
    x_buffer = pld.alloc_window_buffer(LANE_ROWS * D)
    aux_buffer = pld.alloc_window_buffer(LANE_ROWS * LANES * 4)
    route_buffer = pld.alloc_window_buffer(LANE_ROWS * LANES * 4)
    arrived_buffer = pld.alloc_window_buffer(EP_WORLD_SIZE * 4)
    combine_arrived_buffer = pld.alloc_window_buffer(EP_WORLD_SIZE * 4)
    meta_window = pld.window(meta_buffer, [EP_WORLD_SIZE, N_LOCAL], dtype=pl.INT32)
    recv_x = pld.window(x_buffer, [LANE_ROWS, D], dtype=pl.INT8)
    recv_aux = pld.window(aux_buffer, [LANE_ROWS, LANES], dtype=pl.FP32)
    recv_route = pld.window(route_buffer, [LANE_ROWS, LANES], dtype=pl.INT32)
    arrived = pld.window(arrived_buffer, [EP_WORLD_SIZE, 1], dtype=pl.INT32)
    combine_arrived = pld.window(combine_arrived_buffer, [EP_WORLD_SIZE, 1], dtype=pl.INT32)

    for rank in pl.range(pld.world_size()):
        moe_dispatch_rank(
            indices[rank],
            x_norm_i8[rank],
            x_norm_scale[rank],
            weights[rank],
            num_tokens[rank],
            recv_x_out[rank],
            recv_scale_out[rank],
            recv_w_out[rank],
            recv_r_route_out[rank],
            recv_count_out[rank],
            recv_meta[rank],
            overflow[rank],
            meta_window,
            recv_x,
            recv_aux,
            recv_route,
            arrived,
            combine_arrived,
            rank,
            pl.const(1, pl.INT32),
            device=rank,
        )
    return (
        recv_x_out,
        recv_scale_out,
        recv_w_out,
        recv_r_route_out,
        recv_count_out,
        recv_meta,
        overflow,
    )
