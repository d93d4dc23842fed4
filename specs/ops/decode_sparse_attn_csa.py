"""decode_sparse_attn_csa: attention over a gathered list of KV rows, and the output projection
(contracts/decode_attention.md, 2)."""

from __future__ import annotations

import torch

from goldens.numerics.visibility import BLOCK, csa_columns
from specs.attention import (
    ALL_SLOTS,
    COLD_STARTS,
    CSA_STARTS,
    LONG_STARTS,
    WINDOW_STARTS,
    fixture_cases,
    kv_tensors,
    output_tensors,
    require_step,
    rope_at,
    seen_blocks,
)
from specs.distributions import Constant, KvTable
from specs.distributions.attention import (
    BlockMask,
    CsaList,
    Entries,
    EntryList,
    NamedRows,
    UnitRows,
)
from specs.distributions.positions import Starts
from specs.model import Deployment, ModelConfig
from specs.registry import Case, Inputs, Masks, Op
from specs.tensors import Distribution, TensorSpec

RATIO = 4
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
    int32 = torch.int32
    return Op(
        name=name,
        config=config,
        deployment=deployment,
        signature=(
            *kv_tensors(config, deployment, KvTable(RATIO, starts=CSA_STARTS)),
            TensorSpec(LIST, (tokens, columns), int32, CsaList(CSA_STARTS), "in"),
            TensorSpec(MASK, (tokens, columns // BLOCK), int32, BlockMask(LIST), "in"),
            *output_tensors(config, deployment, RATIO, CSA_STARTS),
        ),
        cases=_cases(tokens),
        parameters={"win": config.sliding_window, "softmax_scale": config.softmax_scale},
        validity=_validity,
    )


def _at(starts: Starts) -> dict[str, Distribution]:
    return {
        LIST: CsaList(starts),
        "cmp_block_table": KvTable(RATIO, starts=starts),
        **rope_at(RATIO, starts),
    }


def _validity(op: Op, inputs: Inputs) -> Masks:
    """A token sees what its list names in the blocks that the mask keeps."""
    kept = (torch.as_tensor(inputs[MASK]) > 0).repeat_interleave(BLOCK, dim=1)
    return seen_blocks(op, (torch.as_tensor(inputs[LIST]) >= 0) & kept)


def _listed(entries: Entries) -> dict[str, Distribution]:
    return {LIST: EntryList("csa", entries), "cmp_block_table": KvTable(RATIO, holes=False)}


def _cases(tokens: int) -> tuple[Case, ...]:
    poisoned = NamedRows(UnitRows(), Constant(torch.nan), "compressed", "cmp_block_table", LIST)
    garbage = NamedRows(UnitRows(), UnitRows(gain=1e4), "ring", "ori_block_table", LIST)
    return (
        Case("default", tags=("default", "real")),
        Case("window_wrap", _at(WINDOW_STARTS), tags=("edge",)),
        Case("long", _at(LONG_STARTS), tags=("real",)),
        Case("cold", _at(COLD_STARTS), tags=("edge",)),
        # One valid entry, block borders, none at all, none but compressed, one ring and one overlay row.
        Case(
            "counts",
            _listed(
                Entries(
                    ring=(1, 127, 128, 128, 0, 0, 17, 1),
                    overlay=(False, False, False, False, False, True, False, True),
                    slots=(0, 0, 0, 1, 0, 0, ALL_SLOTS, 5),
                ),
            ),
            tags=("edge",),
        ),
        Case("late_blocks", _listed(Entries(slots=(1, 5, ALL_SLOTS))), tags=("edge",)),
        # The mask of a block without an entry may be set: nothing changes.
        Case("mask_all_set", _at(COLD_STARTS) | {MASK: BlockMask(LIST, empty=1)}, tags=("edge",)),
        # The mask decides, not the list: a block that it drops is left out with all that it lists.
        Case("mask_drops", {MASK: BlockMask(LIST, drops=True)}, tags=("edge",)),
        # Rows that no list names hold NaN (compressed) or are large (ring: its row 0 stands in for invalid lanes).
        Case("unnamed_rows", {"cmp_kv": poisoned, "ori_kv": garbage}, tags=("edge",)),
        *fixture_cases(_listed, tokens, compressed=True),
    )
