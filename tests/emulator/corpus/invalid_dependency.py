"""The id is stored in one cell of the array and looked up in another: an invalid id is dropped silently."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 16], pl.FP32], out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
    scratch = pl.create_tensor([8, 16], dtype=pl.FP32)
    tids = pl.array.create(2, pl.TASK_ID)
    with pl.manual_scope():
        with pl.at(level=pl.Level.CORE_GROUP) as first:
            scratch[:, :] = pl.add(x[:, :], 1.0)  # diagnosed: GG403
        tids[0] = first
        with pl.at(level=pl.Level.CORE_GROUP, deps=[tids[1]]):
            # repair: with pl.at(level=pl.Level.CORE_GROUP, deps=[tids[0]]):
            out[:, :] = scratch[:, :]  # diagnosed: GG402
    return out
