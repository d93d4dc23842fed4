"""There is no conversion from INT8 to FP32, not even a chain."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 32], pl.INT8], out: pl.Out[pl.Tensor[[8, 32], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        out[:, :] = pl.cast(x[:, :], pl.FP32)  # diagnosed: GG203
        # repair: out[:, :] = pl.cast(pl.cast(x[:, :], pl.FP16), pl.FP32)
    return out
