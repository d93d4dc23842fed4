"""Without out_dtype the tensor-level type is the operands', the accumulator FP32."""

import pypto.language as pl


@pl.jit
def kernel(a: pl.Tensor[[16, 32], pl.BF16], b: pl.Tensor[[32, 32], pl.BF16], out: pl.Out[pl.Tensor[[16, 32], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        out[:, :] = pl.matmul(a[:, :], b[:, :])  # diagnosed: GG205
        # repair: out[:, :] = pl.matmul(a[:, :], b[:, :], out_dtype=pl.FP32)
    return out
