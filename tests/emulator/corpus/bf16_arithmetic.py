"""The vector unit has no BF16 arithmetic."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 16], pl.BF16], out: pl.Out[pl.Tensor[[8, 16], pl.BF16]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        t = pl.mul(x[:, :], 3.0)  # diagnosed: GG202
        # repair: t = pl.cast(pl.mul(pl.cast(x[:, :], pl.FP32), 3.0), pl.BF16, mode="rint")
        out[:, :] = t
    return out
