"""A task of a manual scope reads what another one writes and does not name it."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
    scratch = pl.create_tensor([8, 16], dtype=pl.FP32)
    with pl.manual_scope():
        with pl.at(level=pl.Level.CORE_GROUP) as first:
            scratch[:, :] = pl.add(x[:, :], 1.0)  # diagnosed: GG403
        with pl.at(level=pl.Level.CORE_GROUP) as second:
            # repair: with pl.at(level=pl.Level.CORE_GROUP, deps=[first]) as second:
            out[:, :] = scratch[:, :]  # diagnosed: GG402
    return out
