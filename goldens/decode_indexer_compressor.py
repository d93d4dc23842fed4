"""Golden of decode_indexer_compressor: one index key per closed group of 4, rotated by a Hadamard matrix.

contracts/decode_compressor_indexer.md, section 4; steps 1 to 7 are in goldens/numerics/compressor.py.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from goldens.checks import continued, expect
from goldens.numerics.compressor import Parameters, Step, compress, emitted_slots, stored
from goldens.numerics.matmul import fp32_matmul
from goldens.numerics.paging import PAGE

STAGES = (
    "kv_proj", "biased_score", "compress_state", "pooled", "inv_rms", "normed", "row", "row_bf16", "kv", "idx_kv_cache",
)  # fmt: skip


def decode_indexer_compressor(
    x: Tensor,
    compress_state: Tensor,
    compress_state_block_table: Tensor,
    wkv: Tensor,
    wgate: Tensor,
    ape: Tensor,
    norm_w: Tensor,
    cos: Tensor,
    sin: Tensor,
    hadamard: Tensor,
    idx_kv_cache: Tensor,
    position_ids: Tensor,
    idx_slot_mapping: Tensor,
    inner_state_slot_mapping: Tensor,
    *,
    rms_eps: float,
    taps: dict[str, Tensor] | None = None,
    given: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Add the tokens of a step to the indexer's rolling state; where a group of 4 closes, store its index key.

    As decode_compressor_ratio4 with rows of IDX_HEAD_DIM, idx_kv_cache [pages, 128, 1, IDX_HEAD_DIM] BF16, and hadamard
    [IDX_HEAD_DIM, IDX_HEAD_DIM] BF16, row index = input: the rotated row is rounded to BF16, multiplied by it from
    the left (FP32 accumulation) and is then kv[b, 0], FP32, and rounded once more the new row of the cache.

    `given` may hold compress_state and kv of a device: the rows are then pooled from that state, and the cache is
    rounded from that kv. Raises GoldenInputError as goldens.numerics.compressor says.
    """
    op = "decode_indexer_compressor"
    step = Step(position_ids, inner_state_slot_mapping, compress_state_block_table, cos, sin)
    parameters = Parameters(wkv, wgate, ape, norm_w)
    done = compress(op, x, compress_state, step, parameters, rms_eps, given, "inner_state_slot_mapping")
    width = norm_w.shape[0]
    expect(f"{op}: hadamard", hadamard, (width, width), torch.bfloat16)
    expect(f"{op}: idx_kv_cache", idx_kv_cache, (None, PAGE, 1, width), torch.bfloat16)
    expect(f"{op}: idx_slot_mapping", idx_slot_mapping, tuple(position_ids.shape), torch.int64)
    requests, rows = emitted_slots(op, "idx_slot_mapping", idx_slot_mapping, done, idx_kv_cache)

    row_bf16 = done.row.to(torch.bfloat16)  # step 8
    kv = torch.zeros(*position_ids.shape, width)
    kv[requests, 0] = fp32_matmul(row_bf16[requests], hadamard.t())  # step 9
    kv = continued(given, op, "kv", kv)
    cache = stored(idx_kv_cache, rows, kv[requests, 0])
    if taps is not None:
        taps.update(
            kv_proj=done.kv_proj, biased_score=done.biased_score, compress_state=done.state, pooled=done.pooled,
            inv_rms=done.inv_rms, normed=done.normed, row=done.row, row_bf16=row_bf16, kv=kv, idx_kv_cache=cache,
        )  # fmt: skip
    return {"kv": kv, "compress_state": done.state, "idx_kv_cache": cache}
