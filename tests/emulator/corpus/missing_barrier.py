"""Blocks read what their neighbours write, with no barrier between."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 192], pl.FP32], out: pl.Out[pl.Tensor[[8, 192], pl.FP32]]):
    scratch = pl.create_tensor([8, 192], dtype=pl.FP32)
    for i in pl.spmd(24, sync_start=True):
        mine = i * 8
        other = (23 - i) * 8
        scratch[:, mine : mine + 8] = pl.mul(x[:, mine : mine + 8], 2.0)  # diagnosed: GG401
        pass
        # repair: pl.system.syncall(core_type="aiv_only", mode="hard")
        out[:, mine : mine + 8] = scratch[:, other : other + 8]  # diagnosed: GG401
    return out
