"""Faults of where sparse attention takes its rows from, and of what hides them (decode_attention.md 2.7, 3.7, 4.7)."""

from __future__ import annotations

from attention_faults import CSA, HCA, MTP, SWA, fault
from faults_sparse_attn import AMAX, AMAX_OF_THE_ROW

BLANK_OVERLAY = """\
            overlay[r * TOKENS : r * TOKENS + TOKENS, 0:HEAD_DIM] = blank
"""


WINDOW = (
    fault(
        SWA,
        "overlay_not_padded",
        BLANK_OVERLAY,
        "            pad = r + 0\n",
        "rows behind the overlay hold whatever was there",
    ),
    fault(
        SWA,
        "overlay_bias_of_the_ring",
        "overlay_bias = win_bias[t : t + 1, KEYS : 2 * KEYS]",
        "overlay_bias = win_bias[t : t + 1, 0:KEYS]",
        "the overlay is masked as the ring is",
    ),
    fault(
        SWA,
        "ring_page_of_the_token",
        "pl.read(ori_block_table, [t // S, 0])",
        "pl.read(ori_block_table, [(t + 1) % B, 0])",
        "a request reads the window of another",
    ),
    fault(
        SWA,
        "ring_page_unmapped",
        "page = pl.cast(pl.read(ori_block_table, [t // S, 0]), pl.INDEX) * BLOCK_SIZE",
        "page = (t // S) * BLOCK_SIZE",
        "pages are taken in the order of requests",
    ),
)

GATHERED = (
    fault(
        CSA,
        "mask_polarity",
        "pl.mul(pl.sub(named, 1.0), MASKED)",
        "pl.mul(named, -MASKED)",
        "what a list names is hidden, the rest is seen",
        "bias",
    ),
    fault(
        CSA,
        "block_boundary_off_by_one",
        "column0 = k * KEYS\n            if",
        "column0 = k * (KEYS - 1)\n            if",
        "the last column of a block is taken twice",
    ),
    fault(
        CSA,
        "dropped_lane",
        "for lane in pl.range(count):",
        "for lane in pl.range(count - 1):",
        "the last row of a block is not gathered",
        cases=("default", "counts"),
    ),
    fault(
        CSA,
        "slots_of_one_token_per_request",
        "slot = entry - (WIN + S)",
        "slot = entry - (WIN + 1)",
        "the first compressed row is numbered WIN + S",
        deployment=MTP,
        cases=("mixed_topk",),
    ),
    fault(
        CSA,
        "threshold_of_one_token_per_request",
        "elif entry < WIN + S:",
        "elif entry < WIN + 1:",
        "the second row of a step is taken for a compressed one",
        deployment=MTP,
        fault="GG501",
    ),
    fault(
        CSA,
        "overlay_of_the_first_request",
        "[request * S + entry - WIN, 0]",
        "[entry - WIN, 0]",
        "every request takes the rows of the first",
    ),
    fault(
        CSA,
        "ring_page_unmapped",
        "[page * BLOCK_SIZE + entry, 0]",
        "[request * BLOCK_SIZE + entry, 0]",
        "pages are taken in the order of requests",
    ),
    fault(
        CSA,
        "compressed_page_unmapped",
        "row = page * BLOCK_SIZE + slot % BLOCK_SIZE",
        "row = request * CMP_MAX_BLOCKS * BLOCK_SIZE + slot",
        "compressed pages are taken in logical order",
    ),
    fault(
        CSA,
        "block_mask_reversed",
        "pl.read(valid_block_mask, [t, k]) > 0",
        "pl.read(valid_block_mask, [t, BLOCKS - 1 - k]) > 0",
        "blocks are skipped by the mask of others",
        cases=("cold",),
    ),
    fault(
        CSA,
        "lanes_not_blanked",
        "    pl.gather_row(kv_rows, blank, [0, 0], [0, 0], [KEYS, HEAD_DIM])\n",
        "",
        "lanes without a row hold whatever was on the chip",
        cases=("default", "cold"),
    ),
    fault(
        HCA,
        "list_shorter_than_its_rows",
        "COLUMNS_USED = WIN + S + SLOTS",
        "COLUMNS_USED = WIN + SLOTS",
        "the newest slot of the last position is not gathered",
        cases=("long",),
    ),
    fault(
        HCA,
        "boundary_off_by_one",
        "column0 = k * KEYS\n            count",
        "column0 = k * KEYS - 1\n            count",
        "the last window row is taken twice",
    ),
    fault(
        HCA,
        "ring_bias_of_the_next_block",
        "ring_bias = bias[t : t + 1, 0:KEYS]",
        "ring_bias = bias[t : t + 1, KEYS : 2 * KEYS]",
        "the window is masked as the next block is",
    ),
    fault(
        HCA,
        "ring_page_unmapped",
        "page = pl.cast(pl.read(ori_block_table, [t // S, 0]), pl.INDEX) * BLOCK_SIZE",
        "page = (t // S) * BLOCK_SIZE",
        "pages are taken in the order of requests",
    ),
    fault(
        HCA,
        "first_block_only",
        "for k in pl.range(1, BLOCKS):",
        "for k in pl.range(1, BLOCKS - 1):",
        "compressed rows and those of this step are left out",
    ),
    fault(
        HCA,
        "all_lanes_seen",
        "ring_bias = bias[t : t + 1, 0:KEYS]",
        "ring_bias = pl.mul(bias[t : t + 1, 0:KEYS], 0.0)",
        "a row without a position is seen",
        cases=("cold", "short_window"),
    ),
    fault(
        HCA,
        "group_quantised_with_another",
        AMAX,
        AMAX_OF_THE_ROW,
        "one scale for all groups of a token",
        "o_scale",
        part=SWA,
    ),
    fault(HCA, "no_sink", "total = pl.add(running_sum, sink_weight)", "total = running_sum", "as above", part=SWA),
)

FAULTS = (*WINDOW, *GATHERED)
