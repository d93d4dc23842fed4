"""decode_sparse_attn_hca: attention over the ring page in place and a gathered tail, and the output projection
(contracts/decode_attention.md, 3)."""

from __future__ import annotations

import torch

from goldens.numerics.visibility import hca_columns, hca_slots
from specs.attention import (
    ALL_SLOTS,
    COLD_STARTS,
    HCA_STARTS,
    LONG_STARTS,
    WINDOW_STARTS,
    fixture_cases,
    kv_tensors,
    output_tensors,
    require_step,
    require_whole_tail,
    rope_at,
    seen_blocks,
)
from specs.distributions import Constant, KvTable
from specs.distributions.attention import Entries, EntryList, HcaList, NamedRows, UnitRows
from specs.distributions.positions import Starts
from specs.model import Deployment, ModelConfig
from specs.registry import Case, Op
from specs.tensors import Distribution, TensorSpec

RATIO = 128
LIST = "cmp_sparse_indices"


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
    return Op(
        name=name,
        config=config,
        deployment=deployment,
        signature=(
            *kv_tensors(config, deployment, KvTable(RATIO, starts=HCA_STARTS)),
            TensorSpec(LIST, (deployment.tokens, columns), torch.int32, HcaList(HCA_STARTS), "in"),
            *output_tensors(config, deployment, RATIO, HCA_STARTS),
        ),
        cases=_cases(deployment.tokens),
        parameters={"win": config.sliding_window, "slots": slots, "softmax_scale": config.softmax_scale},
        validity=lambda op, inputs: seen_blocks(op, torch.as_tensor(inputs[LIST]) >= 0),
    )


def _at(starts: Starts) -> dict[str, Distribution]:
    return {LIST: HcaList(starts), "cmp_block_table": KvTable(RATIO, starts=starts), **rope_at(RATIO, starts)}


def _listed(entries: Entries) -> dict[str, Distribution]:
    return {LIST: EntryList("hca", entries), "cmp_block_table": KvTable(RATIO, holes=False)}


def _cases(tokens: int) -> tuple[Case, ...]:
    poisoned = NamedRows(UnitRows(), Constant(torch.nan), "compressed", "cmp_block_table", LIST)
    garbage = NamedRows(UnitRows(), UnitRows(gain=1e4), "ring", "ori_block_table", LIST)
    # One valid entry, block borders, none at all, none but compressed, ring and overlay rows.
    counts = Entries(
        ring=(1, 127, 128, 128, 0, 0, 17, 1),
        overlay=(False, False, False, True, False, True, False, True),
        slots=(0, 0, 0, 0, 0, 0, ALL_SLOTS, 5),
    )
    return (
        Case("default", tags=("default", "real")),
        Case("window_wrap", _at(WINDOW_STARTS), tags=("edge",)),
        Case("long", _at(LONG_STARTS), tags=("real",)),
        Case("cold", _at(COLD_STARTS), tags=("edge",)),
        Case("counts", _listed(counts), tags=("edge",)),
        Case("late_blocks", _listed(Entries(slots=(1, 5, ALL_SLOTS))), tags=("edge",)),
        # Rows that no list names hold NaN (compressed) or are large (ring: the whole page is read).
        Case("unnamed_rows", {"cmp_kv": poisoned, "ori_kv": garbage}, tags=("edge",)),
        *fixture_cases(_listed, tokens, compressed=True),
    )
