"""The last block is not launched: a part of the output is never written."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 32], pl.FP32], out: pl.Out[pl.Tensor[[8, 32], pl.FP32]]):
    for i in pl.spmd(3):  # diagnosed: undefined
        # repair: for i in pl.spmd(4):
        out[:, i * 8 : i * 8 + 8] = x[:, i * 8 : i * 8 + 8]
    return out
