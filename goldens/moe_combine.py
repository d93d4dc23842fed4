"""Golden of moe_combine: expert rows back to the tokens they came from, and the sum over a token's experts.

contracts/moe_and_layers.md, section 4. FP32 sum in a fixed order, shared expert first, then k ascending, one rounding
per addition and one to BF16: bit equality.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from goldens.checks import continued, expect, expect_range
from goldens.errors import GoldenInputError
from goldens.numerics.routes import active_mask, active_tokens

STAGES = ("routed_y_buf", "summed", "ffn_out")


def _returned(recv_y: Tensor, keys: Tensor, recv_meta: Tensor, active: Tensor, t: int, topk: int) -> Tensor:
    """Steps 1 and 2: every compact row at its key on its source rank. [EP, T*K, D]

    A compact row belongs to the source whose share of the expert's rows it falls into; shares lie in rank order.
    """
    ep, _, recv_max, d = recv_y.shape
    shares_end = recv_meta.cumsum(dim=1)  # [rank, source, expert]
    rank, expert, row = (torch.arange(recv_max) < shares_end[:, -1].unsqueeze(2)).nonzero().unbind(1)
    source = (row.unsqueeze(1) >= shares_end[rank, :, expert]).sum(dim=1)
    key = keys[rank, expert, row].long()
    _expect_each_once(source, key, rank, expert, row, active * topk, t * topk)
    buffer = torch.zeros(ep, t * topk, d, dtype=recv_y.dtype)
    buffer[source, key] = recv_y[rank, expert, row]
    return buffer


def _expect_each_once(
    source: Tensor, key: Tensor, rank: Tensor, expert: Tensor, row: Tensor, routes: Tensor, rows: int
) -> None:
    """Every source gets its keys 0..routes-1 back, each once."""
    outside = ((key < 0) | (key >= routes[source])).nonzero()
    if outside.numel():
        at = int(outside[0])
        raise GoldenInputError(
            f"moe_combine: recv_r_route_out[{int(rank[at])}, {int(expert[at])}, {int(row[at])}] is {int(key[at])}, "
            f"expected 0..{int(routes[source[at]]) - 1} for source {int(source[at])}"
        )
    times = torch.bincount(source * rows + key, minlength=len(routes) * rows).reshape(-1, rows)
    wrong = (times != (torch.arange(rows) < routes.unsqueeze(1))).nonzero()
    if wrong.numel():
        origin, missing = wrong[0].tolist()
        raise GoldenInputError(
            f"moe_combine: route {missing} of source {origin} is named by {int(times[origin, missing])} rows of "
            f"recv_r_route_out, expected 1"
        )


def _summed(sh: Tensor, routed_y_buf: Tensor, topk: int) -> Tensor:
    """Step 4 before its last rounding: shared first, then k ascending. [EP, T, D] FP32"""
    total = sh.float()
    for choice in routed_y_buf.view(len(sh), -1, topk, sh.shape[2]).unbind(2):
        total += choice
    return total


def moe_combine(
    recv_y: Tensor,
    recv_r_route_out: Tensor,
    sh: Tensor,
    recv_meta: Tensor,
    num_tokens: Tensor,
    *,
    topk: int,
    taps: dict[str, Tensor] | None = None,
    given: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return each weighted expert row to its route, and add a token's K rows to its shared expert output.

    recv_y [EP, N_LOCAL, RECV_MAX, D] BF16, compact rows, weighted already; recv_r_route_out [EP, N_LOCAL, RECV_MAX]
    INT32, their keys t*K + k; sh [EP, T, D] BF16; recv_meta [EP, EP, N_LOCAL] INT32, rows by rank, source and local
    expert; num_tokens [EP, 1] INT32, clamped to 0..T. Rows from the count on are not read.

    Returns ffn_out [EP, T, D] BF16 (RNE; inactive tokens keep the bits of sh) and routed_y_buf [EP, T*K, D] BF16, which
    in the rows of inactive tokens is undefined on the device and 0 here.

    `given` may hold routed_y_buf of a device: the sum is then computed from it.

    Raises GoldenInputError for a wrong shape or dtype, a count outside 0..RECV_MAX/EP, or keys that do not name every
    active route of every source exactly once.
    """
    ep, n_local, recv_max, d = expect("moe_combine: recv_y", recv_y, (None, None, None, None), torch.bfloat16)
    expect("moe_combine: recv_r_route_out", recv_r_route_out, (ep, n_local, recv_max), torch.int32)
    _, t, _ = expect("moe_combine: sh", sh, (ep, None, d), torch.bfloat16)
    expect("moe_combine: recv_meta", recv_meta, (ep, ep, n_local), torch.int32)
    expect("moe_combine: num_tokens", num_tokens, (ep, 1), torch.int32)
    expect_range("moe_combine: recv_meta", recv_meta, 0, recv_max // ep)

    returned = _returned(recv_y, recv_r_route_out, recv_meta, active_tokens(num_tokens, t), t, topk)
    routed_y_buf = continued(given, "moe_combine", "routed_y_buf", returned)
    summed = _summed(sh, routed_y_buf, topk)
    ffn_out = torch.where(active_mask(num_tokens, t).unsqueeze(2), summed.to(torch.bfloat16), sh)  # steps 4 and 5

    if taps is not None:
        taps.update(routed_y_buf=routed_y_buf, summed=summed, ffn_out=ffn_out)
    return {"ffn_out": ffn_out, "routed_y_buf": routed_y_buf}
