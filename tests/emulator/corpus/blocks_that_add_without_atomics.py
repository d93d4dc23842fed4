"""Blocks accumulate into one output; a plain read-modify-write loses additions."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 64], pl.FP32], out: pl.Out[pl.Tensor[[8, 8], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        out[:, :] = pl.full([8, 8], pl.FP32, 0.0)
    for i in pl.spmd(8):
        out[:, :] = pl.add(out[:, :], x[:, i * 8 : i * 8 + 8])  # diagnosed: GG401
        # repair: out = pl.assemble(out, x[:, i * 8 : i * 8 + 8], [0, 0], atomic=pl.AtomicType.Add)
    return out
