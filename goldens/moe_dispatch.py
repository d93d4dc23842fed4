"""Golden of moe_dispatch: every active route to the rank of its expert, compact there.

contracts/moe_and_layers.md, section 3. Bit copies and INT32 counts only. EP ranks of N_LOCAL experts each. What a lane
is, and in which order rows travel, cannot be told from the result: compact rows are in the order (source, t, k).
"""

import torch
from torch import Tensor

from goldens.checks import expect
from goldens.errors import GoldenInputError
from goldens.numerics.routes import compact, expect_capacity, lane_loads, meta_of

STAGES = (
    "lane_loads", "overflow", "recv_meta", "recv_count_out", "recv_x_out", "recv_scale_out", "recv_w_out",
    "recv_r_route_out",
)  # fmt: skip


def moe_dispatch(
    indices: Tensor,
    x_norm_i8: Tensor,
    x_norm_scale: Tensor,
    weights: Tensor,
    num_tokens: Tensor,
    *,
    n_local: int,
    recv_max: int,
    taps: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Send the row, scale, weight and key of every active route to its expert's rank.

    indices [EP, T, K] INT32, global expert ids; x_norm_i8 [EP, T, D] INT8 with x_norm_scale [EP, T, 1] FP32; weights
    [EP, T, K] FP32; num_tokens [EP, 1] INT32, the active tokens of each rank, clamped to 0..T. recv_max is RECV_MAX,
    rows per expert: RECV_MAX / EP per source.

    Returns recv_x_out [EP, N_LOCAL, RECV_MAX, D] INT8, recv_scale_out and recv_w_out [EP, N_LOCAL, RECV_MAX] FP32,
    recv_r_route_out [EP, N_LOCAL, RECV_MAX] INT32 (t*K + k at the source), recv_count_out [EP, N_LOCAL, 1] INT32,
    recv_meta [EP, EP, N_LOCAL] INT32 (rank, source, local expert) and overflow [EP, 4] INT32, zeros. Rows beyond the
    count are undefined on the device and 0 here.

    Raises GoldenInputError for a wrong shape or dtype, a recv_max that the EP sources cannot share evenly, or an active
    token's id outside 0..EP*N_LOCAL-1; CapacityError if a source has more than RECV_MAX / EP rows for one expert.
    """
    ep, t, k = expect("moe_dispatch: indices", indices, (None, None, None), torch.int32)
    expect("moe_dispatch: x_norm_i8", x_norm_i8, (ep, t, None), torch.int8)
    expect("moe_dispatch: x_norm_scale", x_norm_scale, (ep, t, 1), torch.float32)
    expect("moe_dispatch: weights", weights, (ep, t, k), torch.float32)
    expect("moe_dispatch: num_tokens", num_tokens, (ep, 1), torch.int32)
    if recv_max % ep:
        raise GoldenInputError(f"moe_dispatch: recv_max is {recv_max}, expected a multiple of the {ep} ranks")

    loads = lane_loads(indices, num_tokens, ep * n_local)
    expect_capacity("moe_dispatch", loads, recv_max // ep)
    routes = compact(indices, num_tokens, ep * n_local)

    def received(values: Tensor) -> Tensor:
        """Values [R, ...] of the routes in their compact rows. [EP, N_LOCAL, RECV_MAX, ...]"""
        rows = torch.zeros(ep * n_local, recv_max, *values.shape[1:], dtype=values.dtype)
        rows[routes.expert, routes.row] = values
        return rows.view(ep, n_local, *rows.shape[1:])

    recv_meta = meta_of(loads)
    outputs = {
        "recv_x_out": received(x_norm_i8[routes.source, routes.token]),
        "recv_scale_out": received(x_norm_scale[routes.source, routes.token, 0]),
        "recv_w_out": received(weights[routes.source, routes.token, routes.key % k]),
        "recv_r_route_out": received(routes.key.to(torch.int32)),
        "recv_count_out": recv_meta.sum(dim=1, dtype=torch.int32).unsqueeze(2),
        "recv_meta": recv_meta,
        "overflow": torch.zeros(ep, 4, dtype=torch.int32),
    }
    if taps is not None:
        taps.update(lane_loads=loads, **{name: outputs[name] for name in STAGES[1:]})
    return outputs
