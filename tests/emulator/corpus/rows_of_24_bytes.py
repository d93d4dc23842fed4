"""Six FP32 columns are 24 bytes; a row must fill 32."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 6], pl.FP32], out: pl.Out[pl.Tensor[[8, 6], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        t = x[:, :]
        # repair: t = pl.slice(x, [8, 8], [0, 0], valid_shape=[8, 6])
        out[:, :] = pl.mul(t, 2.0)  # diagnosed: GG101
        # repair: out = pl.assemble(out, pl.mul(t, 2.0), [0, 0])
    return out
