"""A cast to BF16 without a mode rounds ties away from zero; the reference rounds them to even."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.BF16]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        out[:, :] = pl.cast(x[:, :], pl.BF16)  # diagnosed: GG204
        # repair: out[:, :] = pl.cast(x[:, :], pl.BF16, mode="rint")
    return out
