"""Iterations of pl.parallel write the same columns."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 32], pl.FP32], out: pl.Out[pl.Tensor[[8, 32], pl.FP32]]):
    for i in pl.parallel(4):
        with pl.at(level=pl.Level.CORE_GROUP):
            out[:, 0:8] = x[:, i * 8 : i * 8 + 8]  # diagnosed: GG402
            # repair: out[:, i * 8 : i * 8 + 8] = x[:, i * 8 : i * 8 + 8]
    return out
