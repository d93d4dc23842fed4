"""decode_sparse_attn_swa: attention over the ring page and the overlay, and the output projection
(contracts/decode_attention.md, 4)."""

from __future__ import annotations

import torch

from goldens.numerics.visibility import BLOCK
from specs.attention import (
    COLD_STARTS,
    SWA_STARTS,
    WINDOW_STARTS,
    fixture_cases,
    kv_tensors,
    output_tensors,
    require_step,
    rope_at,
    seen_blocks,
)
from specs.distributions import Constant, Integers, KvTable
from specs.distributions.attention import Entries, EntryBias, NamedRows, UnitRows, WindowBias
from specs.distributions.positions import Starts
from specs.model import Deployment, ModelConfig
from specs.registry import Case, Op
from specs.tensors import Distribution, TensorSpec

RATIO = 0
UNUSED = ("cmp_kv", "cmp_block_table", "cmp_sparse_indices")
"""Parameters that nothing reads: they hold NaN and page numbers out of range."""


def build(config: ModelConfig, deployment: Deployment) -> Op:
    """As decode_sparse_attn_csa, with win_bias [T, WIN + 128] FP32 for a list: 0 or -1e20, columns 0 to WIN - 1 for
    the rows of the request's ring page, column WIN + o for overlay row o (flat token o). It alone says what is seen;
    cmp_kv, cmp_block_table and cmp_sparse_indices [T, WIN] are not read.

    Stages, by the names of the kernel's intermediates: o_packed, o_r, o_codes, o_scale and attn_out as in
    decode_sparse_attn_csa.

    T must be 8 or 16, WIN 128.
    """
    name = "decode_sparse_attn_swa"
    require_step(name, config, deployment)
    tokens, win = deployment.tokens, config.sliding_window
    stale = Integers(-(2**31), 2**31 - 1)
    parameters = kv_tensors(config, deployment, KvTable(1))
    ring, (pool, table) = parameters[:4], parameters[4:]
    return Op(
        name=name,
        config=config,
        deployment=deployment,
        signature=(
            *ring,
            pool.replace(init=Constant(torch.nan)),
            table.replace(init=stale),
            TensorSpec("cmp_sparse_indices", (tokens, win), torch.int32, stale, "in"),
            TensorSpec("win_bias", (tokens, win + BLOCK), torch.float32, WindowBias(SWA_STARTS), "in"),
            *output_tensors(config, deployment, RATIO, SWA_STARTS),
        ),
        cases=_cases(tokens),
        parameters={"win": win, "softmax_scale": config.softmax_scale},
        validity=lambda op, inputs: seen_blocks(op, torch.as_tensor(inputs["win_bias"]) == 0),
    )


def _at(starts: Starts) -> dict[str, Distribution]:
    return {"win_bias": WindowBias(starts), **rope_at(RATIO, starts)}


def _seen(entries: Entries) -> dict[str, Distribution]:
    return {"win_bias": EntryBias(entries)}


def _cases(tokens: int) -> tuple[Case, ...]:
    garbage = NamedRows(UnitRows(), UnitRows(gain=1e4), "ring", "ori_block_table", "win_bias")
    # One valid entry, the block border, none at all, one row of either block.
    counts = Entries(
        ring=(1, 127, 128, 128, 0, 0, 17, 1), overlay=(False, False, False, True, False, True, False, True)
    )
    return (
        Case("default", tags=("default", "real")),
        Case("window_wrap", _at(WINDOW_STARTS), tags=("edge",)),
        Case("cold", _at(COLD_STARTS), tags=("edge",)),
        Case("counts", _seen(counts), tags=("edge",)),
        Case("late_blocks", _seen(Entries(overlay=(True,))), tags=("edge",)),
        # Ring rows that no token sees are large; the whole page is read.
        Case("unnamed_rows", {"ori_kv": garbage}, tags=("edge",)),
        *fixture_cases(_seen, tokens, compressed=False),
    )
