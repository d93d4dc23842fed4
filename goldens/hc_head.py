"""Golden of hc_head: the hyper-connection streams of the last layer collapsed into one hidden vector.

contracts/dense.md, section 8; the step numbers are those of 8.3. HC streams, one gate for each.
"""

import torch
from torch import Tensor

from goldens.checks import expect
from goldens.numerics.elementary import inverse_sqrt, sigmoid
from goldens.numerics.matmul import fp32_matmul
from goldens.numerics.reduce import chunked_sum

STAGES = ("sum_squares", "inv_rms", "raw", "mix", "logits", "pre", "mixed", "y")

_CHUNK = 512  # columns of one row sum
_STREAMS = 4  # the pairing of step 8 is written out


def _sum_squares(flat: Tensor) -> Tensor:
    """Step 2: squares in FP32, row sums of 512 columns added left to right. [T, 1]"""
    return chunked_sum(flat * flat, _CHUNK)


def _inverse_rms(sum_squares: Tensor, hc_dim: int, rms_eps: float) -> Tensor:
    """Steps 2, 3: 1 / sqrt(ss * (1/HC_DIM) + eps), four roundings, 1/HC_DIM rounded to FP32 first. [T, 1]"""
    return inverse_sqrt(sum_squares * (1.0 / hc_dim) + rms_eps)


def _gates(logits: Tensor, hc_eps: float) -> Tensor:
    """Step 7: the epsilon comes after the sigmoid. [T, HC]"""
    return sigmoid(logits) + hc_eps


def _mix_streams(x: Tensor, pre: Tensor) -> Tensor:
    """Step 8: (x0 p0 + x1 p1) + (x2 p2 + x3 p3), a rounding for each operation. [T, HC, D] to [T, D]"""
    gated = x * pre.unsqueeze(2)
    return (gated[:, 0] + gated[:, 1]).add_(gated[:, 2] + gated[:, 3])


def hc_head(
    x_hc: Tensor,
    hc_head_fn: Tensor,
    hc_head_scale: Tensor,
    hc_head_base: Tensor,
    *,
    rms_eps: float,
    hc_eps: float,
    taps: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The sum of the streams of each token, each times a gate in (0, 1) that depends on all of them.

    x_hc [T, 4, D] BF16, hc_head_fn [4, 4*D] FP32, hc_head_scale [1] FP32, hc_head_base [4] FP32. Returns y
    [T, D] BF16 (RNE). The gates see the normalised streams, the sum takes them as they are. Every step is
    local to its token. Raises GoldenInputError for a wrong shape or dtype.
    """
    t, hc, d = expect("hc_head: x_hc", x_hc, (None, _STREAMS, None), torch.bfloat16)
    expect("hc_head: hc_head_fn", hc_head_fn, (hc, hc * d), torch.float32)
    expect("hc_head: hc_head_scale", hc_head_scale, (1,), torch.float32)
    expect("hc_head: hc_head_base", hc_head_base, (hc,), torch.float32)

    x = x_hc.float()
    flat = x.reshape(t, hc * d)  # step 1: stream after stream
    sum_squares = _sum_squares(flat)
    inv_rms = _inverse_rms(sum_squares, hc * d, rms_eps)
    raw = fp32_matmul(x_hc.reshape(t, hc * d), hc_head_fn)  # step 4: the device's order is open, so rounded once
    mix = raw * inv_rms  # step 5: the projection is normalised, not what it projects
    logits = mix * hc_head_scale + hc_head_base  # step 6
    pre = _gates(logits, hc_eps)
    mixed = _mix_streams(x, pre)
    y = mixed.to(torch.bfloat16)

    if taps is not None:
        taps.update(
            sum_squares=sum_squares, inv_rms=inv_rms, raw=raw, mix=mix, logits=logits, pre=pre, mixed=mixed, y=y
        )  # fmt: skip
    return {"y": y}
