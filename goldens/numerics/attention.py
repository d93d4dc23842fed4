"""The numerics that all forms of decode sparse attention share (contracts/decode_attention.md, CB-2 to CB-4).

T tokens, H heads of HEAD_DIM lanes, G output groups of O_LORA channels. One KV row is key and value of every head.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from goldens.checks import continued, expect
from goldens.errors import GoldenInputError
from goldens.numerics.elementary import exp
from goldens.numerics.matmul import fp32_matmul, int8_matmul
from goldens.numerics.quant import quantize_rows
from goldens.numerics.reduce import row_sum
from goldens.numerics.rope import rotate_pairs
from goldens.numerics.visibility import MASKED

OUTPUT_STAGES = ("block_max", "block_sum", "attended", "o_packed", "o_r", "o_codes", "o_scale", "attn_out")
"""What `attention_output` taps, in order."""


class Block(NamedTuple):
    """KV rows of one block of the softmax: rows [T, n, HEAD_DIM] BF16, visible [T, n] bool.

    A row that is not visible has no weight, but it must be finite.
    """

    rows: Tensor
    visible: Tensor


class OutputWeights(NamedTuple):
    """What follows the softmax: sinks [H] FP32, rotary rows [T, ROPE_DIM] BF16 (the first half is read), wo_a
    [G, O_LORA, O_GROUP_IN] BF16, wo_b [D, G*O_LORA] INT8 and its scales [D] FP32."""

    attn_sink: Tensor
    freqs_cos: Tensor
    freqs_sin: Tensor
    wo_a: Tensor
    wo_b: Tensor
    wo_b_scale: Tensor


class Softmax(NamedTuple):
    """The running state of the online softmax: maximum and sum [T, H, 1], weighted rows [T, H, HEAD_DIM], FP32."""

    max: Tensor
    sum: Tensor
    out: Tensor


def expect_output_weights(op: str, q: Tensor, weights: OutputWeights) -> None:
    """Check `weights` against q [T, H, HEAD_DIM]. Raises GoldenInputError."""
    t, heads, head_dim = q.shape
    expect(f"{op}: attn_sink", weights.attn_sink, (heads,), torch.float32)
    _, rope_dim = expect(f"{op}: freqs_cos", weights.freqs_cos, (t, None), torch.bfloat16)
    expect(f"{op}: freqs_sin", weights.freqs_sin, (t, rope_dim), torch.bfloat16)
    groups, rank, width = expect(f"{op}: wo_a", weights.wo_a, (None, None, None), torch.bfloat16)
    d, _ = expect(f"{op}: wo_b", weights.wo_b, (None, groups * rank), torch.int8)
    expect(f"{op}: wo_b_scale", weights.wo_b_scale, (d,), torch.float32)
    if groups * width != heads * head_dim:
        raise GoldenInputError(
            f"{op}: wo_a has shape [{groups}, {rank}, {width}], expected {groups} groups of "
            f"{heads * head_dim // max(groups, 1)} columns"
        )
    if rope_dim % 2 or rope_dim > head_dim:
        raise GoldenInputError(f"{op}: freqs_cos has shape [{t}, {rope_dim}], expected an even width up to {head_dim}")


def attend_block(q: Tensor, block: Block, softmax_scale: float) -> Softmax:
    """CB-2, steps 1 to 8, for all tokens and heads: q [T, H, HEAD_DIM] BF16.

    The weights that multiply the rows are rounded to BF16, relative to the maximum of this block; those that are summed
    are not. A block without a visible row has the maximum MASKED and adds nothing.
    """
    scores = fp32_matmul(q, block.rows) * softmax_scale
    lanes = block.visible.unsqueeze(1)
    scores = torch.where(lanes, scores, MASKED)
    largest = scores.amax(dim=2, keepdim=True)
    weights = torch.where(lanes, exp(scores - largest), 0.0)
    out = fp32_matmul(weights.to(torch.bfloat16), block.rows.transpose(1, 2))
    return Softmax(largest, row_sum(weights), out)


def merge(state: Softmax, block: Softmax) -> Softmax:
    """CB-2, merge: both sides rescaled to the larger maximum, a rounding for every operation."""
    largest = torch.maximum(state.max, block.max)
    alpha, beta = exp(state.max - largest), exp(block.max - largest)
    return Softmax(largest, alpha * state.sum + beta * block.sum, state.out * alpha + block.out * beta)


def normalise(state: Softmax, attn_sink: Tensor) -> Tensor:
    """CB-2, end: the sink joins the denominator alone. A token without a visible row, and an overflowing sink, give 0.

    [T, H, HEAD_DIM] FP32.
    """
    return state.out / (state.sum + exp(attn_sink.reshape(1, -1, 1) - state.max))


def rotate_back(y: Tensor, freqs_cos: Tensor, freqs_sin: Tensor) -> Tensor:
    """CB-3: the last lanes of each head turned back by the token's position, then one rounding to BF16.

    [T, H, HEAD_DIM].
    """
    half = freqs_cos.shape[1] // 2
    cos, sin = (rows[:, :half].float().unsqueeze(1) for rows in (freqs_cos, freqs_sin))
    out = y.to(torch.bfloat16)
    out[..., -2 * half :] = rotate_pairs(y[..., -2 * half :], cos, -sin)
    return out


def pack_groups(heads: Tensor, groups: int) -> Tensor:
    """Row g * T + t, column (head within its group) * HEAD_DIM + lane: [T, H, HEAD_DIM] to [G*T, O_GROUP_IN]."""
    return heads.reshape(heads.shape[0], groups, -1).transpose(0, 1).reshape(groups * heads.shape[0], -1)


def project_groups(o_packed: Tensor, wo_a: Tensor) -> Tensor:
    """CB-4, step 1: each group through its own weights; the result is not rounded to BF16. [T, G*O_LORA] FP32"""
    groups, rank, width = wo_a.shape
    low_rank = fp32_matmul(o_packed.reshape(groups, -1, width), wo_a)
    return low_rank.transpose(0, 1).reshape(-1, groups * rank)


def expand_groups(codes: Tensor, scale: Tensor, wo_b: Tensor, wo_b_scale: Tensor) -> Tensor:
    """CB-4, steps 6 to 8: exact INT32 per group, groups added in ascending order, the channel's scale once.

    codes [T, G*O_LORA] INT8, scale [T, G] FP32; returns [T, D] BF16.
    """
    groups = scale.shape[1]
    rank = codes.shape[1] // groups
    total = torch.zeros(codes.shape[0], wo_b.shape[0])
    for group in range(groups):
        part = slice(group * rank, (group + 1) * rank)
        partial = int8_matmul(codes[:, part].contiguous(), wo_b[:, part].contiguous())
        total += partial.float() * scale[:, group : group + 1]
    return (total * wo_b_scale).to(torch.bfloat16)


def attention_output(
    op: str,
    q: Tensor,
    kv_blocks: Iterable[Block],
    weights: OutputWeights,
    softmax_scale: float,
    taps: dict[str, Tensor] | None,
    given: Mapping[str, Tensor] | None,
) -> Tensor:
    """attn_out [T, D] BF16 of q [T, H, HEAD_DIM] over blocks of KV rows, merged in the order given.

    `given` may hold o_packed, o_r, o_codes and o_scale of a device.
    """
    groups, rank, _ = weights.wo_a.shape
    t = q.shape[0]
    parts = [attend_block(q, block, softmax_scale) for block in kv_blocks]
    state = parts[0]
    for part in parts[1:]:
        state = merge(state, part)
    attended = normalise(state, weights.attn_sink)
    turned = rotate_back(attended, weights.freqs_cos, weights.freqs_sin)
    o_packed = continued(given, op, "o_packed", pack_groups(turned, groups))
    o_r = continued(given, op, "o_r", project_groups(o_packed, weights.wo_a))
    codes, scale = quantize_rows(o_r.view(t, groups, rank))  # one scale per token and group
    o_codes = continued(given, op, "o_codes", codes.view(t, groups * rank))
    o_scale = continued(given, op, "o_scale", scale.view(t, groups))
    attn_out = expand_groups(o_codes, o_scale, weights.wo_b, weights.wo_b_scale)
    if taps is not None:
        taps.update(
            block_max=torch.stack([part.max.squeeze(2) for part in parts], dim=1),
            block_sum=torch.stack([part.sum.squeeze(2) for part in parts], dim=1),
            attended=attended, o_packed=o_packed, o_r=o_r, o_codes=o_codes, o_scale=o_scale, attn_out=attn_out,
        )  # fmt: skip
    return attn_out
