"""Ring exchange: each rank's block travels round the ring, and each rank multiplies what passes by its own weights."""

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
M = 32
K = 64
N = 256
N_TILE = 128
N_BLOCKS = N // N_TILE
RING_BYTES = RANKS * M * K * 2
SIGNAL_BYTES = RANKS * 4


@pl.jit
def ring_rank(
    x: pl.Tensor[[M, K], pl.BF16],
    w: pl.Tensor[[RANKS * K, N], pl.BF16],
    y: pl.Out[pl.Tensor[[M, N], pl.FP32]],
    ring: pl.InOut[pld.DistributedTensor[[RANKS * M, K], pl.BF16]],
    arrived: pl.InOut[pld.DistributedTensor[[RANKS, 1], pl.INT32]],
    me: pl.Scalar[pl.INT32],
):
    right = (me + 1) % RANKS
    tids = pl.array.create(RANKS, pl.TASK_ID)

    with pl.at(level=pl.Level.CORE_GROUP, name_hint="start") as start_tid:
        pl.assemble(ring, x[0:M, 0:K], [0, 0])
        y[0:M, 0:N] = pl.full([M, N], dtype=pl.FP32, value=0.0)
    tids[0] = start_tid

    # Slot s holds the block of the rank s places to the left; it is sent on before it is multiplied.
    for s in pl.range(RANKS):
        if s < RANKS - 1:
            with pl.at(level=pl.Level.CORE_GROUP, name_hint="pass_on", deps=[tids[s]]) as pass_tid:
                pld.tensor.put(ring, right, ring, [(s + 1) * M, 0], [s * M, 0], [M, K])
                pld.system.notify(arrived, right, [s, 0], 1, op=pld.NotifyOp.Set)
                pld.system.wait(arrived, [s, 0], 1, cmp=pld.WaitCmp.Ge)
            tids[s + 1] = pass_tid

        owner = (me + RANKS - s) % RANKS
        for blk in pl.spmd(N_BLOCKS, name_hint="multiply", deps=[tids[s]]):
            n0 = blk * N_TILE
            block = pl.slice(ring, [M, K], [s * M, 0])
            weight = pl.slice(w, [K, N_TILE], [owner * K, n0])
            part = pl.matmul(block, weight, out_dtype=pl.FP32)
            total = pl.add(part, pl.slice(y, [M, N_TILE], [0, n0]))
            y = pl.assemble(y, total, [0, n0])
    return y


@pl.jit.host
def ring_matmul(
    x: pl.Tensor[[RANKS, M, K], pl.BF16],
    w: pl.Tensor[[RANKS, RANKS * K, N], pl.BF16],
    y: pl.Out[pl.Tensor[[RANKS, M, N], pl.FP32]],
):
    ring_buf = pld.alloc_window_buffer(RING_BYTES)
    arrived_buf = pld.alloc_window_buffer(SIGNAL_BYTES)
    ring = pld.window(ring_buf, [RANKS * M, K], dtype=pl.BF16)
    arrived = pld.window(arrived_buf, [RANKS, 1], dtype=pl.INT32)
    for r in pl.range(pld.world_size()):
        ring_rank(x[r], w[r], y[r], ring, arrived, r, device=r)
    return y


def golden_fn(tensors):
    blocks = tensors["x"].float().transpose(0, 1).reshape(M, RANKS * K)
    tensors["y"][:] = blocks @ tensors["w"].float()


def build_tensor_specs():
    return [
        TensorSpec("x", [RANKS, M, K], torch.bfloat16, init_value=torch.randn),
        TensorSpec("w", [RANKS, RANKS * K, N], torch.bfloat16, init_value=torch.randn),
        TensorSpec("y", [RANKS, M, N], torch.float32, is_output=True),
    ]


if __name__ == "__main__":
    from pypto.ir.distributed_compiled_program import DistributedConfig

    result = run_jit(
        fn=ring_matmul,
        specs=build_tensor_specs(),
        golden_fn=golden_fn,
        compile_cfg={"distributed_config": DistributedConfig(device_ids=[args.device + r for r in range(RANKS)])},
        runtime_cfg={"platform": args.platform},
        rtol=1e-4,
        atol=1e-4,
        compare_fn={"y": ratio_allclose(atol=1e-4, rtol=1e-4, max_error_ratio=0.0)},
    )
    if not result.passed:
        if result.error:
            print(result.error)
        raise SystemExit(1)
