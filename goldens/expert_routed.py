"""Golden of expert_routed: the local routed experts of one rank on the rows that dispatch received (W8A8).

contracts/hc_gate_experts.md, section 5. Steps 1 to 6 are those of expert_shared with each expert's own
weights; step 7 folds in the routing weight. E local experts, RECV_MAX row slots each, of which the first
`count` are valid.
"""

import torch
from torch import Tensor

from goldens.checks import expect, expect_range
from goldens.numerics.matmul import int8_matmul
from goldens.numerics.w8a8 import dequantize, hidden_rows

STAGES = ("gate_acc", "up_acc", "gate", "up", "h", "h_i8", "h_scale", "y_acc", "recv_y")


def _empty_stages(e: int, recv_max: int, d: int, i: int) -> dict[str, Tensor]:
    """Zero-filled stages, slot by slot like recv_y."""

    def slots(width: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(e, recv_max, width, dtype=dtype)

    return {
        "gate_acc": slots(i, torch.int32),
        "up_acc": slots(i, torch.int32),
        "gate": slots(i, torch.float32),
        "up": slots(i, torch.float32),
        "h": slots(i, torch.float32),
        "h_i8": slots(i, torch.int8),
        "h_scale": slots(1, torch.float32),
        "y_acc": slots(d, torch.int32),
    }


def expert_routed(
    recv_x: Tensor,
    recv_scale_dq: Tensor,
    recv_weights: Tensor,
    recv_expert_count: Tensor,
    routed_w1: Tensor,
    routed_w1_scale: Tensor,
    routed_w3: Tensor,
    routed_w3_scale: Tensor,
    routed_w2: Tensor,
    routed_w2_scale: Tensor,
    *,
    swiglu_limit: float,
    taps: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Each expert's SwiGLU network on its valid rows, times the routing weight of the row.

    recv_x [E, RECV_MAX, D] INT8 with recv_scale_dq and recv_weights [E, RECV_MAX] FP32; recv_expert_count [E,
    1] INT32; routed_w1 and routed_w3 [E, I, D] INT8 with scales [E, I] FP32; routed_w2 [E, D, I] INT8 with
    scale [E, D] FP32. Weights are stored [out, in]. swiglu_limit 0 turns the clamp off. Returns recv_y [E,
    RECV_MAX, D] BF16 (RNE). Rows from the count on are 0, and so are they in the taps (the same slots);
    nothing in those slots of the inputs is read. Raises GoldenInputError for a wrong shape or dtype, or a
    count outside 0..RECV_MAX.
    """
    e, recv_max, d = expect("expert_routed: recv_x", recv_x, (None, None, None), torch.int8)
    expect("expert_routed: recv_scale_dq", recv_scale_dq, (e, recv_max), torch.float32)
    expect("expert_routed: recv_weights", recv_weights, (e, recv_max), torch.float32)
    expect("expert_routed: recv_expert_count", recv_expert_count, (e, 1), torch.int32)
    _, i, _ = expect("expert_routed: routed_w1", routed_w1, (e, None, d), torch.int8)
    expect("expert_routed: routed_w1_scale", routed_w1_scale, (e, i), torch.float32)
    expect("expert_routed: routed_w3", routed_w3, (e, i, d), torch.int8)
    expect("expert_routed: routed_w3_scale", routed_w3_scale, (e, i), torch.float32)
    expect("expert_routed: routed_w2", routed_w2, (e, d, i), torch.int8)
    expect("expert_routed: routed_w2_scale", routed_w2_scale, (e, d), torch.float32)
    expect_range("expert_routed: recv_expert_count", recv_expert_count, 0, recv_max)

    recv_y = torch.zeros(e, recv_max, d, dtype=torch.bfloat16)
    stages = {} if taps is None else _empty_stages(e, recv_max, d, i)
    for expert, count in enumerate(recv_expert_count.flatten().tolist()):
        if count == 0:
            continue
        rows = slice(0, count)
        hidden = hidden_rows(
            recv_x[expert, rows],
            recv_scale_dq[expert, rows].unsqueeze(1),
            routed_w1[expert],
            routed_w1_scale[expert],
            routed_w3[expert],
            routed_w3_scale[expert],
            swiglu_limit,
        )
        y_acc = int8_matmul(hidden.h_i8, routed_w2[expert])
        # Step 7: h scale times routing weight is one rounded factor, formed first; the weight never reaches
        # the codes.
        row_scale = hidden.h_scale * recv_weights[expert, rows].unsqueeze(1)
        recv_y[expert, rows] = dequantize(y_acc, row_scale, routed_w2_scale[expert]).to(torch.bfloat16)
        for name, stage in stages.items():
            stage[expert, rows] = y_acc if name == "y_acc" else getattr(hidden, name)

    if taps is not None:
        taps.update(stages, recv_y=recv_y)
    return {"recv_y": recv_y}
