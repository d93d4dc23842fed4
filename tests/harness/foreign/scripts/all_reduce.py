"""Sum of one matrix per rank, on every rank: each rank pushes its part to all others and adds what arrived."""

# ci: devices=4

import argparse

import pypto.language as pl
import pypto.language.distributed as pld
import torch
from golden import TensorSpec, ratio_allclose, run_jit
from pypto.ir.distributed_compiled_program import DistributedConfig

RANKS = 4
ROWS = 8
COLS = 64


@pl.jit
def reduce_rank(
    part: pl.Tensor[[ROWS, COLS], pl.FP32],
    total: pl.Out[pl.Tensor[[ROWS, COLS], pl.FP32]],
    inbox: pl.InOut[pld.DistributedTensor[[RANKS * ROWS, COLS], pl.FP32]],
    arrived: pl.InOut[pld.DistributedTensor[[RANKS, 1], pl.INT32]],
    rank: pl.Scalar[pl.INT32],
):
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="exchange"):
        for peer in pl.range(RANKS):
            pld.tensor.put(inbox, peer, part, [rank * ROWS, 0], [0, 0], [ROWS, COLS])
            pld.system.notify(arrived, peer, [rank, 0], 1, op=pld.NotifyOp.AtomicAdd)
        for peer in pl.range(RANKS):
            pld.system.wait(arrived, [peer, 0], 1, cmp=pld.WaitCmp.Ge)
        acc = pl.full([ROWS, COLS], dtype=pl.FP32, value=0.0)
        for peer in pl.range(RANKS):
            acc = pl.add(acc, inbox[peer * ROWS : peer * ROWS + ROWS, 0:COLS])
        total[0:ROWS, 0:COLS] = acc
    return total


@pl.jit.host
def all_reduce(
    parts: pl.Tensor[[RANKS, ROWS, COLS], pl.FP32], totals: pl.Out[pl.Tensor[[RANKS, ROWS, COLS], pl.FP32]]
):
    inbox_bytes = pld.alloc_window_buffer(RANKS * ROWS * COLS * 4)
    arrived_bytes = pld.alloc_window_buffer(RANKS * 4)
    inbox = pld.window(inbox_bytes, [RANKS * ROWS, COLS], dtype=pl.FP32)
    arrived = pld.window(arrived_bytes, [RANKS, 1], dtype=pl.INT32)
    for r in pl.range(pld.world_size()):
        reduce_rank(parts[r], totals[r], inbox, arrived, r, device=r)
    return totals


def golden_all_reduce(tensors):
    tensors["totals"][:] = tensors["parts"].double().sum(dim=0).float()


def specs():
    return [
        TensorSpec("parts", [RANKS, ROWS, COLS], torch.float32, init_value=torch.randn),
        TensorSpec("totals", [RANKS, ROWS, COLS], torch.float32, is_output=True),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("-p", "--platform", default="a2a3")
    parser.add_argument("-d", "--device", default="0,1,2,3")
    args = parser.parse_args()
    devices = [int(d) for d in args.device.split(",")]
    if len(devices) != RANKS:
        raise SystemExit(f"need {RANKS} devices, got {len(devices)}")
    result = run_jit(
        all_reduce,
        specs(),
        golden_fn=golden_all_reduce,
        compile_cfg={"distributed_config": DistributedConfig(device_ids=devices)},
        runtime_cfg={"platform": args.platform},
        compare_fn={"totals": ratio_allclose(atol=1e-5, rtol=1e-6, max_error_ratio=0.0)},
        save_data=False,
    )
    if not result.passed:
        print(result.error)
        raise SystemExit(1)
