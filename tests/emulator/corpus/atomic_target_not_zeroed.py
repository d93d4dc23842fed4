"""Blocks add into an output that nobody has set to zero."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 64], pl.FP32], out: pl.Out[pl.Tensor[[8, 8], pl.FP32]]):
    pass
    # repair: with pl.at(level=pl.Level.CORE_GROUP): out[:, :] = pl.full([8, 8], pl.FP32, 0.0)
    for i in pl.spmd(8):
        out = pl.assemble(out, x[:, i * 8 : i * 8 + 8], [0, 0], atomic=pl.AtomicType.Add)  # diagnosed: undefined
    return out
