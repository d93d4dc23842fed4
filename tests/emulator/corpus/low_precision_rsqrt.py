"""The default reciprocal square root is an estimate."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        t = pl.add(pl.abs(x[:, :]), 1.0)
        out[:, :] = pl.rsqrt(t)  # diagnosed: GG206
        # repair: out[:, :] = pl.rsqrt(t, high_precision=True)
    return out
