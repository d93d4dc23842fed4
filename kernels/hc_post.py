"""hc_post: hyper-connection post-mix, the new streams of a token. Contract: hc_gate_experts.md, section 2.

One block per TOKENS tokens and new stream, token tile outermost because T is dynamic (a multiple of TOKENS).
A block handles whole rows of D, one token at a time; the old streams are added in ascending order. Streams
are addressed through flat [T, HC_DIM] views, stream h at columns h * D.
"""

import pypto.language as pl

from kernels.sizes import HC_DIM, HC_MULT, D, choose

TOKENS = choose(pr672=4, before_pr672=8)

T_DYN = pl.dynamic("T_DYN")


@pl.jit.inline
def hc_post_inline(
    x: pl.Tensor[[T_DYN, D], pl.BF16],
    residual: pl.Tensor[[T_DYN, HC_MULT, D], pl.BF16],
    post: pl.Tensor[[T_DYN, HC_MULT], pl.FP32],
    comb: pl.Tensor[[T_DYN, HC_MULT * HC_MULT], pl.FP32],
    y: pl.Out[pl.Tensor[[T_DYN, HC_MULT, D], pl.BF16]],
):
    tokens = pl.tensor.dim(x, 0)
    old_streams = pl.reshape(residual, [tokens, HC_DIM])
    new_streams = pl.reshape(y, [tokens, HC_DIM])

    for block in pl.spmd(tokens // TOKENS * HC_MULT, name_hint="hc_post"):
        t0 = block // HC_MULT * TOKENS
        new = block % HC_MULT
        for t in pl.pipeline(t0, t0 + TOKENS, stage=2):
            total = pl.mul(pl.cast(x[t : t + 1, 0:D], pl.FP32), pl.read(post, [t, new]))
            for old in pl.pipeline(HC_MULT, stage=4):
                stream = pl.cast(old_streams[t : t + 1, old * D : old * D + D], pl.FP32)
                total = pl.add(total, pl.mul(stream, pl.read(comb, [t, old * HC_MULT + new])))
            new_streams[t : t + 1, new * D : new * D + D] = pl.cast(total, pl.BF16, mode="rint")

    return y


@pl.jit
def hc_post(
    x: pl.Tensor[[T_DYN, D], pl.BF16],
    residual: pl.Tensor[[T_DYN, HC_MULT, D], pl.BF16],
    post: pl.Tensor[[T_DYN, HC_MULT], pl.FP32],
    comb: pl.Tensor[[T_DYN, HC_MULT * HC_MULT], pl.FP32],
    y: pl.Out[pl.Tensor[[T_DYN, HC_MULT, D], pl.BF16]],
):
    x.bind_dynamic(0, T_DYN)
    residual.bind_dynamic(0, T_DYN)
    post.bind_dynamic(0, T_DYN)
    comb.bind_dynamic(0, T_DYN)
    y.bind_dynamic(0, T_DYN)
    return hc_post_inline(x, residual, post, comb, y)
