"""A hard barrier waits for every core of the chip."""

import pypto.language as pl


@pl.jit
def kernel(x: pl.Tensor[[8, 32], pl.FP32], out: pl.Out[pl.Tensor[[8, 32], pl.FP32]]):
    workspace = pl.create_tensor([32], dtype=pl.INT32, init_value=0)
    for i in pl.spmd(4, sync_start=True):
        pl.system.syncall(core_type="aiv_only", mode="hard")  # diagnosed: GG305
        # repair: pl.system.syncall(core_type="aiv_only", mode="soft", gm_workspace=workspace, used_cores=4)
        out[:, i * 8 : i * 8 + 8] = x[:, i * 8 : i * 8 + 8]
    return out
