"""The KV compressors of decode: projections into a paged state, and the pooled, normed, rotated row of a closed group.

contracts/decode_compressor_indexer.md 1.3 to 1.6, 2.3 and 3.3; the step numbers are those of 2.3. R positions make a
group. With the overlap (R = 4) the projections have two halves, front and back: a group is pooled from the back halves
of its own positions and the front halves of the group before; without it there is one half. H is the width of a row,
OUT that of a projection, B requests advance by S tokens each.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from goldens.checks import continued, expect, expect_range
from goldens.errors import GoldenInputError
from goldens.numerics.elementary import exp, inverse_sqrt, reciprocal
from goldens.numerics.matmul import fp32_matmul
from goldens.numerics.paging import PAGE, flat_rows
from goldens.numerics.reduce import row_sum
from goldens.numerics.rope import rotate_pairs

EMPTY_SCORE = -3.4028234663852886e38
"""Score of a row that does not exist: the most negative FP32 number, finite."""


class Parameters(NamedTuple):
    """What a compressor learned. wkv, wgate [OUT, D] BF16 stored [out, in], ape [R, OUT] FP32, norm_w [H] BF16."""

    wkv: Tensor
    wgate: Tensor
    ape: Tensor
    norm_w: Tensor


class Step(NamedTuple):
    """Where the requests stand: absolute positions [B, S] INT32, flat state rows [B, S] INT64, the state's block table
    [B, columns] INT32, rotary rows [B, ROPE_DIM/2] FP32.
    """

    position_ids: Tensor
    state_slots: Tensor
    state_table: Tensor
    cos: Tensor
    sin: Tensor


class Compressed(NamedTuple):
    """A step's results. Rows of requests that close no group are 0.

    closes  [B] bool, the step reaches the last position of a group; last [B] INT64, the token that does
    """

    kv_proj: Tensor  # [B, S, OUT] FP32
    biased_score: Tensor  # [B, S, OUT] FP32
    state: Tensor
    closes: Tensor
    last: Tensor
    pooled: Tensor  # [B, H] FP32
    inv_rms: Tensor  # [B, 1] FP32
    normed: Tensor  # [B, H] FP32
    row: Tensor  # [B, H] FP32, rotated


def compress(
    op: str,
    x: Tensor,
    state: Tensor,
    step: Step,
    parameters: Parameters,
    rms_eps: float,
    given: Mapping[str, Tensor] | None,
    slots_name: str = "state_slot_mapping",
) -> Compressed:
    """Steps 1 to 7. x [B, S, D] BF16, state [pages, page, 2*OUT] FP32.

    `given` may hold compress_state of a device: the group is then pooled from that one. `slots_name` is what
    messages call the state slots. Raises GoldenInputError for shapes and dtypes, positions that
    are not consecutive or beyond the block table, more than R tokens per request, slots beyond the pool or twice, and
    with the overlap for a hole in the block table where a closing group must be read.
    """
    half = _check(op, x, state, step, parameters)
    ratio, overlap = parameters.ape.shape[0], parameters.wkv.shape[0] // half == 2
    kv_proj, biased = _projected(x, step.position_ids, parameters)
    scattered = _scattered(op, slots_name, state, kv_proj, biased, step.state_slots)
    scattered = continued(given, op, "compress_state", scattered)

    first = step.position_ids[:, 0].long()
    inside = first % ratio
    closes = inside + x.shape[1] >= ratio
    last = (ratio - 1 - inside).clamp(max=x.shape[1] - 1)
    kv, score = _window(op, scattered, step, (first - inside)[closes], closes, ratio, overlap)
    pooled = _folded(kv, score) if overlap else _weighted(kv, score)  # step 6
    inv_rms = inverse_sqrt(row_sum(pooled * pooled) * (1.0 / half) + rms_eps)
    normed = (pooled * inv_rms) * parameters.norm_w.float()  # the weight belongs to the lane: before the rotation
    row = rotated_tail(normed, step.cos[closes], step.sin[closes])
    return Compressed(
        kv_proj, biased, scattered, closes, last,
        *(_spread(rows, closes) for rows in (pooled, inv_rms, normed, row)),
    )  # fmt: skip


def rotated_tail(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The last lanes of `x` [..., H] rotated in interleaved pairs, the others as they are: FP32, 1.4."""
    nope = x.shape[-1] - 2 * cos.shape[-1]
    return torch.cat([x[..., :nope], rotate_pairs(x[..., nope:], cos, sin)], dim=-1)


