"""Golden of hc_pre: the sublayer input and the gates, from the hyper-connection streams of a token.

contracts/hc_gate_experts.md, section 1; the step numbers are those of 1.3. HC streams, rows of the
projection: HC for `pre`, HC for `post`, HC*HC for `comb` (row-major [in, out]).
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from goldens.checks import expect
from goldens.numerics.elementary import exp, inverse_sqrt, sigmoid
from goldens.numerics.matmul import fp32_matmul
from goldens.numerics.reduce import chunked_sum, row_sum

STAGES = (
    "sum_squares", "inv_rms", "raw", "mix", "logits", "pre", "post", "comb_softmax", "comb", "mixed",
    "x_mixed",
)  # fmt: skip

_K_SLICES = 16  # the device splits the flattened streams into this many slices
_CHUNK = 512  # columns of one row sum in a slice
_CACHED = 1 << 17  # elements worked on at a time, for speed alone


def _slices(x: Tensor) -> Tensor:
    """The K slices of the last axis, [..., 16, K/16]; where 16 does not divide K, zeros fill the last one."""
    width = -(-x.shape[-1] // _K_SLICES)
    if missing := _K_SLICES * width - x.shape[-1]:
        x = pad(x, (0, missing))
    return x.reshape(*x.shape[:-1], _K_SLICES, width)


def _sum_squares(x: Tensor) -> Tensor:
    """Step 2: squares in FP32; row sums of 512 columns chained in a slice, slices ascending. [T, 1]"""
    sums = []
    for rows in torch.split(x, _tokens_at_once(x.shape[1])):
        wide = rows.float()
        sums.append(row_sum(chunked_sum(_slices(wide.mul_(wide)), _CHUNK).squeeze(2), "sequential"))
    return torch.cat(sums)


def _tokens_at_once(elements: int) -> int:
    """Tokens of so many elements each that together stay in the cache."""
    return max(1, _CACHED // elements)


def _inverse_rms(sum_squares: Tensor, hc_dim: int, rms_eps: float) -> Tensor:
    """Step 3: 1 / sqrt(ss * (1/HC_DIM) + eps), four roundings, 1/HC_DIM rounded to FP32 first. [T, 1]"""
    return inverse_sqrt(sum_squares * (1.0 / hc_dim) + rms_eps)


def _project(x: Tensor, hc_fn: Tensor) -> Tensor:
    """Step 4: one rounded sum per K slice, slices added ascending in FP32. [T, MIX]"""
    sums = fp32_matmul(_slices(x).transpose(0, 1), _slices(hc_fn).transpose(0, 1))
    return row_sum(sums.movedim(0, 2), "sequential").squeeze(2)


def _logits(mix: Tensor, hc_scale: Tensor, hc_base: Tensor, hc: int) -> Tensor:
    """Step 6: mix * scale + base, two roundings. Scale 0 is for pre, 1 for post, 2 for comb. [T, MIX]"""
    gain = hc_scale[torch.tensor([0] * hc + [1] * hc + [2] * hc * hc)]
    return mix * gain + hc_base


def _softmax(logits: Tensor, hc_eps: float) -> Tensor:
    """Step 9: softmax of each `in` row, true division, sum left to right; then eps. [T, in, out]"""
    e = exp(logits - logits.amax(dim=2, keepdim=True))
    return e / row_sum(e, "sequential") + hc_eps


def _sinkhorn(comb: Tensor, iters: int, hc_eps: float) -> Tensor:
    """Step 10: a column step, then iters - 1 times a row step and a column step. [T, in, out]

    Column sums (over `in`) are pairwise, (r0 + r1) + (r2 + r3), row sums left to right.
    """
    planes = comb.permute(1, 2, 0).contiguous()  # [in, out, T]: whole rows of tokens, and no new memory below
    over_in, over_out = planes.unbind(0), planes.unbind(1)
    rows = torch.empty_like(over_out[0])
    for iteration in range(iters):
        if iteration:
            rows.copy_(over_out[0])
            for plane in over_out[1:]:
                rows += plane
            planes /= rows.add_(hc_eps).unsqueeze(1)
        planes /= _pairs(list(over_in)) + hc_eps
    return planes.permute(2, 0, 1).contiguous()


def _pairs(terms: list[Tensor]) -> Tensor:
    """The sum in adjacent pairs, (t0 + t1) + (t2 + t3); an odd one out waits for the next round."""
    while len(terms) > 1:
        sums = [left + right for left, right in zip(terms[0::2], terms[1::2], strict=False)]
        terms = sums + terms[2 * len(sums) :]
    return terms[0]


def _mix_streams(x: Tensor, pre: Tensor) -> Tensor:
    """Step 11: gated sum over the streams, pairwise: (p0 + p1) + (p2 + p3). x [T, HC, D] to [T, D]"""
    tokens = _tokens_at_once(x.shape[1] * x.shape[2])
    mixed = torch.empty(x.shape[0], x.shape[2])
    for out, rows, gates in zip(*(torch.split(part, tokens) for part in (mixed, x, pre)), strict=True):
        out.copy_(_pairs([rows[:, s].float().mul_(gates[:, s : s + 1]) for s in range(x.shape[1])]))
    return mixed


def hc_pre(
    x: Tensor,
    hc_fn: Tensor,
    hc_scale: Tensor,
    hc_base: Tensor,
    *,
    rms_eps: float,
    hc_eps: float,
    sinkhorn_iters: int,
    taps: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Project the normalised streams of each token to its gates, and mix the streams with the pre gates.

    x [T, HC, D] BF16, hc_fn [MIX, HC*D] FP32, hc_scale [3] FP32, hc_base [MIX] FP32, with MIX = (2 + HC) *
    HC. Returns x_mixed [T, D] BF16 (RNE), post [T, HC] FP32, comb [T, HC*HC] FP32, row-major [in, out]. Every
    step is local to its token. Raises GoldenInputError for a wrong shape or dtype.
    """
    t, hc, d = expect("hc_pre: x", x, (None, None, None), torch.bfloat16)
    expect("hc_pre: hc_fn", hc_fn, ((2 + hc) * hc, hc * d), torch.float32)
    expect("hc_pre: hc_scale", hc_scale, (3,), torch.float32)
    expect("hc_pre: hc_base", hc_base, ((2 + hc) * hc,), torch.float32)

    flat = x.reshape(t, hc * d)  # step 1: BF16 is widened where it is used, exactly
    sum_squares = _sum_squares(flat)
    inv_rms = _inverse_rms(sum_squares, hc * d, rms_eps)
    raw = _project(flat, hc_fn)
    mix = raw * inv_rms  # step 5: after the projection, once per value
    logits = _logits(mix, hc_scale, hc_base, hc)
    pre = sigmoid(logits[:, :hc]) + hc_eps  # step 7: the epsilon is on pre only
    post = sigmoid(logits[:, hc : 2 * hc]) * 2.0  # step 8
    comb_softmax = _softmax(logits[:, 2 * hc :].reshape(t, hc, hc), hc_eps)
    comb = _sinkhorn(comb_softmax, sinkhorn_iters, hc_eps).reshape(t, hc * hc)
    mixed = _mix_streams(x, pre)
    x_mixed = mixed.to(torch.bfloat16)  # step 12

    if taps is not None:
        taps.update(
            sum_squares=sum_squares, inv_rms=inv_rms, raw=raw, mix=mix, logits=logits, pre=pre, post=post,
            comb_softmax=comb_softmax.reshape(t, hc * hc), comb=comb, mixed=mixed, x_mixed=x_mixed,
        )  # fmt: skip
    return {"x_mixed": x_mixed, "post": post, "comb": comb}
