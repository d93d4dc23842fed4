"""The count may be zero."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 8], pl.INT32], out: pl.Out[pl.Tensor[[8, 8], pl.INT32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        out[:, :] = x[:, :]
        n = pl.read(x, [0, 0])
        q = 8 // n  # diagnosed: GG308
        # repair: q = 8 // pl.max(n, pl.const(1, pl.INT32))
        pl.write(out, [0, 0], pl.cast(q, pl.INT32))
    return out
