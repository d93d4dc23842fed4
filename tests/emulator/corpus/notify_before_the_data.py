"""The signal overtakes the data that it announces."""

import pypto.language as pl
import pypto.language.distributed as pld

WORLD = 3


@pl.jit
def child(
    x: pl.Tensor[[8, 16], pl.FP32],
    out: pl.Out[pl.Tensor[[8, 16], pl.FP32]],
    data: pld.DistributedTensor[[8, 16], pl.FP32],
    signal: pld.DistributedTensor[[8, 8], pl.INT32],
    rank: pl.Scalar[pl.INT32],
):
    n = pld.nranks(pld.get_comm_ctx(data))
    right = (rank + 1) % n
    with pl.at(level=pl.Level.CORE_GROUP):
        pld.system.notify(signal, right, [0, 0], 1, op=pld.NotifyOp.AtomicAdd)
        # repair: pld.tensor.put(data, right, x)
        pld.tensor.put(data, right, x)  # diagnosed: GG404
        # repair: pld.system.notify(signal, right, [0, 0], 1, op=pld.NotifyOp.AtomicAdd)
        pld.system.wait(signal, [0, 0], 1, cmp=pld.WaitCmp.Ge)
        out[:, :] = data[:, :]  # diagnosed: GG404
    return out


@pl.jit.host
def kernel(x: pl.Tensor[[WORLD, 8, 16], pl.FP32], out: pl.Out[pl.Tensor[[WORLD, 8, 16], pl.FP32]]):
    data_bytes = pld.alloc_window_buffer(8 * 16 * 4)
    signal_bytes = pld.alloc_window_buffer([8, 8], dtype=pl.INT32)
    data = pld.window(data_bytes, [8, 16], dtype=pl.FP32)
    signal = pld.window(signal_bytes, [8, 8], dtype=pl.INT32)
    for r in pl.range(pld.world_size()):
        child(x[r], out[r], data, signal, r, device=r)
    return out
