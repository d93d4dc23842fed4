"""Pages and requests in another order, for properties of ops over paged memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from property_testing import Trial
from torch import Tensor

PAGE = 128
"""Rows of a page of every KV pool."""


def relabelled(pages: Tensor, order: Tensor) -> Tensor:
    """Page numbers, or -1, where page order[i] becomes page i."""
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order))
    return torch.where(pages < 0, pages, inverse[pages.clamp(min=0).long()].to(pages.dtype))


def moved(slots: Tensor, order: Tensor, page: int) -> Tensor:
    """Flat rows of a pool with pages of `page` rows, or -1, where page order[i] becomes page i."""
    pages = relabelled(torch.where(slots < 0, -1, slots // page), order)
    return torch.where(slots < 0, slots, pages * page + slots % page)


def pool_moved(trial: Trial, order: Tensor, pool: str, table: str | None, slots: str) -> dict[str, Any]:
    """A pool whose page order[i] becomes page i, with its block table (None: it has none) and slot mapping."""
    changed = {
        pool: trial[pool][order].contiguous(),
        slots: moved(trial[slots], order, trial[pool].shape[1]),
    }
    return changed if table is None else changed | {table: relabelled(trial[table], order)}


def requests_in_order(trial: Trial, names: Iterable[str], order: Tensor) -> dict[str, Tensor]:
    """Inputs `names`, whose first axis counts requests, or tokens request by request, in another order of requests."""
    seq = trial.op.deployment.seq
    tokens = (order.unsqueeze(1) * seq + torch.arange(seq)).flatten()
    return {name: trial[name][order if len(trial[name]) == len(order) else tokens].contiguous() for name in names}
