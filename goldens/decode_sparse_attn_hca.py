"""Golden of decode_sparse_attn_hca: attention of decode tokens over their ring page and a listed tail.

contracts/decode_attention.md, section 3. Block 0 is the ring page as it lies; the blocks behind it are gathered.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from goldens.checks import expect
from goldens.errors import GoldenInputError
from goldens.numerics.attention import OUTPUT_STAGES, OutputWeights, attention_output, expect_output_weights
from goldens.numerics.packed_kv import expect_sources, gathered_blocks, ring_block
from goldens.numerics.visibility import MASKED, hca_columns

OP = "decode_sparse_attn_hca"
STAGES = ("bias", *OUTPUT_STAGES)


def decode_sparse_attn_hca(
    q: Tensor,
    ori_kv: Tensor,
    ori_block_table: Tensor,
    mtp_kv_overlay: Tensor,
    cmp_kv: Tensor,
    cmp_block_table: Tensor,
    cmp_sparse_indices: Tensor,
    attn_sink: Tensor,
    freqs_cos: Tensor,
    freqs_sin: Tensor,
    wo_a: Tensor,
    wo_b: Tensor,
    wo_b_scale: Tensor,
    *,
    win: int,
    slots: int,
    softmax_scale: float,
    taps: dict[str, Tensor] | None = None,
    given: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """As decode_sparse_attn_csa, with a list whose column k < WIN holds k or -1 and no block mask.

    `slots` is the number of compressed slots that the list has room for: WIN + S + slots columns are used, the others
    must hold -1. Ring rows that are not listed are read by the device, which gives them no weight, and are replaced by
    zeros here.

    Raises GoldenInputError as decode_sparse_attn_csa, and for a list out of this form.
    """
    sources = expect_sources(OP, q, ori_kv, ori_block_table, mtp_kv_overlay, cmp_kv, cmp_block_table, win)
    columns = hca_columns(win, sources.seq, slots)
    expect(f"{OP}: cmp_sparse_indices", cmp_sparse_indices, (q.shape[0], columns), torch.int32)
    _expect_form(cmp_sparse_indices, win, win + sources.seq + slots)
    weights = OutputWeights(attn_sink, freqs_cos, freqs_sin, wo_a, wo_b, wo_b_scale)
    expect_output_weights(OP, q, weights)

    listed = cmp_sparse_indices >= 0
    if taps is not None:
        taps["bias"] = torch.where(listed, 0.0, MASKED)
    tail = gathered_blocks(OP, sources, cmp_sparse_indices[:, win:], listed[:, win:], win, first=win)
    blocks = [ring_block(sources, listed[:, :win]), *tail]
    return {"attn_out": attention_output(OP, q, blocks, weights, softmax_scale, taps, given)}


def _expect_form(listed: Tensor, win: int, used: int) -> None:
    """Column k < win holds k or something below 0, columns from `used` on something below 0."""
    column = torch.arange(listed.shape[1])
    wrong = (listed >= 0) & (((column < win) & (listed != column)) | (column >= used))
    if bool(wrong.any()):
        token, at = (int(i) for i in wrong.nonzero()[0])
        wanted = f"{at} or -1" if at < win else "-1"
        raise GoldenInputError(
            f"{OP}: cmp_sparse_indices[{token}, {at}] is {int(listed[token, at])}, expected {wanted}"
        )
