"""The last window leaves the tensor; the device would read its neighbour."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 30], pl.FP32], out: pl.Out[pl.Tensor[[8, 32], pl.FP32]]):
    for i in pl.spmd(4):
        t = pl.slice(x, [8, 8], [0, i * 8])  # diagnosed: GG501
        # repair: t = pl.slice(x, [8, 8], [0, pl.min(i * 8, 22)])
        out[:, i * 8 : i * 8 + 8] = t
    return out
