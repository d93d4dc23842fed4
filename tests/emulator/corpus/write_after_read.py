"""A buffer is used again while an earlier task may still read it: the runtime does not track readers."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 8], pl.FP32], a: pl.Out[pl.Tensor[[8, 8], pl.FP32]], b: pl.Out[pl.Tensor[[8, 8], pl.FP32]]):
    scratch = pl.create_tensor([8, 8], dtype=pl.FP32)
    with pl.at(level=pl.Level.CORE_GROUP):
        scratch[:, :] = pl.add(x[:, :], 1.0)
    with pl.at(level=pl.Level.CORE_GROUP) as reader:
        a[:, :] = scratch[:, :]  # diagnosed: GG402
    with pl.at(level=pl.Level.CORE_GROUP):
        # repair: with pl.at(level=pl.Level.CORE_GROUP, deps=[reader]):
        scratch[:, :] = pl.add(x[:, :], 5.0)  # diagnosed: GG403
    with pl.at(level=pl.Level.CORE_GROUP):
        b[:, :] = scratch[:, :]
    return a, b
