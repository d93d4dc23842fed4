"""[M, 1] - [M, N] comes out with the wrong sign."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        t = x[:, :]
        top = pl.row_max(t)
        out[:, :] = pl.sub(top, t)  # diagnosed: GG210
        # repair: out[:, :] = pl.neg(pl.row_expand_sub(t, top))
    return out
