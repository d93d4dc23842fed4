"""y = relu(a @ b + bias) in BF16: the cube accumulates over K tiles, the vector unit finishes each output tile."""

import argparse

import pypto.language as pl
import torch
from golden import TensorSpec, ratio_allclose, run_jit

M = 64
K = 256
N = 96
TILE_M = 32
TILE_N = 32
TILE_K = 64
N_TILES = N // TILE_N


@pl.jit
def matmul_epilogue(
    a: pl.Tensor[[M, K], pl.BF16],
    b: pl.Tensor[[K, N], pl.BF16],
    bias: pl.Tensor[[1, N], pl.FP32],
    y: pl.Out[pl.Tensor[[M, N], pl.BF16]],
):
    for block in pl.spmd((M // TILE_M) * N_TILES):
        row = (block // N_TILES) * TILE_M
        col = (block % N_TILES) * TILE_N
        acc = pl.matmul(a[row : row + TILE_M, 0:TILE_K], b[0:TILE_K, col : col + TILE_N], out_dtype=pl.FP32)
        for k in pl.range(1, K // TILE_K):
            k0 = k * TILE_K
            left = a[row : row + TILE_M, k0 : k0 + TILE_K]
            right = b[k0 : k0 + TILE_K, col : col + TILE_N]
            acc = pl.matmul_acc(acc, left, right)
        biased = pl.col_expand_add(acc, bias[0:1, col : col + TILE_N])
        y[row : row + TILE_M, col : col + TILE_N] = pl.cast(pl.relu(biased), pl.BF16, mode="rint")
    return y


def golden_matmul_epilogue(tensors):
    product = tensors["a"].double() @ tensors["b"].double() + tensors["bias"].double()
    tensors["y"][:] = product.clamp_min(0).to(torch.bfloat16)


def specs():
    return [
        TensorSpec("a", [M, K], torch.bfloat16, init_value=torch.randn),
        TensorSpec("b", [K, N], torch.bfloat16, init_value=torch.randn),
        TensorSpec("bias", [1, N], torch.float32, init_value=torch.randn),
        TensorSpec("y", [M, N], torch.bfloat16, is_output=True),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("-p", "--platform", default="a2a3")
    parser.add_argument("-d", "--device", type=int, default=0)
    parser.add_argument("--compile-only", action="store_true")
    args = parser.parse_args()
    result = run_jit(
        matmul_epilogue,
        specs(),
        golden_fn=golden_matmul_epilogue,
        runtime_cfg={"platform": args.platform, "device_id": args.device},
        compile_only=args.compile_only,
        compare_fn={"y": ratio_allclose(atol=1e-4, rtol=1 / 128, max_error_ratio=0.0)},
        save_data=False,
    )
    if not result.passed:
        print(result.error)
        raise SystemExit(1)
