"""decode_sparse_attn_hca: attention over the ring page in place and a gathered tail, and the output projection
(contracts/decode_attention.md, 3)."""

from __future__ import annotations

import torch

from goldens.numerics.visibility import hca_columns, hca_slots
from specs.attention import (
    COLD_STARTS,
    HCA_STARTS,
    LONG_STARTS,
    NO_ROTATION,
    WINDOW_STARTS,
    kv_tensors,
    output_tensors,
    require_step,
    require_whole_tail,
    rope_at,
)
from specs.distributions import Constant, Rows, Uniform
from specs.distributions.attention import DominantRow, Entries, EntryList, HcaList, NamedRows, PageTable, UnitRows
from specs.model import Deployment, ModelConfig
from specs.paging import paging
from specs.registry import Case, Op
from specs.tensors import Distribution, TensorSpec

RATIO = 128
LIST = "cmp_sparse_indices"
ALL = 1 << 20


def build(config: ModelConfig, deployment: Deployment) -> Op:
    """As decode_sparse_attn_csa, without a block mask. cmp_sparse_indices [T, columns] INT32: column k < WIN holds k or
    -1, columns WIN + u the overlay, columns WIN + S + c the compressed slots; the rest is -1.

    `columns` is WIN + S + min(MAX_SEQ_LEN / 128, IDX_TOPK) in whole blocks of 128, at least two: 384 at FLASH.

    Stages, by the names of the kernel's intermediates: bias [T, columns] FP32 (0 or -1e20), o_packed, o_r, o_codes,
    o_scale and attn_out as in decode_sparse_attn_csa.

    T must be 8 or 16, WIN 128. Refused where the list has no room for all slots (PRO): the newest would be lost.
    """
    name = "decode_sparse_attn_hca"
    require_step(name, config, deployment)
    require_whole_tail(name, config)
    slots = hca_slots(config.max_position_embeddings, config.index_topk)
    columns = hca_columns(config.sliding_window, deployment.seq, slots)
    pages = paging(config, deployment).cmp_block_num
    return Op(
        name=name,
        config=config,
        deployment=deployment,
        signature=(
            *kv_tensors(config, deployment, _pages(pages, HCA_STARTS)),
            TensorSpec(LIST, (deployment.tokens, columns), torch.int32, HcaList(HCA_STARTS), "in"),
            *output_tensors(config, deployment, RATIO, HCA_STARTS),
        ),
        cases=_cases(pages, deployment.tokens),
        parameters={"win": config.sliding_window, "slots": slots, "softmax_scale": config.softmax_scale},
    )


def _pages(pages: int, starts: tuple[int, ...]) -> PageTable:
    """The compressed pool's table at these starts: logical pages not yet reached hold -1."""
    return PageTable(pages, starts, RATIO)


def _at(pages: int, starts: tuple[int, ...]) -> dict[str, Distribution]:
    return {LIST: HcaList(starts), "cmp_block_table": _pages(pages, starts), **rope_at(RATIO, starts)}


def _listed(pages: int, entries: Entries) -> dict[str, Distribution]:
    return {LIST: EntryList("hca", entries), "cmp_block_table": PageTable(pages)}


def _cases(pages: int, tokens: int) -> tuple[Case, ...]:
    poisoned = NamedRows(UnitRows(), Constant(torch.nan), "compressed", "cmp_block_table", LIST)
    garbage = NamedRows(UnitRows(), UnitRows(gain=1e4), "ring", "ori_block_table", LIST)
    first_token = (None,) * (tokens - 1)
    # One valid entry, block borders, none at all, none but compressed, ring and overlay rows.
    counts = Entries(
        ring=(1, 127, 128, 128, 0, 0, 17, 1),
        overlay=(False, False, False, True, False, True, False, True),
        slots=(0, 0, 0, 0, 0, 0, ALL, 5),
    )
    return (
        Case("default", tags=("default", "real")),
        Case("window_wrap", _at(pages, WINDOW_STARTS), tags=("edge",)),
        Case("long", _at(pages, LONG_STARTS), tags=("real",)),
        Case("cold", _at(pages, COLD_STARTS), tags=("edge",)),
        Case("counts", _listed(pages, counts), tags=("edge",)),
        Case("late_blocks", _listed(pages, Entries(slots=(1, 5, ALL))), tags=("edge",)),
        # Rows that no list names hold NaN (compressed) or are large (ring: the whole page is read).
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
                **_listed(pages, Entries(ring=(128,), slots=(ALL,))),
                "q": Rows(Uniform(-0.5, 0.5), (Constant(1.0), *first_token)),
                "ori_kv": DominantRow(Uniform(-0.5, 0.5), 127, 8.0),
            },
            tags=("fixture",),
        ),
        # The reference's own magnitudes: outputs near 1e-3.
        Case(
            "reference_magnitude",
            {
                **_listed(pages, Entries(ring=(128,), slots=(ALL,))),
                "q": Uniform(-0.5, 0.5),
                "ori_kv": Uniform(-0.5, 0.5),
                "cmp_kv": Uniform(-0.5, 0.5),
                "mtp_kv_overlay": Uniform(-0.5, 0.5),
                "attn_sink": Constant(0.0),
            },
            tags=("fixture", "magnitude"),
        ),
    )
