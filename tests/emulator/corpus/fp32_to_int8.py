"""FP32 to INT8 goes through FP16 and rounds twice."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 32], pl.FP32], out: pl.Out[pl.Tensor[[8, 32], pl.INT8]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        out[:, :] = pl.cast(x[:, :], pl.INT8, mode="rint")  # diagnosed: GG203
        # repair: out[:, :] = pl.cast(pl.cast(pl.cast(x[:, :], pl.INT32, mode="rint"), pl.FP16, mode="round"), pl.INT8, mode="trunc")
    return out