def emitted_slots(op: str, name: str, slots: Tensor, done: Compressed, cache: Tensor) -> tuple[Tensor, Tensor]:
    """Step 8: the requests that write a row, INT64 [E], and its flat row in `cache` [pages, 128, 1, H], INT64 [E].

    Slots of tokens that close no group are not looked at. Raises GoldenInputError for a slot beyond the pool and one
    that two requests write.
    """
    chosen = slots.gather(1, done.last.unsqueeze(1)).squeeze(1)
    requests = (done.closes & (chosen >= 0)).nonzero().squeeze(1)
    rows = chosen[requests]
    expect_range(f"{op}: {name}", rows, 0, cache.shape[0] * PAGE - 1)
    _expect_distinct(op, name, rows)
    return requests, rows


def stored(cache: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """A copy of `cache` with `values` [E, H] FP32 in the flat `rows`, rounded to BF16 (RNE)."""
    out = cache.clone()
    out.view(-1, cache.shape[-1])[rows] = values.to(torch.bfloat16)
    return out


def _check(op: str, x: Tensor, state: Tensor, step: Step, parameters: Parameters) -> int:
    """Shapes and dtypes, and what the positions must be. Returns H."""
    b, s, d = expect(f"{op}: x", x, (None, None, None), torch.bfloat16)
    _, page, both = expect(f"{op}: compress_state", state, (None, None, None), torch.float32)
    _, columns = expect(f"{op}: compress_state_block_table", step.state_table, (b, None), torch.int32)
    out, _ = expect(f"{op}: wkv", parameters.wkv, (both // 2, d), torch.bfloat16)
    expect(f"{op}: compress_state", state, (None, page, 2 * out), torch.float32)  # an odd width was halved
    expect(f"{op}: wgate", parameters.wgate, (out, d), torch.bfloat16)
    ratio, _ = expect(f"{op}: ape", parameters.ape, (None, out), torch.float32)
    (half,) = expect(f"{op}: norm_w", parameters.norm_w, (None,), torch.bfloat16)
    _, pairs = expect(f"{op}: cos", step.cos, (b, None), torch.float32)
    expect(f"{op}: sin", step.sin, (b, pairs), torch.float32)
    expect(f"{op}: position_ids", step.position_ids, (b, s), torch.int32)
    if out not in (half, 2 * half):
        raise GoldenInputError(f"{op}: wkv has shape [{out}, {d}], expected {half} or {2 * half} rows")
    if 2 * pairs > half:
        raise GoldenInputError(f"{op}: cos has shape [{b}, {pairs}], expected at most {half // 2} pairs")
    if s > ratio:
        raise GoldenInputError(f"{op}: x has {s} tokens per request, expected at most {ratio}: a group closes once")
    expect_range(f"{op}: position_ids", step.position_ids, 0, columns * page - 1)
    jumps = (step.position_ids - step.position_ids[:, :1] != torch.arange(s)).nonzero()
    if jumps.numel():
        request, token = jumps[0].tolist()
        raise GoldenInputError(
            f"{op}: position_ids[{request}, {token}] is {int(step.position_ids[request, token])}, expected "
            f"{int(step.position_ids[request, 0]) + token}: positions of a request are consecutive"
        )
    return half


def _projected(x: Tensor, positions: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
    """Steps 1, 2: KV and biased score of every token, [B, S, OUT] FP32."""
    ratio = parameters.ape.shape[0]
    tokens = x.flatten(0, 1)
    kv, score = (fp32_matmul(tokens, w) for w in (parameters.wkv, parameters.wgate))
    biased = score + parameters.ape[positions.flatten().long() % ratio]
    return kv.view(*positions.shape, -1), biased.view(*positions.shape, -1)


def _scattered(op: str, name: str, state: Tensor, kv: Tensor, score: Tensor, slots: Tensor) -> Tensor:
    """Step 3: a copy of the state with the rows of all tokens that have a slot."""
    expect(f"{op}: {name}", slots, tuple(kv.shape[:2]), torch.int64)
    expect_range(f"{op}: {name}", slots, -(2**63), state.shape[0] * state.shape[1] - 1)
    kept = slots >= 0
    _expect_distinct(op, name, slots[kept])
    out = state.clone()
    out.view(-1, state.shape[2])[slots[kept]] = torch.cat([kv[kept], score[kept]], dim=-1)
    return out


def _window(
    op: str, state: Tensor, step: Step, start: Tensor, closes: Tensor, ratio: int, overlap: bool
) -> tuple[Tensor, Tensor]:
    """Step 5: (kv, score) of the closing groups that begin at `start` [E], oldest row first: [E, rows, H] each.

    Rows of the group before the first, and those behind a hole, have kv 0 and EMPTY_SCORE.
    """
    out = state.shape[2] // 2
    half = out // 2 if overlap else out
    offset = torch.arange(-ratio if overlap else 0, ratio)
    positions = start.unsqueeze(1) + offset
    table = step.state_table[closes]
    rows = flat_rows(positions.clamp(min=0), table, state.shape[1])
    if overlap and bool(((rows < 0) & (positions >= 0)).any()):
        closing, row = ((rows < 0) & (positions >= 0)).nonzero()[0].tolist()
        position = int(positions[closing, row])
        raise GoldenInputError(
            f"{op}: compress_state_block_table[{int(closes.nonzero()[closing])}, {position // state.shape[1]}] "
            f"is negative, expected a page: the group being closed reads position {position}"
        )
    found = state.view(-1, 2, out)[rows.clamp(min=0)]
    if overlap:
        front, back = found[:, :ratio, :, :half], found[:, ratio:, :, half:]
        found = torch.cat([front, back], dim=1)
    absent = ((rows < 0) | (positions < 0)).unsqueeze(2)
    return found[:, :, 0].masked_fill(absent, 0.0), found[:, :, 1].masked_fill(absent, EMPTY_SCORE)


def _folded(kv: Tensor, score: Tensor) -> Tensor:
    """Step 6 with the overlap: an online softmax that starts at the closing row and takes in the others, oldest first.

    Every product and sum rounds; one division at the end. [E, H]
    """
    largest, total, weighted = score[:, -1], torch.ones_like(score[:, -1]), kv[:, -1]
    for row in range(kv.shape[1] - 1):
        above = torch.maximum(largest, score[:, row])
        kept, added = exp(largest - above), exp(score[:, row] - above)
        total = kept * total + added
        weighted = weighted * kept + kv[:, row] * added
        largest = above
    return weighted / total


def _weighted(kv: Tensor, score: Tensor) -> Tensor:
    """Step 4 of 3.3: weights exp(s - max) * (1 / sum), a reciprocal and no quotient; sums correctly rounded. [E, H]"""
    weights = exp(score - score.amax(dim=1, keepdim=True))
    weights = weights * reciprocal(_row_sums(weights)).unsqueeze(1)
    return _row_sums(kv * weights)


def _row_sums(x: Tensor) -> Tensor:
    """Sums over the rows of a window, correctly rounded: [E, rows, H] to [E, H]."""
    return row_sum(x.mT).squeeze(2)


def _spread(rows: Tensor, closes: Tensor) -> Tensor:
    """Rows of the closing requests among those of all, [B, n]."""
    out = torch.zeros(closes.shape[0], rows.shape[1])
    out[closes] = rows
    return out


def _expect_distinct(op: str, name: str, rows: Tensor) -> None:
    ordered = rows.sort().values
    twice = (ordered[1:] == ordered[:-1]).nonzero()
    if twice.numel():
        raise GoldenInputError(f"{op}: {name} has the row {int(ordered[twice[0, 0]])} twice, expected distinct rows")
