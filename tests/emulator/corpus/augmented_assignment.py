"""Python syntax that the language does not have."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        n = 0
        n += 8  # diagnosed: refused
        # repair: n = n + 8
        out[:, :] = pl.add(x[:, :], pl.cast(n, pl.FP32))
    return out
