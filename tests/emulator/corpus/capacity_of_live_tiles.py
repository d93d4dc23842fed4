"""Each tile fits; three of them alive at once do not."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[64, 1024], pl.FP32], out: pl.Out[pl.Tensor[[16, 1024], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        a = x[0:16, :]
        b = x[16:32, :]
        # repair: a = pl.add(a, x[16:32, :])
        c = x[32:48, :]
        # repair: a = pl.add(a, x[32:48, :])
        d = x[48:64, :]  # diagnosed: GG102
        # repair: a = pl.add(a, x[48:64, :])
        out[:, :] = pl.add(pl.add(a, b), pl.add(c, d))
        # repair: out[:, :] = a
    return out
