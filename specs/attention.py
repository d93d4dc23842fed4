"""What the decode attention ops share: the regimes of positions their cases cover, and what they refuse.

contracts/decode_attention.md 0.2 and A.2. A set of starts serves every preset: specs.distributions.positions says how
it is folded into the positions there are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from goldens.numerics.visibility import BLOCK
from specs.distributions import (
    Constant,
    KvTable,
    MatchingScale,
    Normal,
    OneHot,
    PooledNormal,
    RopeAt,
    Rows,
    Uniform,
)
from specs.distributions.attention import DominantRow, Entries, PooledQ8, UnitRows
from specs.distributions.positions import LONG, Starts
from specs.distributions.ties import HalfCodes, Neighbours
from specs.errors import SpecError
from specs.model import Deployment, ModelConfig
from specs.paging import paging
from specs.registry import Case, Masks, Op
from specs.requirements import require_between, require_decode, require_multiple
from specs.tensors import Distribution, TensorSpec

LAST = -1
"""The last legal start: MAX_SEQ_LEN - S."""

SWA_STARTS = (LONG, 127, 31, 0, 1, 128, 255, LAST)
HCA_STARTS = (LONG, 127, 128, 255, 7, 10, 126, LAST)
CSA_STARTS = (LONG, 0, 3, 7, 127, 128, 255, 511)
"""The reference's sets (A.2), filled up to eight with boundaries they leave out."""

WINDOW_STARTS = (126, 127, 128, 129, 0, 1, 2, 254)
"""Around the first full window and its wrap: for S = 2 a step that straddles it comes first."""

LONG_STARTS = (LAST, 8191, 4095, 2051, 2050, 2049, 2048, 2047)
"""The end of the range, and where as many slots of ratio 4 are visible as FLASH selects, give or take one."""

COLD_STARTS = (0, 1, 2, 3, 5, 17, 63, 100)
"""Partial windows, few compressed slots or none."""


def require_step(op: str, config: ModelConfig, deployment: Deployment) -> None:
    """Raise SpecError for what the decode attention kernels cannot do: T tokens of a decode step in tiles of 8, at most
    one cube box of 16 rows; a window of one page."""
    require_decode(op, config, deployment)
    require_multiple(op, "T", deployment.tokens, 8)
    require_between(op, "T", deployment.tokens, 8, 16)
    require_between(op, "WIN", config.sliding_window, 128, 128)
    require_multiple(op, "H", config.num_attention_heads, config.o_groups)


def require_whole_tail(op: str, config: ModelConfig) -> None:
    """Raise SpecError where a ratio-128 list of IDX_TOPK slots cannot hold all of them: the device drops the newest,
    which leaves a hole before the window (contracts/decode_attention.md, appendix D)."""
    slots = config.max_position_embeddings // 128
    if slots > config.index_topk:
        raise SpecError(
            f"{op}: {config.max_position_embeddings} positions close {slots} slots of ratio 128, the list holds "
            f"{config.index_topk}: beyond position {config.index_topk * 128} the newest would be lost"
        )


def kv_tensors(config: ModelConfig, deployment: Deployment, compressed_pages: KvTable) -> tuple[TensorSpec, ...]:
    """The first six parameters of sparse attention: queries, ring, overlay and compressed pool, rows of unit RMS."""
    pages, batch, head_dim = paging(config, deployment), deployment.batch, config.head_dim
    bf16, int32 = torch.bfloat16, torch.int32
    return (
        TensorSpec("q", (deployment.tokens, config.num_attention_heads, head_dim), bf16, UnitRows(), "in"),
        TensorSpec("ori_kv", (pages.ori_block_num, BLOCK, 1, head_dim), bf16, UnitRows(), "in"),
        TensorSpec("ori_block_table", (batch, pages.ori_max_blocks), int32, KvTable(1), "in"),
        TensorSpec("mtp_kv_overlay", (deployment.tokens, head_dim), bf16, UnitRows(), "in"),
        TensorSpec("cmp_kv", (pages.cmp_block_num, BLOCK, 1, head_dim), bf16, UnitRows(), "in"),
        TensorSpec("cmp_block_table", (batch, pages.cmp_max_blocks), int32, compressed_pages, "in"),
    )


def output_tensors(config: ModelConfig, deployment: Deployment, ratio: int, starts: Starts) -> tuple[TensorSpec, ...]:
    """The last parameters of sparse attention: sinks, rotary rows of the tokens, output projection, attn_out."""
    rope = (deployment.tokens, config.qk_rope_head_dim)
    bf16 = torch.bfloat16
    return (
        TensorSpec("attn_sink", (config.num_attention_heads,), torch.float32, Normal(std=2.0), "in"),
        TensorSpec("freqs_cos", rope, bf16, RopeAt("cos", ratio, "token", starts), "in"),
        TensorSpec("freqs_sin", rope, bf16, RopeAt("sin", ratio, "token", starts), "in"),
        *projection_tensors(config),
        TensorSpec("attn_out", (deployment.tokens, config.hidden_size), bf16, None, "out"),
    )


