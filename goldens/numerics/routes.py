"""Routes of the distributed MoE: who sends what where, and how it lies compact on arrival.

contracts/moe_and_layers.md, sections 1.4, 3.3 and 8. A route is one choice k of one active token t of one source rank;
its key is t*K + k. Everything here follows from the ids alone, whatever the lanes that rows travel through.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from goldens.checks import expect_range
from goldens.errors import CapacityError


class Routes(NamedTuple):
    """All R active routes, by expert and within an expert by (source, t, k): the order of the compact rows."""

    source: Tensor  # [R] INT64: rank of the token
    token: Tensor  # [R] INT64: t
    key: Tensor  # [R] INT64: t*K + k
    expert: Tensor  # [R] INT64: global expert id
    row: Tensor  # [R] INT64: row in the expert's compact buffer


def active_tokens(num_tokens: Tensor, t: int) -> Tensor:
    """Active tokens of each rank, clamped to 0..T. [EP] INT64"""
    return num_tokens.reshape(-1).long().clamp(0, t)


def active_mask(num_tokens: Tensor, t: int) -> Tensor:
    """Which token rows are active. [EP, T] bool"""
    return torch.arange(t) < active_tokens(num_tokens, t).unsqueeze(1)


def lane_loads(indices: Tensor, num_tokens: Tensor, n: int) -> Tensor:
    """Rows that each source sends to each of the N experts: indices [EP, T, K], num_tokens [EP, 1]. [EP, N] INT64

    Raises GoldenInputError if an active token names an expert outside 0..N-1.
    """
    ep, t, _ = indices.shape
    active = active_mask(num_tokens, t)
    expect_range("moe: indices", indices.masked_fill(~active.unsqueeze(2), 0), 0, n - 1)
    lane = indices.long() + n * torch.arange(ep)[:, None, None]
    return torch.bincount(lane[active].reshape(-1), minlength=ep * n).reshape(ep, n)


def expect_capacity(op: str, loads: Tensor, depth: int) -> None:
    """No source sends more than `depth` rows to one expert: loads [EP, N].

    Raises CapacityError for the first lane that overflows: the lowest source, of its lanes the lowest expert.
    """
    over = (loads > depth).nonzero()
    if over.numel():
        source, expert = over[0].tolist()
        raise CapacityError(
            op=op,
            source=source,
            destination=expert // (loads.shape[1] // loads.shape[0]),
            expert=expert,
            load=int(loads[source, expert]),
            depth=depth,
        )


def compact(indices: Tensor, num_tokens: Tensor, n: int) -> Routes:
    """The routes of all active tokens: indices [EP, T, K] with ids 0..N-1, num_tokens [EP, 1]."""
    ep, t, k = indices.shape
    source, token, choice = (
        active_mask(num_tokens, t).unsqueeze(2).expand(ep, t, k).nonzero().unbind(1)
    )  # by (source, t, k)
    expert = indices[source, token, choice].long()
    order = expert.argsort(stable=True)
    counts = torch.bincount(expert, minlength=n)
    first = counts.cumsum(0) - counts
    sorted_expert = expert[order]
    row = torch.arange(len(order)) - first[sorted_expert]
    return Routes(source[order], token[order], (token * k + choice)[order], sorted_expert, row)


def meta_of(loads: Tensor) -> Tensor:
    """The count windows of all ranks: [rank, source, local expert] from loads [EP, N]. [EP, EP, N/EP] INT32"""
    ep, n = loads.shape
    return loads.reshape(ep, ep, n // ep).transpose(0, 1).to(torch.int32).contiguous()
