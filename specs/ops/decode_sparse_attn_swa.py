"""decode_sparse_attn_swa: attention over the ring page and the overlay, and the output projection
(contracts/decode_attention.md, 4)."""

from __future__ import annotations

import torch

from goldens.numerics.visibility import BLOCK
from specs.attention import (
    COLD_STARTS,
    NO_ROTATION,
    SWA_STARTS,
    WINDOW_STARTS,
    kv_tensors,
    output_tensors,
    require_step,
    rope_at,
)
from specs.distributions import Constant, Integers, Rows, Uniform
from specs.distributions.attention import DominantRow, Entries, EntryBias, NamedRows, PageTable, UnitRows, WindowBias
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
    parameters = kv_tensors(config, deployment, PageTable(0))
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
    )


def _at(starts: tuple[int, ...]) -> dict[str, Distribution]:
    return {"win_bias": WindowBias(starts), **rope_at(RATIO, starts)}


def _seen(entries: Entries) -> dict[str, Distribution]:
    return {"win_bias": EntryBias(entries)}


def _cases(tokens: int) -> tuple[Case, ...]:
    garbage = NamedRows(UnitRows(), UnitRows(gain=1e4), "ring", "ori_block_table", "win_bias")
    first_token = (None,) * (tokens - 1)
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
        # exp of the sink overflows, or vanishes.
        Case("extreme_sinks", {"attn_sink": Rows(Constant(200.0), (None, Constant(-200.0)))}, tags=("edge", "extreme")),
        Case("no_rotation", NO_ROTATION, tags=("exact",)),
        # The reference's fixtures (A.1), but every row its own and pages shuffled.
        Case("short_window", _seen(Entries(ring=(17,))), tags=("fixture",)),
        Case("overlay_replacement", _seen(Entries(ring=(16,), overlay=(True,))), tags=("fixture",)),
        # Token 0 scores one key by 181 at FLASH: its softmax collapses onto it.
        Case(
            "causal_regression",
            {
                **_seen(Entries(ring=(128,))),
                "q": Rows(Uniform(-0.5, 0.5), (Constant(1.0), *first_token)),
                "ori_kv": DominantRow(Uniform(-0.5, 0.5), 127, 8.0),
            },
            tags=("fixture",),
        ),
        # The reference's own magnitudes: outputs near 2e-3.
        Case(
            "reference_magnitude",
            {
                **_seen(Entries(ring=(128,))),
                "q": Uniform(-0.5, 0.5),
                "ori_kv": Uniform(-0.5, 0.5),
                "mtp_kv_overlay": Uniform(-0.5, 0.5),
                "attn_sink": Constant(0.0),
            },
            tags=("fixture", "magnitude"),
        ),
    )
