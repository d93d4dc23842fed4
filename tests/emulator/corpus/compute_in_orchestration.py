"""A tensor operation outside a kernel region."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
    t = pl.add(x, 1.0)  # diagnosed: GG312
    # repair: t = x
    with pl.at(level=pl.Level.CORE_GROUP):
        out[:, :] = t[:, :]
    return out
