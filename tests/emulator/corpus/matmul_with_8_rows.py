"""The cube needs 16 rows; the author pads."""

import pypto.language as pl


@pl.jit
def kernel(a: pl.Tensor[[8, 32], pl.FP32], b: pl.Tensor[[32, 32], pl.FP32], out: pl.Out[pl.Tensor[[8, 32], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        rows = a[:, :]
        # repair: rows = pl.slice(a, [16, 32], [0, 0], valid_shape=[8, 32])
        out = pl.assemble(out, pl.matmul(rows, b[:, :], out_dtype=pl.FP32), [0, 0])  # diagnosed: GG103
    return out
