"""An INT32 compare tests equality, whatever it was asked."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 16], pl.INT32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        out[:, :] = pl.cast(pl.cmps(x[:, :], 2, cmp_type=4), pl.FP32)  # diagnosed: GG207
        # repair: out[:, :] = pl.cmps(pl.cast(x[:, :], pl.FP32), 2.0, cmp_type=4)
    return out
