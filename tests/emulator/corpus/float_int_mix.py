"""An index and a float in one scalar expression."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
    for i in pl.spmd(2):
        scale = i * 0.5  # diagnosed: GG307
        # repair: scale = pl.cast(i, pl.FP32) * 0.5
        out[:, i * 8 : i * 8 + 8] = pl.mul(x[:, i * 8 : i * 8 + 8], scale)
    return out
