"""Nothing inserts the cast."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 16], pl.BF16], y: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        out[:, :] = pl.add(y[:, :], x[:, :])  # diagnosed: GG201
        # repair: out[:, :] = pl.add(y[:, :], pl.cast(x[:, :], pl.FP32))
    return out
