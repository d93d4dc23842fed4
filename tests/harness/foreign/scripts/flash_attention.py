"""Attention of one head without the score matrix: running maximum, running sum, rescaled accumulator."""

import argparse

import pypto.language as pl
import torch
from golden import TensorSpec, ratio_allclose, run_jit

QUERIES = 64
KEYS = 256
DIM = 64
TILE_Q = 16
TILE_K = 64
SCALE = DIM**-0.5
LOWEST = -3.0e38


@pl.jit
def flash_attention(
    q: pl.Tensor[[QUERIES, DIM], pl.BF16],
    k: pl.Tensor[[KEYS, DIM], pl.BF16],
    v: pl.Tensor[[KEYS, DIM], pl.BF16],
    o: pl.Out[pl.Tensor[[QUERIES, DIM], pl.FP32]],
):
    for block in pl.spmd(QUERIES // TILE_Q):
        row = block * TILE_Q
        query = q[row : row + TILE_Q, 0:DIM]
        peak = pl.full([TILE_Q, 1], dtype=pl.FP32, value=LOWEST)
        mass = pl.full([TILE_Q, 1], dtype=pl.FP32, value=0.0)
        acc = pl.full([TILE_Q, DIM], dtype=pl.FP32, value=0.0)
        for step in pl.range(KEYS // TILE_K):
            k0 = step * TILE_K
            logits = pl.matmul(query, k[k0 : k0 + TILE_K, 0:DIM], out_dtype=pl.FP32, b_trans=True)
            scores = pl.mul(logits, SCALE)
            new_peak = pl.maximum(peak, pl.row_max(scores))
            decay = pl.exp(pl.sub(peak, new_peak))
            weight = pl.exp(pl.row_expand_sub(scores, new_peak))
            mass = pl.add(pl.mul(mass, decay), pl.row_sum(weight))
            rounded = pl.cast(weight, pl.BF16, mode="rint")
            partial = pl.matmul(rounded, v[k0 : k0 + TILE_K, 0:DIM], out_dtype=pl.FP32)
            acc = pl.add(pl.row_expand_mul(acc, decay), partial)
            peak = new_peak
        o[row : row + TILE_Q, 0:DIM] = pl.row_expand_div(acc, mass)
    return o


def golden_flash_attention(tensors):
    q, k, v = (tensors[name].double() for name in "qkv")
    tensors["o"][:] = (torch.softmax(q @ k.T * SCALE, dim=1) @ v).float()


def specs():
    return [
        TensorSpec("q", [QUERIES, DIM], torch.bfloat16, init_value=torch.randn),
        TensorSpec("k", [KEYS, DIM], torch.bfloat16, init_value=torch.randn),
        TensorSpec("v", [KEYS, DIM], torch.bfloat16, init_value=torch.randn),
        TensorSpec("o", [QUERIES, DIM], torch.float32, is_output=True),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("-p", "--platform", default="a2a3")
    parser.add_argument("-d", "--device", type=int, default=0)
    args = parser.parse_args()
    result = run_jit(
        flash_attention,
        specs(),
        golden_fn=golden_flash_attention,
        runtime_cfg={"platform": args.platform, "device_id": args.device},
        # the weights are BF16: 2^-9 of sum(w |v|) / sum(w), about 0.8 for normal v
        compare_fn={"o": ratio_allclose(atol=2.0**-9, rtol=0, max_error_ratio=0.0)},
        save_data=False,
    )
    if not result.passed:
        print(result.error)
        raise SystemExit(1)
