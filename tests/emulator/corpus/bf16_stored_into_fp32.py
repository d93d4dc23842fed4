"""A BF16 tile goes into an FP32 tensor unconverted."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 16], pl.BF16], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        out[:, :] = x[:, :]  # diagnosed: GG209
        # repair: out[:, :] = pl.cast(x[:, :], pl.FP32)
    return out
