"""A partial load is reduced as if its last rows were there."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[13, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        t = pl.slice(x, [8, 16], [8, 0], valid_shape=[5, 16])
        t = pl.reshape(t, [8, 16])  # diagnosed: undefined
        # repair: t = pl.fillpad(t, pad_value=pl.PadValue.zero)
        out[:, :] = pl.mul(t, 2.0)
    return out
