"""Both vector lanes run the whole body: one of them must do the common store."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        for lane in pl.split_aiv(2, mode=pl.SplitMode.NONE):
            out[:, 0:16] = pl.add(x[:, :], 1.0)  # diagnosed: GG401
            # repair: out[:, lane * 8 : lane * 8 + 8] = pl.add(x[:, lane * 8 : lane * 8 + 8], 1.0)
    return out
