"""The kernel normalises its input in place; the host never sees it."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 8], pl.FP32], out: pl.Out[pl.Tensor[[8, 8], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        x[:, :] = pl.mul(x[:, :], 0.5)  # diagnosed: GG303
        # repair: out[:, :] = pl.mul(x[:, :], 0.5)
        out[:, :] = x[:, :]
        # repair: pass
    return out