def projection_tensors(config: ModelConfig) -> tuple[TensorSpec, ...]:
    """wo_a, wo_b and its scales: outputs of both projections keep the magnitude of their inputs."""
    groups, rank, width = config.o_groups, config.o_lora_rank, config.o_group_in
    wo_b = (config.hidden_size, groups * rank)
    return (
        TensorSpec("wo_a", (groups, rank, width), torch.bfloat16, PooledNormal(width**-0.5), "in"),
        TensorSpec("wo_b", wo_b, torch.int8, PooledQ8((groups * rank) ** -0.5), "in"),
        TensorSpec("wo_b_scale", (config.hidden_size,), torch.float32, MatchingScale("wo_b"), "in"),
    )


def rope_at(ratio: int, starts: Starts) -> dict[str, Distribution]:
    """The tokens' rotary rows of a layer with that compress ratio."""
    return {"freqs_cos": RopeAt("cos", ratio, "token", starts), "freqs_sin": RopeAt("sin", ratio, "token", starts)}


def seen_blocks(op: Op, visible: Tensor) -> Masks:
    """Validity of a sparse attention whose tokens see the columns of `visible` [T, columns], bool.

    A block of which a token sees nothing adds nothing, and how it is left out is the kernel's affair: its block_max and
    block_sum [T, blocks, H] are undefined.
    """
    tokens = visible.shape[0]
    seen = visible.reshape(tokens, -1, BLOCK).any(dim=2)
    mask = seen.unsqueeze(2).expand(-1, -1, op.config.num_attention_heads)
    return {"attn_out": None, "block_max": mask, "block_sum": mask}


NO_ROTATION: dict[str, Distribution] = {"freqs_cos": Constant(1.0), "freqs_sin": Constant(0.0)}
ALL_SLOTS = 1 << 20
"""As many slots of a list as there is room for."""


def fixture_cases(
    listed: Callable[[Entries], dict[str, Distribution]], tokens: int, *, compressed: bool
) -> tuple[Case, ...]:
    """Cases of every form: extreme sinks, no rotation, codes at ties, and the reference's fixtures (contract A.1), but
    with every row its own and pages shuffled.

    `listed` turns entries into the form's list or bias. `compressed`: whether the form has compressed rows.
    """
    half, window = Uniform(-0.5, 0.5), listed(Entries(ring=(128,), slots=(ALL_SLOTS,)))
    mixed = Case("mixed_topk", listed(Entries(ring=(17,), slots=(ALL_SLOTS,))), tags=("fixture",))
    pool: dict[str, Distribution] = {"cmp_kv": half} if compressed else {}
    return (
        # exp of the sink overflows, or vanishes.
        Case("extreme_sinks", {"attn_sink": Rows(Constant(200.0), (None, Constant(-200.0)))}, tags=("edge", "extreme")),
        Case("no_rotation", NO_ROTATION, tags=("exact",)),
        # A head is the one row that its token sees, and o_r a choice of its numbers: every third code is a tie.
        Case(
            "code_ties",
            {
                **listed(Entries(ring=(1,))),
                **NO_ROTATION,
                "ori_kv": HalfCodes(),
                "attn_sink": Constant(-1e4),
                "wo_a": OneHot(),
            },
            tags=("exact", "rounding"),
        ),
        # All scores are 0: a head is the mean of two rows, and half of its numbers lie between two of BF16.
        Case(
            "bf16_ties",
            {
                **listed(Entries(ring=(2,))),
                **NO_ROTATION,
                "q": Constant(0.0),
                "ori_kv": Neighbours(),
                "attn_sink": Constant(-1e4),
            },
            tags=("exact", "rounding"),
        ),
        Case("short_window", listed(Entries(ring=(17,))), tags=("fixture",)),
        *((mixed,) if compressed else ()),
        Case("overlay_replacement", listed(Entries(ring=(16,), overlay=(True,))), tags=("fixture",)),
        # Token 0 scores one key by 181 at FLASH: its softmax collapses onto it.
        Case(
            "causal_regression",
            {
                **window,
                "q": Rows(half, (Constant(1.0), *(None,) * (tokens - 1))),
                "ori_kv": DominantRow(half, 127, 8.0),
            },
            tags=("fixture",),
        ),
        # The reference's own magnitudes: outputs near 1e-3.
        Case(
            "reference_magnitude",
            {**window, **pool, "q": half, "ori_kv": half, "mtp_kv_overlay": half, "attn_sink": Constant(0.0)},
            tags=("fixture", "magnitude"),
        ),
    )
