"""Transpose of two matrices, FP32 and BF16, by tiles on a two-dimensional grid with tails on both axes."""

import pypto.language as pl
import torch
from golden import TensorSpec, run_jit

M = 200
N = 136
TILE = 64
M_BLOCKS = (M + TILE - 1) // TILE
N_BLOCKS = (N + TILE - 1) // TILE


@pl.jit.incore
def transpose_f32(
    x: pl.Tensor[[M, N], pl.FP32],
    y: pl.Out[pl.Tensor[[N, M], pl.FP32]],
    m0: pl.Scalar[pl.INDEX],
    n0: pl.Scalar[pl.INDEX],
):
    rows = pl.min(TILE, M - m0)
    cols = pl.min(TILE, N - n0)
    tile = pl.load(x, [m0, n0], [TILE, TILE], valid_shapes=[rows, cols])
    flipped = pl.transpose(tile, axis1=0, axis2=1)
    pl.store(flipped, [n0, m0], y)
    return y


@pl.jit
def transpose_tiles(
    x: pl.Tensor[[M, N], pl.FP32],
    x16: pl.Tensor[[M, N], pl.BF16],
    y: pl.Out[pl.Tensor[[N, M], pl.FP32]],
    y16: pl.Out[pl.Tensor[[N, M], pl.BF16]],
):
    for mb in pl.parallel(M_BLOCKS):
        for nb in pl.parallel(N_BLOCKS):
            y = transpose_f32(x, y, mb * TILE, nb * TILE)

    for blk in pl.spmd(M_BLOCKS * N_BLOCKS, name_hint="transpose_bf16"):
        m0 = blk // N_BLOCKS * TILE
        n0 = blk % N_BLOCKS * TILE
        rows = pl.min(TILE, M - m0)
        cols = pl.min(TILE, N - n0)
        tile = pl.slice(x16, [TILE, TILE], [m0, n0], valid_shape=[rows, cols])
        y16 = pl.assemble(y16, pl.transpose(tile, 0, 1), [n0, m0])
    return y, y16


def golden_fn(tensors):
    tensors["y"][:] = tensors["x"].t()
    tensors["y16"][:] = tensors["x16"].t()


def build_tensor_specs():
    return [
        TensorSpec("x", [M, N], torch.float32, init_value=torch.randn),
        TensorSpec("x16", [M, N], torch.bfloat16, init_value=torch.randn),
        TensorSpec("y", [N, M], torch.float32, is_output=True),
        TensorSpec("y16", [N, M], torch.bfloat16, is_output=True),
    ]


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("-p", "--platform", default="a2a3sim", choices=["a2a3", "a2a3sim", "a5", "a5sim"])
    parser.add_argument("-d", "--device", type=int, default=0)
    args = parser.parse_args()

    result = run_jit(
        fn=transpose_tiles,
        specs=build_tensor_specs(),
        golden_fn=golden_fn,
        runtime_cfg={"platform": args.platform, "device_id": args.device},
        rtol=0.0,
        atol=0.0,
    )
    if not result.passed:
        if result.error:
            print(result.error)
        raise SystemExit(1)
