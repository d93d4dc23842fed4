"""decode_sparse_attn_csa: attention over a gathered list of KV rows, and the output projection
(contracts/decode_attention.md, 2)."""

from __future__ import annotations

import torch

from goldens.numerics.visibility import BLOCK, csa_columns
from specs.attention import (
    COLD_STARTS,
    CSA_STARTS,
    LONG_STARTS,
    NO_ROTATION,
    WINDOW_STARTS,
    kv_tensors,
    output_tensors,
    require_step,
    rope_at,
)
from specs.distributions import Constant, Rows, Uniform
from specs.distributions.attention import (
    BlockMask,
    CsaList,
    DominantRow,
    Entries,
    EntryList,
    NamedRows,
    PageTable,
    UnitRows,
)
from specs.model import Deployment, ModelConfig
from specs.paging import paging
from specs.registry import Case, Op
from specs.tensors import Distribution, TensorSpec

RATIO = 4
ALL = 1 << 20
LIST, MASK = "cmp_sparse_indices", "valid_block_mask"


def build(config: ModelConfig, deployment: Deployment) -> Op:
    """q [T, H, HEAD_DIM], ring and compressed pools [pages, 128, 1, HEAD_DIM] with block tables [B, pages] INT32, the
    overlay [T, HEAD_DIM] BF16, raw indices [T, columns] and their block mask [T, columns / 128] INT32, a sink per head
    and the output projection -> attn_out [T, D] BF16.

    `columns` is WIN + IDX_TOPK in whole blocks of 128, at least two: 640 at FLASH, 256 at TINY (of which 192 are used).

    Stages, by the names of the kernel's intermediates: bias [T, columns] FP32 (0 or -1e20), o_packed [G*T, O_GROUP_IN]
    BF16 (row g*T + t), o_r [T, G*O_LORA] FP32, o_codes [T, G*O_LORA] INT8, o_scale [T, G] FP32 (the dequantisation
    scale 1/q), attn_out [T, D] BF16.

    T must be 8 or 16, WIN 128.
    """
    name = "decode_sparse_attn_csa"
    require_step(name, config, deployment)
    tokens = deployment.tokens
    columns = csa_columns(config.sliding_window, config.index_topk)
    pages = paging(config, deployment).cmp_block_num
    int32 = torch.int32
    return Op(
        name=name,
        config=config,
        deployment=deployment,
        signature=(
            *kv_tensors(config, deployment, _pages(pages, CSA_STARTS)),
            TensorSpec(LIST, (tokens, columns), int32, CsaList(CSA_STARTS), "in"),
            TensorSpec(MASK, (tokens, columns // BLOCK), int32, BlockMask(LIST), "in"),
            *output_tensors(config, deployment, RATIO, CSA_STARTS),
        ),
        cases=_cases(pages, tokens),
        parameters={"win": config.sliding_window, "softmax_scale": config.softmax_scale},
    )


def _pages(pages: int, starts: tuple[int, ...]) -> PageTable:
    """The compressed pool's table at these starts: logical pages not yet reached hold -1."""
    return PageTable(pages, starts, RATIO)


def _at(pages: int, starts: tuple[int, ...]) -> dict[str, Distribution]:
    return {
        LIST: CsaList(starts),
        "cmp_block_table": _pages(pages, starts),
        **rope_at(RATIO, starts),
    }


def _listed(pages: int, entries: Entries) -> dict[str, Distribution]:
    return {LIST: EntryList("csa", entries), "cmp_block_table": PageTable(pages)}


def _cases(pages: int, tokens: int) -> tuple[Case, ...]:
    window = Entries(ring=(128,), slots=(ALL,))
    poisoned = NamedRows(UnitRows(), Constant(torch.nan), "compressed", "cmp_block_table", LIST)
    garbage = NamedRows(UnitRows(), UnitRows(gain=1e4), "ring", "ori_block_table", LIST)
    first_token = (None,) * (tokens - 1)
    return (
        Case("default", tags=("default", "real")),
        Case("window_wrap", _at(pages, WINDOW_STARTS), tags=("edge",)),
        Case("long", _at(pages, LONG_STARTS), tags=("real",)),
        Case("cold", _at(pages, COLD_STARTS), tags=("edge",)),
        # One valid entry, block borders, none at all, none but compressed, one ring and one overlay row.
        Case(
            "counts",
            _listed(
                pages,
                Entries(
                    ring=(1, 127, 128, 128, 0, 0, 17, 1),
                    overlay=(False, False, False, False, False, True, False, True),
                    slots=(0, 0, 0, 1, 0, 0, ALL, 5),
                ),
            ),
            tags=("edge",),
        ),
        Case("late_blocks", _listed(pages, Entries(slots=(1, 5, ALL))), tags=("edge",)),
        # The mask of a block without an entry may be set: nothing changes.
        Case("mask_all_set", _at(pages, COLD_STARTS) | {MASK: BlockMask(LIST, empty=1)}, tags=("edge",)),
        # Rows that no list names hold NaN (compressed) or are large (ring: its row 0 stands in for invalid lanes).
        Case("unnamed_rows", {"cmp_kv": poisoned, "ori_kv": garbage}, tags=("edge",)),
        # exp of the sink overflows, or vanishes.
        Case("extreme_sinks", {"attn_sink": Rows(Constant(200.0), (None, Constant(-200.0)))}, tags=("edge", "extreme")),
        Case("no_rotation", NO_ROTATION, tags=("exact",)),
        # The reference's fixtures (A.1), but every row its own and pages shuffled.
        Case("short_window", _listed(pages, Entries(ring=(17,))), tags=("fixture",)),
        Case("mixed_topk", _listed(pages, Entries(ring=(17,), slots=(ALL,))), tags=("fixture",)),
        Case("overlay_replacement", _listed(pages, Entries(ring=(16,), overlay=(True,))), tags=("fixture",)),
        # Token 0 scores one key by 181 at FLASH: its softmax collapses onto it.
        Case(
            "causal_regression",
            {
                **_listed(pages, window),
                "q": Rows(Uniform(-0.5, 0.5), (Constant(1.0), *first_token)),
                "ori_kv": DominantRow(Uniform(-0.5, 0.5), 127, 8.0),
            },
            tags=("fixture",),
        ),
        # The reference's own magnitudes: outputs near 1e-3.
        Case(
            "reference_magnitude",
            {
                **_listed(pages, window),
                "q": Uniform(-0.5, 0.5),
                "ori_kv": Uniform(-0.5, 0.5),
                "cmp_kv": Uniform(-0.5, 0.5),
                "mtp_kv_overlay": Uniform(-0.5, 0.5),
                "attn_sink": Constant(0.0),
            },
            tags=("fixture", "magnitude"),
        ),
    )
