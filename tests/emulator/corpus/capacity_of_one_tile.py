"""A 512 KiB tile."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[128, 1024], pl.FP32], out: pl.Out[pl.Tensor[[128, 1024], pl.FP32]]):
    for i in pl.spmd(4):
        t = pl.create_tensor([128, 1024], dtype=pl.FP32)  # diagnosed: GG102
        # repair: t = pl.mul(x[i * 32 : i * 32 + 32, :], 2.0)
        out[i * 32 : i * 32 + 32, :] = t
    return out
