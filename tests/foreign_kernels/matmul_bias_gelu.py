"""Linear layer with bias and sigmoid GELU: blocks over M and N, K in pipelined steps, partial last block of rows."""

import pypto.language as pl
import torch
from golden import TensorSpec, ratio_allclose, run_jit

M = 80
K = 512
N = 384
M_TILE = 32
K_TILE = 128
N_TILE = 64
M_BLOCKS = (M + M_TILE - 1) // M_TILE
K_BLOCKS = K // K_TILE
N_BLOCKS = N // N_TILE
GELU_C = 1.702


@pl.jit.inline
def gelu(t: pl.Tensor[[M_TILE, N_TILE], pl.FP32]):
    gate = pl.recip(pl.add(pl.exp(pl.mul(t, -GELU_C)), 1.0))
    return pl.mul(t, gate)


@pl.jit
def matmul_bias_gelu(
    a: pl.Tensor[[M, K], pl.BF16],
    w: pl.Tensor[[N, K], pl.BF16],
    bias: pl.Tensor[[1, N], pl.FP32],
    y: pl.Out[pl.Tensor[[M, N], pl.BF16]],
):
    for blk in pl.spmd(M_BLOCKS * N_BLOCKS, name_hint="linear", optimizations=[pl.split(pl.SplitMode.UP_DOWN)]):
        m0 = (blk // N_BLOCKS) * M_TILE
        n0 = (blk % N_BLOCKS) * N_TILE
        rows = pl.min(M_TILE, M - m0)

        a_head = pl.slice(a, [M_TILE, K_TILE], [m0, 0], valid_shape=[rows, K_TILE])
        acc = pl.matmul(a_head, w[n0 : n0 + N_TILE, 0:K_TILE], b_trans=True, out_dtype=pl.FP32)
        for kb in pl.pipeline(1, K_BLOCKS, stage=2):
            k0 = kb * K_TILE
            a_tile = pl.slice(a, [M_TILE, K_TILE], [m0, k0], valid_shape=[rows, K_TILE])
            w_tile = w[n0 : n0 + N_TILE, k0 : k0 + K_TILE]
            acc = pl.matmul_acc(acc, a_tile, w_tile, b_trans=True)

        biased = pl.col_expand_add(acc, bias[0:1, n0 : n0 + N_TILE])
        act = gelu(biased)
        y = pl.assemble(y, pl.cast(act, target_type=pl.BF16, mode="rint"), [m0, n0])
    return y


def golden_fn(tensors):
    t = tensors["a"].float() @ tensors["w"].float().t() + tensors["bias"]
    tensors["y"][:] = (t * torch.sigmoid(GELU_C * t)).to(torch.bfloat16)


def build_tensor_specs():
    return [
        TensorSpec("a", [M, K], torch.bfloat16, init_value=torch.randn),
        TensorSpec("w", [N, K], torch.bfloat16, init_value=lambda: torch.randn(N, K) * K**-0.5),
        TensorSpec("bias", [1, N], torch.float32, init_value=torch.randn),
        TensorSpec("y", [M, N], torch.bfloat16, is_output=True),
    ]


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("-p", "--platform", default="a2a3sim", choices=["a2a3", "a2a3sim", "a5", "a5sim"])
    parser.add_argument("-d", "--device", type=int, default=0)
    args = parser.parse_args()

    result = run_jit(
        fn=matmul_bias_gelu,
        specs=build_tensor_specs(),
        golden_fn=golden_fn,
        runtime_cfg={"platform": args.platform, "device_id": args.device},
        rtol=1e-2,
        atol=1e-2,
        compare_fn={"y": ratio_allclose(atol=1e-4, rtol=1.0 / 128)},
    )
    if not result.passed:
        if result.error:
            print(result.error)
        raise SystemExit(1)
