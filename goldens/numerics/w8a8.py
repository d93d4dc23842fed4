"""The W8A8 SwiGLU expert up to its down projection: steps 1 to 6 of contracts/hc_gate_experts.md 4.3.

Both experts compute them, on the rows of one expert. All weights are stored [out, in].
"""

from typing import NamedTuple

from torch import Tensor

from goldens.numerics.elementary import sigmoid
from goldens.numerics.matmul import int8_matmul
from goldens.numerics.quant import quantize_rows


class Hidden(NamedTuple):
    """What a row of an expert goes through before the down projection, in order. R rows, I channels."""

    gate_acc: Tensor  # [R, I] INT32
    up_acc: Tensor  # [R, I] INT32
    gate: Tensor  # [R, I] FP32, dequantised, before the clamp
    up: Tensor  # [R, I] FP32, dequantised, before the clamp
    h: Tensor  # [R, I] FP32
    h_i8: Tensor  # [R, I] INT8
    h_scale: Tensor  # [R, 1] FP32


def dequantize(acc: Tensor, row_scale: Tensor, channel_scale: Tensor) -> Tensor:
    """(FP32(acc) * row) * channel, in this order: [R, C] INT32, [R, 1] and [C] FP32 to [R, C] FP32."""
    return (acc.float() * row_scale) * channel_scale


def clamp_swiglu(gate: Tensor, up: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """Step 3: the gate from above only, up from both sides. A limit of 0 turns the clamp off."""
    if limit <= 0.0:
        return gate, up
    return gate.clamp(max=limit), up.clamp(min=-limit, max=limit)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Step 4: (gate * sigmoid(gate)) * up, each operation rounded."""
    return (gate * sigmoid(gate)) * up


def hidden_rows(
    x_i8: Tensor, x_scale: Tensor, w1: Tensor, w1_scale: Tensor, w3: Tensor, w3_scale: Tensor, limit: float
) -> Hidden:
    """Rows x_i8 [R, D] INT8 with x_scale [R, 1], through w1 and w3 [I, D] INT8 with scales [I]."""
    gate_acc = int8_matmul(x_i8, w1)  # step 1
    up_acc = int8_matmul(x_i8, w3)
    gate = dequantize(gate_acc, x_scale, w1_scale)  # step 2
    up = dequantize(up_acc, x_scale, w3_scale)
    h = swiglu(*clamp_swiglu(gate, up, limit))
    h_i8, h_scale = quantize_rows(h)  # step 5: over all I values of the row
    return Hidden(gate_acc, up_acc, gate, up, h, h_i8, h_scale)
