"""Sum over ranks in two phases, reduce-scatter and all-gather, with put, notify and wait on windows."""

import argparse

import pypto.language as pl
import pypto.language.distributed as pld
import torch
from golden import TensorSpec, ratio_allclose, run_jit

parser = argparse.ArgumentParser()
parser.add_argument("-p", "--platform", default="a2a3sim", choices=["a2a3", "a2a3sim", "a5", "a5sim"])
parser.add_argument("-d", "--device", type=int, default=0)
parser.add_argument("-r", "--ranks", type=int, default=2, choices=[2, 4])
args = parser.parse_args()

RANKS = args.ranks
ROWS = 64
COLS = 256
CHUNK = ROWS // RANKS
COL_TILE = 64
COL_BLOCKS = COLS // COL_TILE
DATA_BYTES = ROWS * COLS * 4
SIGNAL_BYTES = RANKS * 4


@pl.jit
def all_reduce_rank(
    x: pl.Tensor[[ROWS, COLS], pl.FP32],
    y: pl.Out[pl.Tensor[[ROWS, COLS], pl.FP32]],
    parts: pl.InOut[pld.DistributedTensor[[ROWS, COLS], pl.FP32]],
    sums: pl.InOut[pld.DistributedTensor[[ROWS, COLS], pl.FP32]],
    sent: pl.InOut[pld.DistributedTensor[[RANKS, 1], pl.INT32]],
    done: pl.InOut[pld.DistributedTensor[[RANKS, 1], pl.INT32]],
    me: pl.Scalar[pl.INT32],
):
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="scatter") as scatter_tid:
        for p in pl.range(RANKS):
            pld.tensor.put(parts, p, x, [me * CHUNK, 0], [p * CHUNK, 0], [CHUNK, COLS])
            pld.system.notify(sent, p, [me, 0], 1, op=pld.NotifyOp.AtomicAdd)
        for p in pl.range(RANKS):
            pld.system.wait(sent, [p, 0], 1, cmp=pld.WaitCmp.Ge)

    for blk in pl.spmd(COL_BLOCKS, name_hint="reduce", deps=[scatter_tid]):
        c0 = blk * COL_TILE
        acc = pl.slice(parts, [CHUNK, COL_TILE], [0, c0])
        for p in pl.range(1, RANKS):
            acc = pl.add(acc, pl.slice(parts, [CHUNK, COL_TILE], [p * CHUNK, c0]))
        sums = pl.assemble(sums, acc, [me * CHUNK, c0])

    with pl.at(level=pl.Level.CORE_GROUP, name_hint="gather") as gather_tid:
        for step in pl.range(1, RANKS):
            p = (me + step) % RANKS
            pld.tensor.put(sums, p, sums, [me * CHUNK, 0], [me * CHUNK, 0], [CHUNK, COLS])
            pld.system.notify(done, p, [me, 0], 1, op=pld.NotifyOp.Set)
        for step in pl.range(1, RANKS):
            pld.system.wait(done, [(me + step) % RANKS, 0], 1, cmp=pld.WaitCmp.Eq)

    for blk in pl.spmd(COL_BLOCKS, name_hint="copy_out", deps=[gather_tid]):
        c0 = blk * COL_TILE
        y = pl.assemble(y, pl.slice(sums, [ROWS, COL_TILE], [0, c0]), [0, c0])
    return y


@pl.jit.host
def all_reduce(
    x: pl.Tensor[[RANKS, ROWS, COLS], pl.FP32],
    y: pl.Out[pl.Tensor[[RANKS, ROWS, COLS], pl.FP32]],
):
    parts_buf = pld.alloc_window_buffer(DATA_BYTES)
    sums_buf = pld.alloc_window_buffer(DATA_BYTES)
    sent_buf = pld.alloc_window_buffer(SIGNAL_BYTES)
    done_buf = pld.alloc_window_buffer(SIGNAL_BYTES)
    for r in pl.range(pld.world_size()):
        parts = pld.window(parts_buf, [ROWS, COLS], dtype=pl.FP32)
        sums = pld.window(sums_buf, [ROWS, COLS], dtype=pl.FP32)
        sent = pld.window(sent_buf, [RANKS, 1], dtype=pl.INT32)
        done = pld.window(done_buf, [RANKS, 1], dtype=pl.INT32)
        all_reduce_rank(x[r], y[r], parts, sums, sent, done, r, device=r)
    return y


def golden_fn(tensors):
    tensors["y"][:] = tensors["x"].sum(dim=0, keepdim=True)


def build_tensor_specs():
    return [
        TensorSpec("x", [RANKS, ROWS, COLS], torch.float32, init_value=torch.randn),
        TensorSpec("y", [RANKS, ROWS, COLS], torch.float32, is_output=True),
    ]


if __name__ == "__main__":
    from pypto.ir.distributed_compiled_program import DistributedConfig

    result = run_jit(
        fn=all_reduce,
        specs=build_tensor_specs(),
        golden_fn=golden_fn,
        compile_cfg={"distributed_config": DistributedConfig(device_ids=[args.device + r for r in range(RANKS)])},
        runtime_cfg={"platform": args.platform},
        rtol=1e-5,
        atol=1e-5,
        compare_fn={"y": ratio_allclose(atol=1e-5, rtol=1e-5, max_error_ratio=0.0)},
    )
    if not result.passed:
        if result.error:
            print(result.error)
        raise SystemExit(1)
