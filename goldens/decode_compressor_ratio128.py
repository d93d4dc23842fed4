"""Golden of decode_compressor_ratio128: one compressed KV row per closed group of 128.

contracts/decode_compressor_indexer.md, section 3; its steps are in goldens/numerics/compressor.py.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from goldens.checks import continued, expect
from goldens.numerics.compressor import Parameters, Step, compress, emitted_slots, stored
from goldens.numerics.paging import PAGE

STAGES = ("kv_proj", "biased_score", "compress_state", "pooled", "inv_rms", "normed", "row", "kv", "cmp_kv_cache")


def decode_compressor_ratio128(
    x: Tensor,
    compress_state: Tensor,
    compress_state_block_table: Tensor,
    wkv: Tensor,
    wgate: Tensor,
    ape: Tensor,
    norm_w: Tensor,
    cos: Tensor,
    sin: Tensor,
    cmp_kv_cache: Tensor,
    position_ids: Tensor,
    cmp_slot_mapping: Tensor,
    state_slot_mapping: Tensor,
    *,
    rms_eps: float,
    taps: dict[str, Tensor] | None = None,
    given: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Add the tokens of a step to the rolling state; where a group of 128 closes, store its compressed row.

    x [B, S, D] BF16 with S <= 128, compress_state [pages, page, 2*OUT] FP32 (kv, then scores; OUT = HEAD_DIM), its
    block table [B, columns] INT32, wkv, wgate [OUT, D] BF16, ape [128, OUT] FP32, norm_w [HEAD_DIM] BF16, cos, sin
    [B, ROPE_DIM/2] FP32 at the first position of the group, cmp_kv_cache [pages, 128, 1, HEAD_DIM] BF16, position_ids
    [B, S] INT32, slot mappings [B, S] INT64 with -1 for "do not write".

    Returns kv [B, S, HEAD_DIM] FP32, the row of request b in kv[b, 0], undefined on the device and 0 here wherever no
    row is written; compress_state with the rows of this step's tokens (FP32, not rounded); cmp_kv_cache with the rows
    rounded to BF16 (RNE).

    `given` may hold compress_state and kv of a device: the rows are then pooled from that state, and the cache is
    rounded from that kv. A hole in the block table stands for rows that were never written: kv 0, the least score.
    Raises GoldenInputError as goldens.numerics.compressor says.
    """
    op = "decode_compressor_ratio128"
    step = Step(position_ids, state_slot_mapping, compress_state_block_table, cos, sin)
    done = compress(op, x, compress_state, step, Parameters(wkv, wgate, ape, norm_w), rms_eps, given)
    expect(f"{op}: cmp_kv_cache", cmp_kv_cache, (None, PAGE, 1, norm_w.shape[0]), torch.bfloat16)
    expect(f"{op}: cmp_slot_mapping", cmp_slot_mapping, tuple(position_ids.shape), torch.int64)
    requests, rows = emitted_slots(op, "cmp_slot_mapping", cmp_slot_mapping, done, cmp_kv_cache)

    kv = torch.zeros(*position_ids.shape, norm_w.shape[0])
    kv[requests, 0] = done.row[requests]
    kv = continued(given, op, "kv", kv)
    cache = stored(cmp_kv_cache, rows, kv[requests, 0])
    if taps is not None:
        taps.update(
            kv_proj=done.kv_proj, biased_score=done.biased_score, compress_state=done.state, pooled=done.pooled,
            inv_rms=done.inv_rms, normed=done.normed, row=done.row, kv=kv, cmp_kv_cache=cache,
        )  # fmt: skip
    return {"kv": kv, "compress_state": done.state, "cmp_kv_cache": cache}
