"""A tile whose size is read from memory."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 16], pl.INT32], out: pl.Out[pl.Tensor[[8, 16], pl.INT32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        out[:, :] = x[:, :]
        n = pl.cast(pl.read(x, [0, 3]), pl.INDEX)
        t = x[0:n, :]  # diagnosed: GG309
        # repair: t = pl.slice(x, [8, 16], [0, 0], valid_shape=[n, 16])
        out = pl.assemble(out, t, [0, 0])
    return out
