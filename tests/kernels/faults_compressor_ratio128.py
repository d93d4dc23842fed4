"""Faults of decode_compressor_ratio128. Contract: decode_compressor_indexer.md, 3.7."""

from __future__ import annotations

from fault import Fault
from faults_compressor import NEGATIVE_ROW, R128, SCATTER_THEN_POOL, swapped, through_bf16

PAGE_128 = "page = pl.cast(pl.read(block_table, [b, first // RATIO * PAGES + i]), pl.INDEX)"
SHARE = "share = pl.col_expand_mul(weight, pl.recip(pl.col_sum(weight)))"
TILE_128 = "[row : row + STATE128_PAGE, {0} : {0} + COLS]"
SCATTER_THEN_POOL_128 = SCATTER_THEN_POOL.replace("pool_overlapping", "pool_window")

FAULTS = (
    Fault(
        op=R128,
        name="pooled_before_the_scatter",
        before=SCATTER_THEN_POOL_128,
        after=swapped(SCATTER_THEN_POOL_128),
        output="kv",
        why="the row of the token that closes the block is not there yet",
    ),
    Fault(
        op=R128,
        name="last_page_left_out",
        before="for i in pl.pipeline(PAGES, stage=2):",
        after="for i in pl.pipeline(PAGES - 1, stage=2):",
        output="kv",
        why="the window is sixteen pages",
    ),
    Fault(
        op=R128,
        name="first_page_only",
        before="first // RATIO * PAGES + i",
        after="first // RATIO * PAGES",
        output="kv",
        why="every page is the first one of the window",
    ),
    Fault(
        op=R128,
        name="page_of_the_ring",
        before="first // RATIO * PAGES + i",
        after="first // RATIO * PAGES % 64 + i",
        output="kv",
        why="columns of the block table are absolute pages, with holes behind the look-back",
        cases=("last_positions",),
    ),
    Fault(
        op=R128,
        name="logical_page",
        before=PAGE_128,
        after="page = first // RATIO * PAGES + i",
        output="kv",
        why="pages of a ring are found through the block table",
    ),
    Fault(
        op=R128,
        name="hole_read",
        before="if page >= 0:",
        after="if page >= -1:",
        output="kv",
        why="a negative entry is no page",
        cases=("state_hole",),
        fault=NEGATIVE_ROW,
    ),
    Fault(
        op=R128,
        name="hole_has_weight",
        before="value=FP32_NEG_INF",
        after="value=0.0",
        output="kv",
        why="rows without a page dilute the pool",
        cases=("state_hole",),
    ),
    Fault(
        op=R128,
        name="scores_taken_for_keys",
        before=f"= state{TILE_128.format('n0')}",
        after=f"= state{TILE_128.format('m0')}",
        output="kv",
        why="the first half of a state row holds the keys",
    ),
    Fault(
        op=R128,
        name="pooled_one_token_late",
        before="if first % RATIO + S >= RATIO:",
        after="if first % RATIO + S > RATIO:",
        output="kv",
        why="a block closes with its last position",
    ),
    Fault(
        op=R128,
        name="stored_by_another_ratio",
        before="cmp_slot_mapping, RATIO, kv_rows",
        after="cmp_slot_mapping, RATIO - 1, kv_rows",
        output="kv",
        why="a row is stored when its block closes",
    ),
    Fault(
        op=R128,
        name="weights_not_normalised",
        before=SHARE,
        after="share = weight",
        output="kv",
        why="every column has a sum of weights of its own, so the norm does not remove it",
    ),
    Fault(
        op=R128,
        name="largest_score_not_subtracted",
        before="pl.col_expand_expdif(score, pl.col_max(score))",
        after="pl.exp(score)",
        output="kv",
        why="scores of 80 leave FP32",
        cases=("high_scores",),
    ),
    Fault(
        op=R128,
        name="rounded_before_the_norm",
        before="pl.col_sum(pl.mul(kv, share))",
        after=through_bf16("pl.col_sum(pl.mul(kv, share))"),
        output="kv",
        why="the pooled row stays FP32 into the norm",
    ),
)
