"""Residual add and layer norm over tokens whose number is known at run time only; BF16 in and out, FP32 inside."""

import pypto.language as pl
import torch
from golden import TensorSpec, ratio_allclose, run_jit

TOKENS = 100
D = 768
TOK_TILE = 16
EPS = 1e-5
INV_D = 1.0 / D

T_DYN = pl.dynamic("T_DYN")


@pl.jit.inline
def residual_add(
    x: pl.Tensor[[T_DYN, D], pl.BF16],
    res: pl.Tensor[[T_DYN, D], pl.BF16],
    h: pl.Tensor[[T_DYN, D], pl.FP32],
):
    t = pl.tensor.dim(x, 0)
    for blk in pl.spmd((t + TOK_TILE - 1) // TOK_TILE, name_hint="residual_add"):
        t0 = blk * TOK_TILE
        rows = pl.min(TOK_TILE, t - t0)
        x_tile = pl.slice(x, [TOK_TILE, D], [t0, 0], valid_shape=[rows, D])
        r_tile = pl.slice(res, [TOK_TILE, D], [t0, 0], valid_shape=[rows, D])
        total = pl.add(pl.cast(x_tile, target_type=pl.FP32), pl.cast(r_tile, target_type=pl.FP32))
        h[t0 : t0 + TOK_TILE, 0:D] = total
    return h


@pl.jit.inline
def norm(
    h: pl.Tensor[[T_DYN, D], pl.FP32],
    gamma: pl.Tensor[[D], pl.FP32],
    beta: pl.Tensor[[D], pl.FP32],
    y: pl.Tensor[[T_DYN, D], pl.BF16],
):
    t = pl.tensor.dim(h, 0)
    gamma_row = pl.reshape(gamma, [1, D])
    beta_row = pl.reshape(beta, [1, D])
    for blk in pl.spmd((t + TOK_TILE - 1) // TOK_TILE, name_hint="norm"):
        t0 = blk * TOK_TILE
        rows = pl.min(TOK_TILE, t - t0)
        h_tile = pl.slice(h, [TOK_TILE, D], [t0, 0], valid_shape=[rows, D])
        mean = pl.mul(pl.row_sum(h_tile), INV_D)
        centred = pl.row_expand_sub(h_tile, mean)
        var = pl.mul(pl.row_sum(pl.mul(centred, centred)), INV_D)
        rstd = pl.rsqrt(pl.add(var, EPS), high_precision=True)
        scaled = pl.col_expand_mul(pl.row_expand_mul(centred, rstd), gamma_row[0:1, 0:D])
        shifted = pl.col_expand_add(scaled, beta_row[0:1, 0:D])
        y = pl.assemble(y, pl.cast(shifted, target_type=pl.BF16, mode="rint"), [t0, 0])
    return y


@pl.jit
def layer_norm(
    x: pl.Tensor[[T_DYN, D], pl.BF16],
    res: pl.Tensor[[T_DYN, D], pl.BF16],
    gamma: pl.Tensor[[D], pl.FP32],
    beta: pl.Tensor[[D], pl.FP32],
    y: pl.Out[pl.Tensor[[T_DYN, D], pl.BF16]],
):
    x.bind_dynamic(0, T_DYN)
    res.bind_dynamic(0, T_DYN)
    y.bind_dynamic(0, T_DYN)
    h = pl.create_tensor([T_DYN, D], dtype=pl.FP32)
    h = residual_add(x, res, h)
    return norm(h, gamma, beta, y)


def golden_fn(tensors):
    h = tensors["x"].float() + tensors["res"].float()
    y = torch.nn.functional.layer_norm(h, [D], tensors["gamma"], tensors["beta"], EPS)
    tensors["y"][:] = y.to(torch.bfloat16)


def build_tensor_specs():
    return [
        TensorSpec("x", [TOKENS, D], torch.bfloat16, init_value=torch.randn),
        TensorSpec("res", [TOKENS, D], torch.bfloat16, init_value=torch.randn),
        TensorSpec("gamma", [D], torch.float32, init_value=lambda: 1.0 + 0.1 * torch.randn(D)),
        TensorSpec("beta", [D], torch.float32, init_value=torch.randn),
        TensorSpec("y", [TOKENS, D], torch.bfloat16, is_output=True),
    ]


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("-p", "--platform", default="a2a3sim", choices=["a2a3", "a2a3sim", "a5", "a5sim"])
    parser.add_argument("-d", "--device", type=int, default=0)
    args = parser.parse_args()

    result = run_jit(
        fn=layer_norm,
        specs=build_tensor_specs(),
        golden_fn=golden_fn,
        runtime_cfg={"platform": args.platform, "device_id": args.device},
        rtol=1e-3,
        atol=1e-3,
        compare_fn={"y": ratio_allclose(atol=1e-4, rtol=1.0 / 128)},
    )
    if not result.passed:
        if result.error:
            print(result.error)
        raise SystemExit(1)
