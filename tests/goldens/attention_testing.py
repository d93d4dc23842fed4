"""What the golden tests of decode attention share: straight-line attention of one token, and an oracle in FP64.

Both are written from contracts/decode_attention.md (CB-1 to CB-4) with loops over rows, heads and groups, and share
nothing with the goldens but the inputs.
"""

import numpy as np
import torch
from golden_testing import F32, bf16, exact_dot, exact_sum, exp, q8

WIN, BLOCK = 128, 128
MASKED = F32(-1e20)


def kv_row(inputs, token, raw):
    """CB-1: the row that a raw index of a token names, BF16 values as FP32; None for a negative one."""
    if raw < 0:
        return None
    seq = len(inputs["mtp_kv_overlay"]) // len(inputs["ori_block_table"])
    request = token // seq
    if raw < WIN:
        return inputs["ori_kv"][inputs["ori_block_table"][request, 0], raw, 0].float().numpy()
    if raw < WIN + seq:
        return inputs["mtp_kv_overlay"][request * seq + raw - WIN].float().numpy()
    slot = raw - WIN - seq
    page = inputs["cmp_block_table"][request, slot // BLOCK]
    return inputs["cmp_kv"][page, slot % BLOCK, 0].float().numpy()


def listed_rows(inputs, token):
    """The rows of a token's list, column by column; none of a block that the mask drops, where there is one."""
    listed = inputs["cmp_sparse_indices"][token]
    mask = inputs.get("valid_block_mask")
    kept = [True] * len(listed) if mask is None else (mask[token] > 0).repeat_interleave(BLOCK).tolist()
    return [kv_row(inputs, token, int(raw)) if keep else None for raw, keep in zip(listed, kept, strict=True)]


def biased_rows(inputs, token):
    """The rows of a token of the form without compression: its ring page, then the overlay of all requests."""
    seq = len(inputs["mtp_kv_overlay"]) // len(inputs["ori_block_table"])
    page = inputs["ori_kv"][inputs["ori_block_table"][token // seq, 0], :, 0].float().numpy()
    rows = [*page, *inputs["mtp_kv_overlay"].float().numpy()]
    seen = inputs["win_bias"][token] == 0
    return [rows[column] if seen[column] else None for column in range(len(seen))]


def straight_line(inputs, token, rows, softmax_scale):
    """Packed heads [G, O_GROUP_IN] and attn_out [D] of one token in NumPy FP32 scalars."""
    q = inputs["q"][token].float().numpy()
    scale = F32(softmax_scale)
    cos, sin = (inputs[f"freqs_{part}"][token].float().numpy() for part in ("cos", "sin"))
    heads = []
    for head in range(len(q)):
        running = None
        for start in range(0, len(rows), BLOCK):
            block = softmax_block(q[head], rows[start : start + BLOCK], scale)
            running = block if running is None else merged(running, block)
        m, total, out = running
        y = out / (total + exp(F32(inputs["attn_sink"][head]) - m))
        heads.append(turned_back(y, cos, sin))
    groups = len(inputs["wo_a"])
    packed = np.stack(heads).reshape(groups, -1)
    return packed, projected(inputs, packed)


def softmax_block(q, rows, scale):
    scores = [MASKED if row is None else exact_dot(q, row) * scale for row in rows]
    m = max(scores)
    weights = [F32(0) if row is None else exp(s - m) for s, row in zip(scores, rows, strict=True)]
    rounded = bf16(weights)
    lanes = np.stack([np.zeros_like(q) if row is None else row for row in rows], axis=1)
    return m, exact_sum(weights), np.array([exact_dot(rounded, lane) for lane in lanes], dtype=F32)


def merged(one, two):
    m = max(one[0], two[0])
    alpha, beta = exp(one[0] - m), exp(two[0] - m)
    return m, alpha * one[1] + beta * two[1], one[2] * alpha + two[2] * beta


def turned_back(y, cos, sin):
    """CB-3 for one head; the tail is interleaved, the table rows are halves."""
    half = len(cos) // 2
    out, tail = y.copy(), len(y) - 2 * half
    for i in range(half):
        even, odd = y[tail + 2 * i], y[tail + 2 * i + 1]
        out[tail + 2 * i] = even * cos[i] + odd * sin[i]
        out[tail + 2 * i + 1] = odd * cos[i] - even * sin[i]
    return bf16(out)


def projected(inputs, packed):
    wo_a, wo_b = inputs["wo_a"].float().numpy(), inputs["wo_b"].numpy().astype(np.int64)
    rank = wo_a.shape[1]
    total = np.zeros(len(wo_b), dtype=F32)
    for group, heads in enumerate(packed):
        codes, scale = q8([exact_dot(heads, row) for row in wo_a[group]])
        sums = wo_b[:, group * rank : (group + 1) * rank] @ np.array(codes)
        total = total + sums.astype(F32) * scale
    return bf16(total * inputs["wo_b_scale"].numpy())


def oracle(inputs, token, rows, softmax_scale):
    """Attention in FP64 without a rounding: y [H, HEAD_DIM] before the rotation, and attn_out [D] unquantised."""
    q = inputs["q"][token].double().numpy()
    seen = [row for row in rows if row is not None]
    kv = np.stack(seen).astype(np.float64) if seen else np.zeros((0, q.shape[1]))
    logits = np.concatenate([q @ kv.T * softmax_scale, inputs["attn_sink"].double().numpy()[:, None]], axis=1)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    y = weights[:, :-1] @ kv
    cos, sin = (inputs[f"freqs_{part}"][token].double().numpy() for part in ("cos", "sin"))
    half = len(cos) // 2
    pairs = (y[:, -2 * half :: 2] + 1j * y[:, -2 * half + 1 :: 2]) * (cos - 1j * sin)[:half]
    turned = y.copy()
    turned[:, -2 * half :: 2], turned[:, -2 * half + 1 :: 2] = pairs.real, pairs.imag
    wo_a = inputs["wo_a"].double().numpy()
    low_rank = np.einsum("grk,gk->gr", wo_a, turned.reshape(len(wo_a), -1)).reshape(-1)
    wo_b = inputs["wo_b"].double().numpy() * inputs["wo_b_scale"].double().numpy()[:, None]
    return y, wo_b @ low_rank


def relative_error(found, wanted):
    """Relative L2 error of an array or a tensor."""
    error = np.asarray(torch.as_tensor(found).double()) - np.asarray(wanted, dtype=np.float64)
    return float(np.linalg.norm(error) / max(np.linalg.norm(wanted), 1e-300))
