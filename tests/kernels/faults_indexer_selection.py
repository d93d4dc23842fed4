"""Faults of the selection in decode_indexer. Contract: decode_compressor_indexer.md, 5.4 and 5.7."""

from __future__ import annotations

from fault import Fault

OP = "decode_indexer"
TOPK = "topk_idxs"

NUMBERS = """\
            numbers = pl.add(pl.cast(keys, pl.FP32, mode="none"), pl.cast(offset, pl.FP32))
            valid = pl.set_validshape(numbers, 1, pl.min(IDX_TOPK, visible))
            padded = pl.maximum(pl.fillpad(valid, pad_value=pl.PadValue.min), -1.0)
"""
OFFSET_EVERYWHERE = """\
            numbers = pl.cast(keys, pl.FP32, mode="none")
            valid = pl.set_validshape(numbers, 1, pl.min(IDX_TOPK, visible))
            ended = pl.maximum(pl.fillpad(valid, pad_value=pl.PadValue.min), -1.0)
            padded = pl.add(ended, pl.cast(offset, pl.FP32))
"""

FAULTS = (
    Fault(
        op=OP,
        name="worst_keys",
        before="pl.sort32(scores, numbers)",
        after="pl.sort32(pl.neg(scores), numbers)",
        output=TOPK,
        why="the lowest scores, and those of invisible keys before them",
    ),
    Fault(
        op=OP,
        name="best_key_dropped",
        before="best = merged[0:1, 0 : 2 * IDX_TOPK]",
        after="best = merged[0:1, 8 : 2 * IDX_TOPK + 8]",
        output=TOPK,
        why="the list starts with the fifth",
        cases=("last_positions",),
    ),
    Fault(
        op=OP,
        name="best_key_everywhere",
        before="keys = pl.gather(best, mask_pattern",
        after=(
            "again = pl.full([1, 2 * IDX_TOPK], dtype=pl.INT32, value=1)\n"
            "            best = pl.gather(best, dim=-1, index=again)\n"
            "            keys = pl.gather(best, mask_pattern"
        ),
        output=TOPK,
        why="a key may stand in the list once",
    ),
    Fault(
        op=OP,
        name="first_columns_sorted_only",
        before="for c in pl.range((visible + SORT_COLS - 1) // SORT_COLS):",
        after="for c in pl.range((visible + SORT_COLS - 1) // SORT_COLS // 2):",
        output=TOPK,
        why="keys of the later columns cannot be chosen",
        cases=("last_positions",),
    ),
    Fault(
        op=OP,
        name="last_columns_not_sorted",
        before="for c in pl.range((visible + SORT_COLS - 1) // SORT_COLS):",
        after="for c in pl.range(visible // SORT_COLS):",
        output=TOPK,
        why="a part of a tile of columns is lost",
    ),
    Fault(
        op=OP,
        name="numbers_of_the_tile",
        before="pl.arange(pl.cast(first, pl.UINT32), [1, SORT_COLS]",
        after="pl.arange(pl.cast(first * 0, pl.UINT32), [1, SORT_COLS]",
        output=TOPK,
        why="a key is numbered within its request",
        cases=("last_positions",),
    ),
    Fault(
        op=OP,
        name="no_offset",
        before="pl.cast(offset, pl.FP32)",
        after="0.0",
        output=TOPK,
        why="a chosen key stands behind the window",
    ),
    Fault(
        op=OP,
        name="offset_added_to_nothing",
        before=NUMBERS,
        after=OFFSET_EVERYWHERE,
        output=TOPK,
        why="-1 stays -1",
        cases=("first_tokens",),
    ),
    Fault(
        op=OP,
        name="list_ended_early",
        before="pl.min(IDX_TOPK, visible)",
        after="pl.min(IDX_TOPK, visible - 1)",
        output=TOPK,
        why="all visible keys are chosen where the list has room for them",
    ),
    Fault(
        op=OP,
        name="columns_beyond_the_list_left_out",
        before="for c in pl.range((SCORE_LEN - IDX_TOPK) // NO_COLS):",
        after="for c in pl.range((SCORE_LEN - IDX_TOPK) // NO_COLS - 1):",
        output=TOPK,
        why="all columns of the list are written",
    ),
    Fault(
        op=OP,
        name="zero_where_nothing_is_chosen",
        before="nothing = pl.full([1, NO_COLS], dtype=pl.INT32, value=-1)",
        after="nothing = pl.full([1, NO_COLS], dtype=pl.INT32, value=0)",
        output=TOPK,
        why="0 is a key",
    ),
)
