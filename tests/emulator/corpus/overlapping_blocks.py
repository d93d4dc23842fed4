"""Every block writes one tile more than its share."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 64], pl.FP32], out: pl.Out[pl.Tensor[[8, 64], pl.FP32]]):
    for i in pl.spmd(7):
        # repair: for i in pl.spmd(4):
        out[:, i * 8 : i * 8 + 16] = x[:, i * 8 : i * 8 + 16]  # diagnosed: GG401
        # repair: out[:, i * 16 : i * 16 + 16] = x[:, i * 16 : i * 16 + 16]
    return out
