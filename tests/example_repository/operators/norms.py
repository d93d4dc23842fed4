"""RMS norm of whole rows: one block per eight tokens, the row in one tile."""

import pypto.language as pl
from shapes import EPSILON, HIDDEN, ROWS

TOKENS = pl.dynamic("TOKENS")


@pl.jit
def token_norm(
    x: pl.Tensor[[TOKENS, HIDDEN], pl.BF16],
    norm_w: pl.Tensor[[HIDDEN], pl.BF16],
    x_normed: pl.Out[pl.Tensor[[TOKENS, HIDDEN], pl.BF16]],
):
    x.bind_dynamic(0, TOKENS)
    x_normed.bind_dynamic(0, TOKENS)
    gamma = pl.reshape(norm_w, [1, HIDDEN])
    for block in pl.spmd(pl.tensor.dim(x, 0) // ROWS, name_hint="token_norm"):
        first = block * ROWS
        rows = pl.cast(x[first : first + ROWS, 0:HIDDEN], pl.FP32)
        mean = pl.mul(pl.row_sum(pl.mul(rows, rows)), 1.0 / HIDDEN)
        scale = pl.recip(pl.sqrt(pl.add(mean, EPSILON)))
        scaled = pl.col_expand_mul(pl.row_expand_mul(rows, scale), pl.cast(gamma[0:1, 0:HIDDEN], pl.FP32))
        x_normed[first : first + ROWS, 0:HIDDEN] = pl.cast(scaled, pl.BF16, mode="rint")
    return x_normed
