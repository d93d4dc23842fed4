"""A rebinding in a loop of an inline reaches the caller's variable."""

import pypto.language as pl


@pl.jit.inline
def advance(v: pl.Scalar[pl.INDEX]):
    w = v
    for i in pl.range(3):
        v = v + 1
        # repair: w = w + 1
    return v
    # repair: return w


@pl.jit
def kernel(x: pl.Tensor[[8, 8], pl.INT32], out: pl.Out[pl.Tensor[[8, 8], pl.INT32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        out[:, :] = x[:, :]
        k = pl.cast(pl.read(x, [0, 1]), pl.INDEX)
        end = advance(k)  # diagnosed: GG302
        pl.write(out, [0, 0], pl.cast(end, pl.INT32))
        pl.write(out, [0, 1], pl.cast(k, pl.INT32))
    return out
