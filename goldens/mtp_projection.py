"""Golden of mtp_projection: input projection of the multi-token-prediction layer, two W8A8 branches added.

contracts/dense.md, section 9; the step numbers are those of 9.3. Branch e is the next token's embedding, branch
h the previous hidden state.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from goldens.checks import expect
from goldens.numerics.elementary import inverse_sqrt
from goldens.numerics.matmul import int8_matmul
from goldens.numerics.quant import quantize_rows
from goldens.numerics.reduce import chunked_sum
from goldens.numerics.w8a8 import dequantize

_BRANCH = ("sum_squares", "inv_rms", "norm", "i8", "scale", "acc", "branch")
STAGES = (
    *(f"e_{stage}" for stage in _BRANCH), *(f"h_{stage}" for stage in _BRANCH), "codes", "hidden_states_out",
)  # fmt: skip

_CHUNK = 128  # columns of one row sum


class _Branch(NamedTuple):
    """What a branch goes through, in order. B requests of S tokens."""

    sum_squares: Tensor  # [B, S, 1] FP32
    inv_rms: Tensor  # [B, S, 1] FP32
    norm: Tensor  # [B, S, D] FP32, times the norm and smoothing weights
    i8: Tensor  # [B, S, D] INT8
    scale: Tensor  # [B, S, 1] FP32
    acc: Tensor  # [B, S, D] INT32
    branch: Tensor  # [B, S, D] FP32


def _inverse_rms(sum_squares: Tensor, d: int, rms_eps: float) -> Tensor:
    """Steps 1, 2: 1 / sqrt(ss * (1/D) + eps), four roundings, 1/D rounded to FP32 first (2.2)."""
    return inverse_sqrt(sum_squares * (1.0 / d) + rms_eps)


def _norm(x: Tensor, inv_rms: Tensor, norm_w: Tensor, smooth: Tensor, bf16_norm: bool) -> Tensor:
    """Steps 3, 4: ((x * inv) * norm_w) * smooth, three roundings; July rounds to BF16 on top."""
    norm = (x * inv_rms).mul_(norm_w).mul_(smooth)
    return norm.bfloat16().float() if bf16_norm else norm


def _project(
    x: Tensor, norm_w: Tensor, smooth: Tensor, weight: Tensor, weight_scale: Tensor, rms_eps: float, bf16_norm: bool
) -> _Branch:
    """Steps 1 to 7 for one branch."""
    wide = x.float()
    sum_squares = chunked_sum(wide * wide, _CHUNK)
    inv_rms = _inverse_rms(sum_squares, x.shape[-1], rms_eps)
    norm = _norm(wide, inv_rms, norm_w, smooth, bf16_norm)
    codes, scale = quantize_rows(norm)  # step 5
    acc = int8_matmul(codes.flatten(0, 1), weight).view(codes.shape)  # step 6
    return _Branch(sum_squares, inv_rms, norm, codes, scale, acc, dequantize(acc, scale, weight_scale))


def mtp_projection(
    hidden_states: Tensor,
    prev_hidden_states: Tensor,
    enorm_w: Tensor,
    hnorm_w: Tensor,
    e_proj_w: Tensor,
    e_proj_w_scale: Tensor,
    e_proj_smooth: Tensor,
    h_proj_w: Tensor,
    h_proj_w_scale: Tensor,
    h_proj_smooth: Tensor,
    *,
    rms_eps: float,
    bf16_norm: bool = False,
    taps: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """e_proj(enorm(hidden_states)) + h_proj(hnorm(prev_hidden_states)) for every token.

    hidden_states, prev_hidden_states [B, S, D] BF16; of each branch the norm weight [D] FP32, the projection
    [D, D] INT8, stored [out, in], with its scale [D] FP32 per output channel, and the smoothing [D] FP32 per
    input channel. Returns hidden_states_out [B, S, D] BF16 (RNE). The INT8 tokens are made from FP32;
    `bf16_norm` rounds to BF16 before, as the reference did until #708. The stage `codes` [B, S, 2*D] holds the
    tokens of both branches. Raises GoldenInputError for a wrong shape or dtype.
    """
    b, s, d = expect("mtp_projection: hidden_states", hidden_states, (None, None, None), torch.bfloat16)
    expect("mtp_projection: prev_hidden_states", prev_hidden_states, (b, s, d), torch.bfloat16)
    expect("mtp_projection: enorm_w", enorm_w, (d,), torch.float32)
    expect("mtp_projection: hnorm_w", hnorm_w, (d,), torch.float32)
    expect("mtp_projection: e_proj_w", e_proj_w, (d, d), torch.int8)
    expect("mtp_projection: e_proj_w_scale", e_proj_w_scale, (d,), torch.float32)
    expect("mtp_projection: e_proj_smooth", e_proj_smooth, (d,), torch.float32)
    expect("mtp_projection: h_proj_w", h_proj_w, (d, d), torch.int8)
    expect("mtp_projection: h_proj_w_scale", h_proj_w_scale, (d,), torch.float32)
    expect("mtp_projection: h_proj_smooth", h_proj_smooth, (d,), torch.float32)

    e = _project(hidden_states, enorm_w, e_proj_smooth, e_proj_w, e_proj_w_scale, rms_eps, bf16_norm)
    h = _project(prev_hidden_states, hnorm_w, h_proj_smooth, h_proj_w, h_proj_w_scale, rms_eps, bf16_norm)
    hidden_states_out = (e.branch + h.branch).to(torch.bfloat16)  # step 8

    if taps is not None:
        for name, branch in (("e", e), ("h", h)):
            taps.update({f"{name}_{stage}": value for stage, value in branch._asdict().items()})
        taps.update(codes=torch.cat([e.i8, h.i8], dim=2), hidden_states_out=hidden_states_out)
    return {"hidden_states_out": hidden_states_out}
