"""A carried value must keep its type."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        t = x[:, :]
        for i in pl.range(2):
            t = pl.cast(pl.mul(t, 0.5), pl.BF16, mode="rint")  # diagnosed: GG310
            # repair: t = pl.cast(pl.cast(pl.mul(t, 0.5), pl.BF16, mode="rint"), pl.FP32)
        out[:, :] = t
    return out
