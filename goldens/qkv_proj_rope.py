"""Golden of qkv_proj_rope: the low-rank query as INT8, the rotated query heads and the rotated KV vector.

contracts/dense.md, section 7; the step numbers are those of 7.3. H heads of HEAD_DIM lanes, of which the last
ROPE_DIM are rotary.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from goldens.checks import continued, expect
from goldens.errors import GoldenInputError
from goldens.numerics.elementary import inverse_sqrt
from goldens.numerics.matmul import fp32_matmul, int8_matmul
from goldens.numerics.quant import quantize_rows
from goldens.numerics.reduce import row_sum
from goldens.numerics.rope import rotate_pairs
from goldens.numerics.w8a8 import dequantize

STAGES = (
    "low_rank", "low_rank_inv_rms", "low_rank_norm", "qr", "qr_scale", "q_acc", "q_heads", "q_inv_rms", "q",
    "kv_raw", "kv_inv_rms", "kv_norm", "kv",
)  # fmt: skip


def _inverse_rms(x: Tensor, rms_eps: float) -> Tensor:
    """Steps 2, 8, 12: 1 / sqrt(sum of squares * (1/n) + eps) over the last axis, 1/n rounded to FP32 first."""
    return inverse_sqrt(row_sum(x * x) * (1.0 / x.shape[-1]) + rms_eps)


def _norm(x: Tensor, inv_rms: Tensor, gamma: Tensor) -> Tensor:
    """Steps 3, 13: (x * inv) * gamma, two roundings, and none to BF16."""
    return (x * inv_rms).mul_(gamma.float())


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Steps 9, 10, 14: the last lanes of normed `x` rotate, in FP32; then one rounding to BF16. [..., HEAD_DIM]"""
    nope = x.shape[-1] - 2 * cos.shape[-1]
    out = torch.empty(x.shape, dtype=torch.bfloat16)
    out[..., :nope] = x[..., :nope]
    out[..., nope:] = rotate_pairs(x[..., nope:], cos, sin)
    return out


def qkv_proj_rope(
    x: Tensor,
    wq_a: Tensor,
    wq_b: Tensor,
    wq_b_scale: Tensor,
    wkv: Tensor,
    rope_cos: Tensor,
    rope_sin: Tensor,
    gamma_cq: Tensor,
    gamma_ckv: Tensor,
    *,
    rms_eps: float,
    taps: dict[str, Tensor] | None = None,
    given: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Project normed tokens to the query heads and the KV vector, normalise both and rotate their last lanes.

    x [T, D] BF16, wq_a [D, Q_LORA] BF16, wq_b [Q_LORA, H*HEAD_DIM] INT8 with wq_b_scale [H*HEAD_DIM] FP32, wkv
    [D, HEAD_DIM] BF16, rope_cos and rope_sin [T, ROPE_DIM] BF16, of which the first half is read, gamma_cq
    [Q_LORA] and gamma_ckv [HEAD_DIM] BF16.

    Returns q [T, H, HEAD_DIM] and kv [T, HEAD_DIM] BF16 (RNE), qr [T, Q_LORA] INT8 and qr_scale [T, 1] FP32.
    Values are normalised before they rotate; nothing but q and kv is rounded to BF16. Every step is local to its
    token. `given` may hold qr and qr_scale of a device: q is then computed from those.

    Raises GoldenInputError for a wrong shape or dtype, columns of wq_b that are no whole heads, and an odd or too
    large ROPE_DIM.
    """
    t, d = expect("qkv_proj_rope: x", x, (None, None), torch.bfloat16)
    _, q_lora = expect("qkv_proj_rope: wq_a", wq_a, (d, None), torch.bfloat16)
    _, columns = expect("qkv_proj_rope: wq_b", wq_b, (q_lora, None), torch.int8)
    expect("qkv_proj_rope: wq_b_scale", wq_b_scale, (columns,), torch.float32)
    _, head_dim = expect("qkv_proj_rope: wkv", wkv, (d, None), torch.bfloat16)
    _, rope_dim = expect("qkv_proj_rope: rope_cos", rope_cos, (t, None), torch.bfloat16)
    expect("qkv_proj_rope: rope_sin", rope_sin, (t, rope_dim), torch.bfloat16)
    expect("qkv_proj_rope: gamma_cq", gamma_cq, (q_lora,), torch.bfloat16)
    expect("qkv_proj_rope: gamma_ckv", gamma_ckv, (head_dim,), torch.bfloat16)
    if columns % head_dim:
        raise GoldenInputError(
            f"qkv_proj_rope: wq_b has shape [{q_lora}, {columns}], expected whole heads of {head_dim} columns"
        )
    if rope_dim % 2 or rope_dim > head_dim:
        raise GoldenInputError(
            f"qkv_proj_rope: rope_cos has shape [{t}, {rope_dim}], expected an even width up to {head_dim}"
        )
    cos, sin = (rows[:, : rope_dim // 2].float() for rows in (rope_cos, rope_sin))

    low_rank = fp32_matmul(x, wq_a.t())  # step 1
    low_rank_inv_rms = _inverse_rms(low_rank, rms_eps)
    low_rank_norm = _norm(low_rank, low_rank_inv_rms, gamma_cq)
    codes, scale = quantize_rows(low_rank_norm)  # steps 4, 5
    qr = continued(given, "qkv_proj_rope", "qr", codes)
    qr_scale = continued(given, "qkv_proj_rope", "qr_scale", scale)

    q_acc = int8_matmul(qr, wq_b.t())  # step 6
    q_heads = dequantize(q_acc, qr_scale, wq_b_scale).view(t, columns // head_dim, head_dim)
    q_inv_rms = _inverse_rms(q_heads, rms_eps)  # step 8: for every head
    q = _rotated(q_heads * q_inv_rms, cos.unsqueeze(1), sin.unsqueeze(1))

    kv_raw = fp32_matmul(x, wkv.t())  # step 11
    kv_inv_rms = _inverse_rms(kv_raw, rms_eps)
    kv_norm = _norm(kv_raw, kv_inv_rms, gamma_ckv)  # gamma comes before the rotation: it belongs to the lane
    kv = _rotated(kv_norm, cos, sin)

    if taps is not None:
        taps.update(
            low_rank=low_rank, low_rank_inv_rms=low_rank_inv_rms, low_rank_norm=low_rank_norm, qr=qr,
            qr_scale=qr_scale, q_acc=q_acc, q_heads=q_heads, q_inv_rms=q_inv_rms, q=q, kv_raw=kv_raw,
            kv_inv_rms=kv_inv_rms, kv_norm=kv_norm, kv=kv,
        )  # fmt: skip
    return {"q": q, "kv": kv, "qr": qr, "qr_scale": qr_scale}
