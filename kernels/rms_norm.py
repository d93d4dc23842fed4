"""rms_norm: RMS normalisation of token rows with a learned weight. Contract: dense.md, section 4.

One block per TOKENS rows. A block walks the rows twice in chunks of CHUNK columns: once for the sum of
squares, once to normalise. T is dynamic and must be a multiple of TOKENS. Each value is rounded to BF16
once, ties to even.
"""

import pypto.language as pl

from kernels.sizes import RMS_EPS, D, tile

TOKENS = 8  # the shortest FP32 row of a vector tile is 32 bytes, and the sums of a block are one row
CHUNK = tile(D, multiple=16, pr672=128)
D_INV = 1.0 / D

T_DYN = pl.dynamic("T_DYN")


@pl.jit.inline
def rms_norm_inline(
    x: pl.Tensor[[T_DYN, D], pl.BF16],
    norm_w: pl.Tensor[[D], pl.BF16],
    x_normed: pl.Out[pl.Tensor[[T_DYN, D], pl.BF16]],
):
    weight = pl.reshape(norm_w, [1, D])

    for block in pl.spmd(pl.tensor.dim(x, 0) // TOKENS, name_hint="rms_norm"):
        t0 = block * TOKENS

        square_sum = pl.full([1, TOKENS], dtype=pl.FP32, value=0.0)
        for c in pl.pipeline(D // CHUNK, stage=2):
            d0 = c * CHUNK
            chunk = pl.cast(x[t0 : t0 + TOKENS, d0 : d0 + CHUNK], pl.FP32)
            chunk_sum = pl.row_sum(pl.mul(chunk, chunk))
            square_sum = pl.add(square_sum, pl.reshape(chunk_sum, [1, TOKENS]))

        mean_square = pl.mul(square_sum, D_INV)
        inv_rms = pl.recip(pl.sqrt(pl.add(mean_square, RMS_EPS)))
        inv_rms_column = pl.reshape(inv_rms, [TOKENS, 1])

        for c in pl.pipeline(D // CHUNK, stage=2):
            d0 = c * CHUNK
            chunk = pl.cast(x[t0 : t0 + TOKENS, d0 : d0 + CHUNK], pl.FP32)
            weight_chunk = pl.cast(weight[0:1, d0 : d0 + CHUNK], pl.FP32)
            normed = pl.col_expand_mul(pl.row_expand_mul(chunk, inv_rms_column), weight_chunk)
            x_normed[t0 : t0 + TOKENS, d0 : d0 + CHUNK] = pl.cast(normed, pl.BF16, mode="rint")

    return x_normed


@pl.jit
def rms_norm(
    x: pl.Tensor[[T_DYN, D], pl.BF16],
    norm_w: pl.Tensor[[D], pl.BF16],
    x_normed: pl.Out[pl.Tensor[[T_DYN, D], pl.BF16]],
):
    x.bind_dynamic(0, T_DYN)
    x_normed.bind_dynamic(0, T_DYN)
    return rms_norm_inline(x, norm_w, x_normed)
