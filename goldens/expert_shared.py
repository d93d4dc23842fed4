"""Golden of expert_shared: the shared expert's SwiGLU network on INT8 tokens and weights (W8A8).

contracts/hc_gate_experts.md, section 4; the step numbers are those of 4.3. Integer sums are exact, so the
only roundings are those of the dequantisation, the activation, the row quantiser and the BF16 output.
"""

import torch
from torch import Tensor

from goldens.checks import expect
from goldens.numerics.matmul import int8_matmul
from goldens.numerics.w8a8 import dequantize, hidden_rows

STAGES = ("gate_acc", "up_acc", "gate", "up", "h", "h_i8", "h_scale", "y_acc", "sh")


def expert_shared(
    x_local_i8: Tensor,
    x_local_scale_dq: Tensor,
    shared_w1: Tensor,
    shared_w1_scale: Tensor,
    shared_w3: Tensor,
    shared_w3_scale: Tensor,
    shared_w2: Tensor,
    shared_w2_scale: Tensor,
    *,
    swiglu_limit: float,
    taps: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """silu(x w1^T) * (x w3^T), quantised per row, times w2^T: for every token.

    x_local_i8 [T, D] INT8 with x_local_scale_dq [T, 1] FP32; shared_w1 and shared_w3 [I, D] INT8 with scales
    [I] FP32; shared_w2 [D, I] INT8 with scale [D] FP32. Weights are stored [out, in]. swiglu_limit 0 turns
    the clamp off. Returns sh [T, D] BF16 (RNE), not weighted. A row with scale 0 gives exactly 0, whatever
    its codes. Raises GoldenInputError for a wrong shape or dtype.
    """
    t, d = expect("expert_shared: x_local_i8", x_local_i8, (None, None), torch.int8)
    expect("expert_shared: x_local_scale_dq", x_local_scale_dq, (t, 1), torch.float32)
    i, _ = expect("expert_shared: shared_w1", shared_w1, (None, d), torch.int8)
    expect("expert_shared: shared_w1_scale", shared_w1_scale, (i,), torch.float32)
    expect("expert_shared: shared_w3", shared_w3, (i, d), torch.int8)
    expect("expert_shared: shared_w3_scale", shared_w3_scale, (i,), torch.float32)
    expect("expert_shared: shared_w2", shared_w2, (d, i), torch.int8)
    expect("expert_shared: shared_w2_scale", shared_w2_scale, (d,), torch.float32)

    hidden = hidden_rows(  # steps 1 to 5
        x_local_i8, x_local_scale_dq, shared_w1, shared_w1_scale, shared_w3, shared_w3_scale, swiglu_limit
    )
    y_acc = int8_matmul(hidden.h_i8, shared_w2)  # step 6
    sh = dequantize(y_acc, hidden.h_scale, shared_w2_scale).to(torch.bfloat16)  # step 7

    if taps is not None:
        taps.update(hidden._asdict(), y_acc=y_acc, sh=sh)
    return {"sh": sh}
