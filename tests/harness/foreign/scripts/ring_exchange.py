"""Shifts a matrix around a ring of ranks: each rank stores its tile into the window of the next one."""

# ci: devices=4

import argparse

import pypto.language as pl
import pypto.language.distributed as pld
import torch
from golden import TensorSpec, run_jit
from pypto.ir.distributed_compiled_program import DistributedConfig

ROWS = 16
COLS = 32
RANKS = 4


@pl.jit
def pass_on(
    mine: pl.Tensor[[ROWS, COLS], pl.INT32],
    theirs: pl.Out[pl.Tensor[[ROWS, COLS], pl.INT32]],
    inbox: pl.InOut[pld.DistributedTensor[[ROWS, COLS], pl.INT32]],
    ready: pl.InOut[pld.DistributedTensor[[1, 1], pl.INT32]],
    rank: pl.Scalar[pl.INT32],
):
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="shift"):
        after = (rank + 1) % RANKS
        pld.tensor.put(inbox, after, mine)
        pld.system.notify(ready, after, [0, 0], 1, op=pld.NotifyOp.Set)
        pld.system.wait(ready, [0, 0], 1, cmp=pld.WaitCmp.Eq)
        theirs[0:ROWS, 0:COLS] = inbox[0:ROWS, 0:COLS]
    return theirs


@pl.jit.host
def ring_exchange(
    x: pl.Tensor[[RANKS, ROWS, COLS], pl.INT32], y: pl.Out[pl.Tensor[[RANKS, ROWS, COLS], pl.INT32]]
):
    inbox_bytes = pld.alloc_window_buffer(ROWS * COLS * 4)
    ready_bytes = pld.alloc_window_buffer(4)
    inbox = pld.window(inbox_bytes, [ROWS, COLS], dtype=pl.INT32)
    ready = pld.window(ready_bytes, [1, 1], dtype=pl.INT32)
    for r in pl.range(pld.world_size()):
        pass_on(x[r], y[r], inbox, ready, r, device=r)
    return y


def golden_ring_exchange(tensors):
    tensors["y"][:] = tensors["x"].roll(1, dims=0)


def specs():
    shape = [RANKS, ROWS, COLS]
    return [
        TensorSpec(
            "x", shape, torch.int32, init_value=lambda: torch.randint(0, 1000, shape), resident="stacked"
        ),
        TensorSpec("y", shape, torch.int32, is_output=True),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("-p", "--platform", default="a2a3")
    parser.add_argument("-d", "--device", default="0,1,2,3")
    args = parser.parse_args()
    devices = [int(d) for d in args.device.split(",")][:RANKS]
    result = run_jit(
        ring_exchange,
        specs(),
        golden_fn=golden_ring_exchange,
        compile_cfg={"distributed_config": DistributedConfig(device_ids=devices)},
        runtime_cfg={"platform": args.platform},
        rtol=0,
        atol=0,
        save_data=False,
    )
    if not result.passed:
        print(result.error)
        raise SystemExit(1)
