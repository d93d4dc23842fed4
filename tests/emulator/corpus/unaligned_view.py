"""A view of a tile starts in the middle of a 32-byte unit."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 8], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        t = x[:, :]
        out[:, :] = t[:, 4:12]  # diagnosed: GG106
        # repair: out[:, :] = x[:, 4:12]
    return out
