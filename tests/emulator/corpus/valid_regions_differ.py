"""Operands of one instruction must have the same valid region."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        a = pl.slice(x, [8, 16], [0, 0], valid_shape=[4, 16])
        b = x[:, :]
        # repair: b = pl.set_validshape(x[:, :], 4, 16)
        out[:, :] = x[:, :]
        out = pl.assemble(out, pl.add(a, b), [0, 0])  # diagnosed: GG208
    return out
