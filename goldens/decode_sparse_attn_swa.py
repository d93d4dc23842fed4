"""Golden of decode_sparse_attn_swa: attention of decode tokens over their ring page and the rows of this step.

contracts/decode_attention.md, section 4. Two blocks: the ring page as it lies, and the overlay of all requests.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from goldens.checks import expect
from goldens.errors import GoldenInputError
from goldens.numerics.attention import OUTPUT_STAGES, Block, OutputWeights, attention_output, expect_output_weights
from goldens.numerics.packed_kv import KvSources, expect_sources, ring_block
from goldens.numerics.visibility import BLOCK, MASKED

OP = "decode_sparse_attn_swa"
STAGES = OUTPUT_STAGES


def decode_sparse_attn_swa(
    q: Tensor,
    ori_kv: Tensor,
    ori_block_table: Tensor,
    mtp_kv_overlay: Tensor,
    cmp_kv: Tensor,
    cmp_block_table: Tensor,
    cmp_sparse_indices: Tensor,
    win_bias: Tensor,
    attn_sink: Tensor,
    freqs_cos: Tensor,
    freqs_sin: Tensor,
    wo_a: Tensor,
    wo_b: Tensor,
    wo_b_scale: Tensor,
    *,
    win: int,
    softmax_scale: float,
    taps: dict[str, Tensor] | None = None,
    given: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """As decode_sparse_attn_csa, with win_bias [T, WIN + 128] FP32 in place of a list.

    win_bias is 0 for what is visible and -1e20 elsewhere: column k < WIN is row k of the ring page of the token's
    request, column WIN + o the overlay row of flat token o. cmp_kv, cmp_block_table and cmp_sparse_indices [T, WIN] are
    not read. Rows that are not visible are replaced by zeros; the device reads them and gives them no weight.

    Raises GoldenInputError for a wrong shape or dtype, a window that is not one page, more than 128 tokens, a bias of
    another value, and a visible column behind the last token.
    """
    sources = expect_sources(OP, q, ori_kv, ori_block_table, mtp_kv_overlay, cmp_kv, cmp_block_table, win)
    t = q.shape[0]
    expect(f"{OP}: cmp_sparse_indices", cmp_sparse_indices, (t, win), torch.int32)
    expect(f"{OP}: win_bias", win_bias, (t, win + BLOCK), torch.float32)
    weights = OutputWeights(attn_sink, freqs_cos, freqs_sin, wo_a, wo_b, wo_b_scale)
    expect_output_weights(OP, q, weights)
    if t > BLOCK:
        raise GoldenInputError(f"{OP}: q has {t} tokens, expected at most {BLOCK}: their overlay is one block")
    visible = _visible(win_bias, win + t)
    blocks = [ring_block(sources, visible[:, :win]), _overlay_block(sources, visible[:, win:])]
    return {"attn_out": attention_output(OP, q, blocks, weights, softmax_scale, taps, given)}


def _visible(win_bias: Tensor, used: int) -> Tensor:
    """Bool: where the bias is 0. It must be that or -1e20, and -1e20 from column `used` on."""
    visible = win_bias == 0
    masked = win_bias == torch.tensor(MASKED)
    masked[:, :used] |= visible[:, :used]
    if not bool(masked.all()):
        token, column = (int(i) for i in (~masked).nonzero()[0])
        wanted = "0 or -1e20" if column < used else "-1e20: there is no such overlay row"
        raise GoldenInputError(
            f"{OP}: win_bias[{token}, {column}] is {float(win_bias[token, column]):g}, expected {wanted}"
        )
    return visible


def _overlay_block(sources: KvSources, visible: Tensor) -> Block:
    """The overlay of all requests, zeros up to 128 rows, the same for every token but for what is visible."""
    rows = pad(sources.overlay, (0, 0, 0, BLOCK - sources.overlay.shape[0]))
    return Block(rows.unsqueeze(0).masked_fill(~visible.unsqueeze(2), 0.0), visible)
