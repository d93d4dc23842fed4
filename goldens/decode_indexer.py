"""Golden of decode_indexer: INT8 queries against all visible index keys, and the best of them.

contracts/decode_compressor_indexer.md, section 5; the step numbers are those of 5.3. T = B*S tokens, NH index heads of
IDX_HEAD_DIM lanes. Calls the golden of decode_indexer_compressor.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from goldens.checks import continued, expect, expect_integer, part_of
from goldens.decode_indexer_compressor import decode_indexer_compressor
from goldens.errors import GoldenInputError
from goldens.numerics.compressor import EMPTY_SCORE, rotated_tail
from goldens.numerics.matmul import fp32_matmul, int8_matmul
from goldens.numerics.paging import PAGE, flat_rows
from goldens.numerics.quant import quantize_rows
from goldens.numerics.reduce import row_sum
from goldens.numerics.w8a8 import dequantize

STAGES = (
    "q_acc", "q_bf16", "q_rotated", "q_codes", "q_scale", "weights", "inner_row", "inner_row_bf16", "inner_kv",
    "inner_compress_state", "idx_kv_cache", "visible", "score", "envelope", "selection", "topk_idxs",
)  # fmt: skip

RATIO = 4
NONE = -1


def _queries(qr: Tensor, qr_scale: Tensor, wq_b: Tensor, wq_b_scale: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Steps 1, 2: the exact accumulator [T, NH*IDX_HEAD_DIM] INT32, and the query heads [T, NH, IDX_HEAD_DIM] FP32."""
    acc = int8_matmul(qr, wq_b.t())
    return acc, dequantize(acc, qr_scale, wq_b_scale).view(len(qr), -1, width)


