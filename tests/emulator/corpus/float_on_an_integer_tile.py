"""Nothing promotes an integer tile."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 16], pl.INT32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        t = pl.mul(x[:, :], 0.5)  # diagnosed: GG211
        # repair: t = pl.mul(pl.cast(x[:, :], pl.FP32), 0.5)
        out[:, :] = t
    return out
