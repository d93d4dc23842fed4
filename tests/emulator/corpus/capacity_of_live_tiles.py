"""Each tile fits; four of them alive at once do not."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[64, 1024], pl.FP32], out: pl.Out[pl.Tensor[[16, 1024], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        a = pl.mul(x[0:16, :], 2.0)
        b = pl.mul(x[16:32, :], 2.0)
        # repair: a = pl.add(a, pl.mul(x[16:32, :], 2.0))
        c = pl.mul(x[32:48, :], 2.0)
        # repair: a = pl.add(a, pl.mul(x[32:48, :], 2.0))
        d = pl.mul(x[48:64, :], 2.0)  # diagnosed: GG102
        # repair: a = pl.add(a, pl.mul(x[48:64, :], 2.0))
        e = pl.add(a, b)  # diagnosed: GG102
        # repair: pass
        out[:, :] = pl.add(e, pl.add(c, d))  # diagnosed: GG102
        # repair: out[:, :] = a
    return out