def _visible_rows(kv_seq_lens: Tensor, positions: Tensor, score_len: int, by: Literal["token", "request"]) -> Tensor:
    """Step 8: how many compressed rows each token sees, INT64 [B, S].

    Those that are complete in the committed length and, by "token", up to the token's own position.
    """
    rows = (kv_seq_lens.long() // RATIO).unsqueeze(1).expand(positions.shape)
    if by == "token":
        rows = torch.minimum(rows, (positions.long() + 1) // RATIO)
    return rows.clamp(0, score_len)


def _keys(cache: Tensor, table: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Step 9: codes [B, N, IDX_HEAD_DIM] and scales [B, N, 1] of the first N = max(rows) logical rows of each request.

    Each row is quantised by itself. Rows from rows[b] on are codes 0 with scale 0. Raises GoldenInputError for a hole
    in the block table before rows[b].
    """
    logical = torch.arange(int(rows.max())).expand(len(rows), -1)
    seen = logical < rows.unsqueeze(1)
    places = flat_rows(logical, table, PAGE)
    absent = (seen & (places < 0)).nonzero()
    if absent.numel():
        request, row = absent[0].tolist()
        raise GoldenInputError(
            f"decode_indexer: idx_block_table[{request}, {row // PAGE}] names no page, expected one: "
            f"request {request} sees {int(rows[request])} rows"
        )
    width = cache.shape[-1]
    codes, scales = torch.zeros(*logical.shape, width, dtype=torch.int8), torch.zeros(*logical.shape, 1)
    codes[seen], scales[seen] = quantize_rows(cache.view(-1, width)[places[seen]].float())
    return codes, scales


def _firing(keys: Tensor, queries: Tensor, q_scale: Tensor) -> Tensor:
    """Step 10 and the first half of 11: relu(si * qs), [B, S, N, NH] FP32.

    keys [B, N, K] and queries [B, S, NH, K] INT8, q_scale [B, S, NH].
    """
    b, s, heads, k = queries.shape
    # 128 products of codes stay below 2^24: exact in FP32, in any order.
    dots = keys.float() @ queries.view(b, s * heads, k).float().mT
    return (dots.view(b, keys.shape[1], s, heads).transpose(1, 2) * q_scale.unsqueeze(2)).relu_()


def _scores(firing: Tensor, weights: Tensor, key_scale: Tensor) -> Tensor:
    """Step 11: (sum over heads of firing * w) * ks, the key's scale behind relu and sum: [B, S, N] FP32."""
    return row_sum(firing * weights.unsqueeze(2)).squeeze(3) * key_scale.mT


def _widened(narrow: Tensor, score_len: int, fill: float, visible: Tensor) -> Tensor:
    """Step 12: [B, S, N] to [B, S, SCORE_LEN], `fill` in every column from visible[b, s] on: replaced, not masked."""
    out = torch.full((*narrow.shape[:2], score_len), fill)
    out[..., : narrow.shape[2]] = narrow
    return out.masked_fill_(torch.arange(score_len) >= visible.unsqueeze(2), fill)


def _selected(score: Tensor, visible: Tensor, topk: int, offset: int) -> Tensor:
    """Step 13: the visible columns by (score descending, index ascending), the first topk, plus offset; -1 behind."""
    order = score.sort(dim=2, descending=True, stable=True).indices
    chosen = torch.arange(score.shape[2]) < visible.clamp(max=topk).unsqueeze(2)
    return torch.where(chosen, order + offset, NONE).to(torch.int32)


def _selection_keys(score: Tensor, visible: Tensor, offset: int) -> Tensor:
    """The score of every index that may be selected, by that index; -inf for all others: [B, S, offset + SCORE_LEN]."""
    unseen = torch.arange(score.shape[2]) >= visible.unsqueeze(2)
    before = torch.full((*score.shape[:2], offset), -torch.inf)
    return torch.cat([before, score.masked_fill(unseen, -torch.inf)], dim=2)


def decode_indexer(
    x: Tensor,
    qr: Tensor,
    qr_scale: Tensor,
    wq_b: Tensor,
    wq_b_scale: Tensor,
    weights_proj: Tensor,
    cos: Tensor,
    sin: Tensor,
    inner_cos: Tensor,
    inner_sin: Tensor,
    hadamard: Tensor,
    inner_compress_state: Tensor,
    inner_compress_state_block_table: Tensor,
    inner_wkv: Tensor,
    inner_wgate: Tensor,
    inner_ape: Tensor,
    inner_norm_w: Tensor,
    idx_kv_cache: Tensor,
    idx_block_table: Tensor,
    position_ids: Tensor,
    idx_slot_mapping: Tensor,
    inner_state_slot_mapping: Tensor,
    kv_seq_lens: Tensor,
    offset: int,
    *,
    rms_eps: float,
    index_topk: int,
    weights_scale: float,
    score_len: int,
    visible_by: Literal["token", "request"] = "token",
    query_rope: Literal["token", "request"] = "token",
    inner_rope: Literal["group", "query"] = "group",
    taps: dict[str, Tensor] | None = None,
    given: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Append the step to the indexer's state and keys, score all visible keys for every token, and select.

    x [B, S, D] BF16; qr [T, Q_LORA] INT8 with qr_scale [T, 1] FP32; wq_b [Q_LORA, NH*IDX_HEAD_DIM] INT8, stored
    [in, out], with wq_b_scale [NH*IDX_HEAD_DIM] FP32; weights_proj [D, NH] BF16; cos, sin [T, ROPE_DIM/2] FP32 at each
    token's position, inner_cos, inner_sin [B, ROPE_DIM/2] at the first position of its request's group; hadamard
    [IDX_HEAD_DIM, IDX_HEAD_DIM] BF16; the inner tensors, idx_kv_cache, position_ids and slot mappings of
    decode_indexer_compressor; idx_block_table [B, columns] INT32; kv_seq_lens [B] INT32; offset is added to every
    index.

    Returns inner_kv, inner_compress_state and idx_kv_cache of decode_indexer_compressor; score [B, S, score_len] FP32,
    -3.4028234663852886e38 for rows that a token does not see; topk_idxs [B, S, score_len] INT32: the
    min(index_topk, visible) best logical rows plus offset, best first, of equals the lower first, then -1. The step's
    own key competes. Queries and keys are rounded to BF16 (RNE), then quantised row by row to INT8.

    The reference's faults are variants: visible_by="request" shows every token of a step what its last one sees;
    query_rope="request" turns all queries of a request at its first token's position; inner_rope="query" turns the
    new key there too. With all three the reference's own golden is reproduced.

    `given` may hold inner_compress_state, inner_kv, idx_kv_cache, q_codes, q_scale, weights and score of a device: what
    follows is then computed from those. Two stages serve the judge alone: envelope is sum |w| relu(si qs) ks per score,
    in whose last bits heads cancel; selection [B, S, offset + score_len] holds the score of every index that topk_idxs
    may name, and -inf for all others.

    Raises GoldenInputError for shapes and dtypes, a hole in idx_block_table below a request's visible length, and as
    decode_indexer_compressor does.
    """
    op = "decode_indexer"
    b, s, d = expect(f"{op}: x", x, (None, None, None), torch.bfloat16)
    t, lora = expect(f"{op}: qr", qr, (b * s, None), torch.int8)
    expect(f"{op}: qr_scale", qr_scale, (t, 1), torch.float32)
    (width,) = expect(f"{op}: inner_norm_w", inner_norm_w, (None,), torch.bfloat16)
    _, heads = expect(f"{op}: weights_proj", weights_proj, (d, None), torch.bfloat16)
    expect(f"{op}: wq_b", wq_b, (lora, heads * width), torch.int8)
    expect(f"{op}: wq_b_scale", wq_b_scale, (heads * width,), torch.float32)
    _, pairs = expect(f"{op}: cos", cos, (t, None), torch.float32)
    expect(f"{op}: sin", sin, (t, pairs), torch.float32)
    expect(f"{op}: inner_cos", inner_cos, (b, pairs), torch.float32)
    expect(f"{op}: inner_sin", inner_sin, (b, pairs), torch.float32)
    expect(f"{op}: hadamard", hadamard, (width, width), torch.bfloat16)
    expect(f"{op}: idx_block_table", idx_block_table, (b, None), torch.int32)
    expect(f"{op}: kv_seq_lens", kv_seq_lens, (b,), torch.int32)
    if expect_integer(f"{op}: offset", offset) < 0:
        raise GoldenInputError(f"{op}: offset is {offset}, expected 0 or more: -1 means no index")
    step_cos, step_sin = cos[::s], sin[::s]
    if query_rope == "request":
        cos, sin = step_cos.repeat_interleave(s, dim=0), step_sin.repeat_interleave(s, dim=0)
    if inner_rope == "query":
        inner_cos, inner_sin = step_cos, step_sin

    q_acc, q = _queries(qr, qr_scale, wq_b, wq_b_scale, width)
    q_bf16 = rotated_tail(q, cos.unsqueeze(1), sin.unsqueeze(1)).to(torch.bfloat16)  # step 3
    q_rotated = fp32_matmul(q_bf16.flatten(0, 1), hadamard.t()).view(t, heads, width)  # step 4
    codes, scale = quantize_rows(q_rotated)  # step 5
    q_codes, q_scale = continued(given, op, "q_codes", codes), continued(given, op, "q_scale", scale)
    weights = fp32_matmul(x.flatten(0, 1), weights_proj.t()) * weights_scale  # step 6: signed, not rounded to BF16
    weights = continued(given, op, "weights", weights)

    inner_taps: dict[str, Tensor] = {}
    inner = decode_indexer_compressor(  # step 7: its key takes part in this step's scores
        x, inner_compress_state, inner_compress_state_block_table, inner_wkv, inner_wgate, inner_ape, inner_norm_w,
        inner_cos, inner_sin, hadamard, idx_kv_cache, position_ids, idx_slot_mapping, inner_state_slot_mapping,
        rms_eps=rms_eps, taps=inner_taps, given=_inner_given(given),
    )  # fmt: skip
    cache = continued(given, op, "idx_kv_cache", inner["idx_kv_cache"])

    visible = _visible_rows(kv_seq_lens, position_ids, score_len, visible_by)
    keys, key_scale = _keys(cache, idx_block_table, visible.amax(dim=1))
    own_scale, own_weights = q_scale.view(b, s, heads), weights.view(b, s, heads)
    firing = _firing(keys, q_codes.view(b, s, heads, width), own_scale)
    total = _scores(firing, own_weights, key_scale)
    score = continued(given, op, "score", _widened(total, score_len, EMPTY_SCORE, visible))
    topk_idxs = _selected(score, visible, index_topk, offset)

    if taps is not None:
        envelope = _scores(firing, own_weights.abs(), key_scale)
        taps.update(
            q_acc=q_acc, q_bf16=q_bf16, q_rotated=q_rotated, q_codes=q_codes, q_scale=q_scale, weights=weights,
            inner_row=inner_taps["row"], inner_row_bf16=inner_taps["row_bf16"], inner_kv=inner["kv"],
            inner_compress_state=inner["compress_state"], idx_kv_cache=cache, visible=visible, score=score,
            envelope=_widened(envelope, score_len, 0.0, visible),
            selection=_selection_keys(score, visible, offset), topk_idxs=topk_idxs,
        )  # fmt: skip
    return {
        "inner_kv": inner["kv"],
        "inner_compress_state": inner["compress_state"],
        "idx_kv_cache": cache,
        "score": score,
        "topk_idxs": topk_idxs,
    }


def _inner_given(given: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
    """The device's stages by the names that decode_indexer_compressor has for them."""
    return part_of(given, {"inner_compress_state": "compress_state", "inner_kv": "kv"})
