"""A scratch tile is accumulated into before anything was written to it."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.INT32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        counts = pl.create_tensor([8, 16], dtype=pl.INT32)
        # repair: counts = pl.full([8, 16], pl.INT32, 0)
        n = pl.read(counts, [0, 0])  # diagnosed: GG502
        pl.write(counts, [0, 0], n + pl.const(1, pl.INT32))
        out[:, :] = counts
    return out
