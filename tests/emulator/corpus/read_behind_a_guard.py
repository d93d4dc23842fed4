"""`and` evaluates both sides: the guard does not protect the read."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 8], pl.INT32], out: pl.Out[pl.Tensor[[8, 8], pl.INT32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        out[:, :] = x[:, :]
        i = pl.read(x, [7, 0]) + 9
        if i < 8 and pl.read(x, [i, 0]) > 0:  # diagnosed: GG501
            # repair: if i < 8:
            pl.write(out, [0, 0], pl.read(x, [pl.min(i, 7), 0]))
    return out
