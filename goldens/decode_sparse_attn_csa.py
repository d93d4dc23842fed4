"""Golden of decode_sparse_attn_csa: attention of decode tokens over listed KV rows, then the output projection.

contracts/decode_attention.md, section 2. The list of a token is gathered row by row; its columns, 128 at a time, are
the blocks of the softmax.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from goldens.checks import expect
from goldens.errors import GoldenInputError
from goldens.numerics.attention import OUTPUT_STAGES, OutputWeights, attention_output, expect_output_weights
from goldens.numerics.packed_kv import expect_sources, gathered_blocks
from goldens.numerics.visibility import BLOCK, MASKED

OP = "decode_sparse_attn_csa"
STAGES = ("bias", *OUTPUT_STAGES)


def decode_sparse_attn_csa(
    q: Tensor,
    ori_kv: Tensor,
    ori_block_table: Tensor,
    mtp_kv_overlay: Tensor,
    cmp_kv: Tensor,
    cmp_block_table: Tensor,
    cmp_sparse_indices: Tensor,
    valid_block_mask: Tensor,
    attn_sink: Tensor,
    freqs_cos: Tensor,
    freqs_sin: Tensor,
    wo_a: Tensor,
    wo_b: Tensor,
    wo_b_scale: Tensor,
    *,
    win: int,
    softmax_scale: float,
    strict_mask: bool = False,
    taps: dict[str, Tensor] | None = None,
    given: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Attend the rows each token lists, with a sink; rotate back; project per group through INT8.

    q [T, H, HEAD_DIM] BF16; ring and compressed pools [pages, 128, 1, HEAD_DIM] BF16 with their block tables
    [B, columns] INT32; mtp_kv_overlay [T, HEAD_DIM] BF16; cmp_sparse_indices [T, n] INT32, n a multiple of 128 (below
    0: nothing; then ring rows, overlay rows, compressed slots), valid_block_mask [T, n / 128] INT32 (a block with 0 is
    dropped, whatever it lists); attn_sink [H] FP32; freqs_cos and freqs_sin [T, ROPE_DIM] BF16, of which the first half
    is read; wo_a [G, O_LORA, H*HEAD_DIM/G] BF16, wo_b [D, G*O_LORA] INT8 with wo_b_scale [D] FP32.

    Returns attn_out [T, D] BF16 (RNE); 0 for a token that attends nothing. A row named twice counts twice; rows
    that are not named are not read. `given` may hold o_packed, o_r, o_codes and o_scale of a device.

    Raises GoldenInputError for a wrong shape or dtype, a window that is not one page, a listed slot without a page and,
    with `strict_mask`, a dropped block that lists something.
    """
    sources = expect_sources(OP, q, ori_kv, ori_block_table, mtp_kv_overlay, cmp_kv, cmp_block_table, win)
    t, columns = expect(f"{OP}: cmp_sparse_indices", cmp_sparse_indices, (q.shape[0], None), torch.int32)
    if columns % BLOCK:
        raise GoldenInputError(
            f"{OP}: cmp_sparse_indices has shape [{t}, {columns}], expected whole blocks of {BLOCK} columns"
        )
    expect(f"{OP}: valid_block_mask", valid_block_mask, (t, columns // BLOCK), torch.int32)
    weights = OutputWeights(attn_sink, freqs_cos, freqs_sin, wo_a, wo_b, wo_b_scale)
    expect_output_weights(OP, q, weights)

    listed = cmp_sparse_indices >= 0
    kept = (valid_block_mask > 0).repeat_interleave(BLOCK, dim=1)
    if strict_mask and bool((listed & ~kept).any()):
        token, column = (int(i) for i in (listed & ~kept).nonzero()[0])
        raise GoldenInputError(
            f"{OP}: valid_block_mask[{token}, {column // BLOCK}] is 0, expected 1: "
            f"cmp_sparse_indices[{token}, {column}] is {int(cmp_sparse_indices[token, column])}"
        )
    if taps is not None:
        taps["bias"] = torch.where(listed, 0.0, MASKED)
    blocks = gathered_blocks(OP, sources, cmp_sparse_indices, listed & kept, win)
    return {"attn_out": attention_output(OP, q, blocks, weights, softmax_scale, taps, given)}
