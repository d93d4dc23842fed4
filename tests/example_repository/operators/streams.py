"""New residual streams of a token, one block per token."""

import pypto.language as pl
from shapes import HIDDEN, STREAMS

TOKENS = pl.dynamic("TOKENS")


@pl.jit
def hc_post(
    x: pl.Tensor[[TOKENS, HIDDEN], pl.BF16],
    residual: pl.Tensor[[TOKENS, STREAMS, HIDDEN], pl.BF16],
    post: pl.Tensor[[TOKENS, STREAMS], pl.FP32],
    comb: pl.Tensor[[TOKENS, STREAMS * STREAMS], pl.FP32],
    y: pl.Out[pl.Tensor[[TOKENS, STREAMS, HIDDEN], pl.BF16]],
):
    x.bind_dynamic(0, TOKENS)
    residual.bind_dynamic(0, TOKENS)
    post.bind_dynamic(0, TOKENS)
    comb.bind_dynamic(0, TOKENS)
    y.bind_dynamic(0, TOKENS)
    tokens = pl.tensor.dim(x, 0)
    before = pl.reshape(residual, [tokens, STREAMS * HIDDEN])
    after = pl.reshape(y, [tokens, STREAMS * HIDDEN])
    for t in pl.spmd(tokens, name_hint="streams"):
        branch = pl.cast(x[t : t + 1, 0:HIDDEN], pl.FP32)
        for new in pl.range(STREAMS):
            mixed = pl.mul(branch, pl.read(post, [t, new]))
            for old in pl.range(STREAMS):
                stream = pl.cast(before[t : t + 1, old * HIDDEN : old * HIDDEN + HIDDEN], pl.FP32)
                mixed = pl.add(mixed, pl.mul(stream, pl.read(comb, [t, old * STREAMS + new])))
            after[t : t + 1, new * HIDDEN : new * HIDDEN + HIDDEN] = pl.cast(mixed, pl.BF16, mode="rint")
    return y
