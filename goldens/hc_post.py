"""Golden of hc_post: the next hyper-connection streams from sublayer output and old streams.

contracts/hc_gate_experts.md, section 2. Golden and device agree in order, precision and rounding: bit
equality.
"""

import torch
from torch import Tensor

from goldens.checks import expect

STAGES = ("scaled_x", "mixed", "y")


_CACHED = 1 << 17  # elements worked on at a time, for speed alone


def _scaled_x(x: Tensor, post: Tensor) -> Tensor:
    """Step 1: the sublayer output times the gate of each new stream, rounded to FP32. [T, HC, D]"""
    return x.float().unsqueeze(1) * post.unsqueeze(2)


def _add_streams(scaled_x: Tensor, residual: Tensor, comb: Tensor) -> Tensor:
    """Step 2: add old stream 0, 1, 2, ... in this order; product and sum round separately. [T, HC, D]"""
    total = scaled_x.clone()
    product = torch.empty_like(total)
    for stream in range(residual.shape[1]):
        old = residual[:, stream].float().unsqueeze(1)  # [T, 1, D]
        total += torch.mul(old, comb[:, stream].unsqueeze(2), out=product)
    return total


def hc_post(
    x: Tensor, residual: Tensor, post: Tensor, comb: Tensor, *, taps: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """New stream o = post[o] * x + sum over old streams i of comb[i, o] * residual[i], for every token.

    x [T, D] BF16, residual [T, HC, D] BF16, post [T, HC] FP32, comb [T, HC*HC] FP32, row-major [in, out].
    Returns y [T, HC, D] BF16 (RNE). Raises GoldenInputError for a wrong shape or dtype.
    """
    t, hc, d = expect("hc_post: residual", residual, (None, None, None), torch.bfloat16)
    expect("hc_post: x", x, (t, d), torch.bfloat16)
    expect("hc_post: post", post, (t, hc), torch.float32)
    expect("hc_post: comb", comb, (t, hc * hc), torch.float32)

    y = torch.empty_like(residual, memory_format=torch.contiguous_format)
    stages = []
    tokens = max(1, _CACHED // (hc * d))
    blocks = (torch.split(part, tokens) for part in (y, x, residual, post, comb.reshape(t, hc, hc)))
    for y_rows, x_rows, residual_rows, post_rows, comb_rows in zip(*blocks, strict=True):
        scaled_x = _scaled_x(x_rows, post_rows)
        mixed = _add_streams(scaled_x, residual_rows, comb_rows)
        y_rows.copy_(mixed)  # to BF16
        if taps is not None:
            stages.append((scaled_x, mixed))

    if taps is not None:
        scaled_x, mixed = (torch.cat(blocks) for blocks in zip(*stages, strict=True))
        taps.update(scaled_x=scaled_x, mixed=mixed, y=y)
    return {"y": y}
