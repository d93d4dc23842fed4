"""[M, N] * [1, N] has no lowering."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 16], pl.FP32], w: pl.Tensor[[1, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        out[:, :] = pl.mul(x[:, :], w[:, :])  # diagnosed: GG210
        # repair: out[:, :] = pl.col_expand_mul(x[:, :], w[:, :])
    return out
