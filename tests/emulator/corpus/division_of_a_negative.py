"""A runtime // truncates; the reference floors."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 8], pl.INT32], out: pl.Out[pl.Tensor[[8, 8], pl.INT32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        out[:, :] = x[:, :]
        n = pl.read(x, [0, 1]) - 8
        q = n // 2  # diagnosed: GG301
        # repair: q = (n + 8) // 2 - 4
        pl.write(out, [0, 0], pl.cast(q, pl.INT32))
    return out
