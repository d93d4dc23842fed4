"""Index 16 of a row of 16."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 8], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        index = pl.col_expand(pl.full([8, 8], pl.INT32, 0), pl.arange(9, [1, 8], dtype=pl.INT32))
        # repair: index = pl.col_expand(pl.full([8, 8], pl.INT32, 0), pl.arange(8, [1, 8], dtype=pl.INT32))
        out[:, :] = pl.gather(x[:, :], dim=-1, index=index)  # diagnosed: GG501
    return out
