"""One block skips the barrier: the others wait for ever."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 192], pl.FP32], out: pl.Out[pl.Tensor[[8, 192], pl.FP32]]):
    for i in pl.spmd(24, sync_start=True):
        if i != 5:
            # repair: if i < 24:
            pl.system.syncall(core_type="aiv_only", mode="hard")  # diagnosed: GG405
        out[:, i * 8 : i * 8 + 8] = x[:, i * 8 : i * 8 + 8]
    return out
