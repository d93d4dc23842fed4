"""Scratch memory is used after the scope that owns it."""

import pypto.language as pl


@pl.jit(auto_scope=False)
def kernel(x: pl.Tensor[[8, 8], pl.FP32], out: pl.Out[pl.Tensor[[8, 8], pl.FP32]]):
    pass
    # repair: outer = pl.create_tensor([8, 8], dtype=pl.FP32)
    with pl.scope():
        scratch = pl.create_tensor([8, 8], dtype=pl.FP32)
        # repair: scratch = outer
        with pl.at(level=pl.Level.CORE_GROUP):
            scratch[:, :] = x[:, :]
    with pl.at(level=pl.Level.CORE_GROUP):
        out[:, :] = scratch[:, :]  # diagnosed: GG503
    return out
