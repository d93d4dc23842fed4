"""The block count is rounded down to zero."""

import pypto.language as pl

ROWS = 8


@pl.jit
def kernel(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        out[:, :] = pl.full([8, 16], pl.FP32, 0.0)
    for i in pl.spmd(ROWS // 16):  # diagnosed: GG304
        # repair: for i in pl.spmd((ROWS + 15) // 16):
        out[i * 8 : i * 8 + 8, :] = x[i * 8 : i * 8 + 8, :]
    return out
