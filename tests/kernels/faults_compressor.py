"""Faults of decode_compressor_ratio4 and of the stages that the other two compressors splice in from it.

Contract: decode_compressor_indexer.md, 2.7, 3.7, 4.7. A fault of a common stage is planted there for all three.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fault import Fault

R4, R128, INNER = "decode_compressor_ratio4", "decode_compressor_ratio128", "decode_indexer_compressor"
MTP = "decode_mtp"
NEGATIVE_ROW = "a negative slice bound"

SCATTER_THEN_POOL = """\
    scatter(kv_projected, score_projected, ape, position_ids, state_slot_mapping, state)
    pool_overlapping(state, compress_state_block_table, position_ids, pooled_rows)
"""
WEIGHTED = "            scaled = pl.col_expand_mul(again, pl.cast(gamma[0:1, n0 : n0 + COLS], pl.FP32))\n"
TURNED = "                turned = signed(swapped)\n"
ROTATION = """\
            if n0 == WIDTH - ROPE_DIM:
                cos_rows = pl.slice(cos, [ROWS, ROPE_HALF], [b0, 0], valid_shape=[rows, ROPE_HALF])
                sin_rows = pl.slice(sin, [ROWS, ROPE_HALF], [b0, 0], valid_shape=[rows, ROPE_HALF])
                cos_lanes = per_lane(pl.fillpad(cos_rows, pad_value=pl.PadValue.zero), scaled)
                sin_lanes = per_lane(pl.fillpad(sin_rows, pad_value=pl.PadValue.zero), scaled)
                swapped = partners(scaled)
                turned = signed(swapped)
                scaled = pl.add(pl.mul(scaled, cos_lanes), pl.mul(turned, sin_lanes))
"""
ANGLES = """\
                cos_rows = pl.slice(cos, [ROWS, ROPE_HALF], [b0, 0], valid_shape=[rows, ROPE_HALF])
                sin_rows = pl.slice(sin, [ROWS, ROPE_HALF], [b0, 0], valid_shape=[rows, ROPE_HALF])
"""
ANGLES_OF_ONE = """\
                whole = pl.full([ROWS, ROPE_HALF], dtype=pl.FP32, value=0.0)
                cos_rows = pl.col_expand(whole, cos[b0 : b0 + 1, 0:ROPE_HALF])
                sin_rows = pl.col_expand(whole, sin[b0 : b0 + 1, 0:ROPE_HALF])
"""
BIASED = "pl.add(score, ape[phase : phase + 1, n0 : n0 + COLS])"
PAGE = "page = pl.cast(pl.read(block_table, [b, position // STATE4_PAGE]), pl.INDEX)"


def swapped(lines: str) -> str:
    """Two lines in the other order."""
    return "".join(reversed(lines.splitlines(keepends=True)))


def through_bf16(value: str) -> str:
    return f'pl.cast(pl.cast({value}, pl.BF16, mode="rint"), pl.FP32)'


def everywhere(faults: Iterable[Fault], ops: tuple[str, ...] = (R4, R128, INNER)) -> tuple[Fault, ...]:
    """Faults of the kernel of ratio 4 for the ops that splice in the faulty part."""
    return tuple(
        fault
        if op == R4
        else replace(fault, op=op, part=R4, output=fault.output.replace("cmp", "idx") if op == INNER else fault.output)
        for fault in faults
        for op in ops
    )


COMMON = (
    Fault(
        op=R4,
        name="one_token_per_request",
        before="for s in pl.pipeline(S, stage=2):",
        after="for s in pl.pipeline(1, stage=2):",
        output="compress_state",
        why="the state rows of the other tokens of a step are never written",
        deployment=MTP,
    ),
    Fault(
        op=R4,
        name="last_request_not_scattered",
        before='for b in pl.spmd(B, name_hint="compressor_scatter"):',
        after='for b in pl.spmd(B - 1, name_hint="compressor_scatter"):',
        output="compress_state",
        why="the last request is left out",
    ),
    Fault(
        op=R4,
        name="encoding_of_the_first_position",
        before="phase = pl.cast(pl.read(position_ids, [b, s]), pl.INDEX) % RATIO_DYN",
        after="phase = pl.cast(pl.read(position_ids, [b, 0]), pl.INDEX) % RATIO_DYN",
        output="compress_state",
        why="every token of a step takes the encoding of the first",
        deployment=MTP,
    ),
    Fault(
        op=R4,
        name="no_encoding",
        before=BIASED,
        after="pl.add(score, 0.0)",
        output="compress_state",
        why="the state holds the biased score",
    ),
    Fault(
        op=R4,
        name="encoding_twice",
        before=BIASED,
        after="pl.add(score, pl.mul(ape[phase : phase + 1, n0 : n0 + COLS], 2.0))",
        output="compress_state",
        why="a score is biased once",
    ),
    Fault(
        op=R4,
        name="encoding_of_the_first_token_only",
        before=BIASED,
        after="pl.add(score, pl.mul(ape[phase : phase + 1, n0 : n0 + COLS], pl.cast(1 - pl.min(s, 1), pl.FP32)))",
        output="compress_state",
        why="every token of a step has an encoding",
        deployment=MTP,
    ),
    Fault(
        op=R4,
        name="boxes_rounded_down",
        before="pl.spmd(BOXES * (WIDTH // PROJECT_COLS),",
        after="pl.spmd(T // BOX * (WIDTH // PROJECT_COLS),",
        output="compress_state",
        why="a box that is not full is not projected",
    ),
    Fault(
        op=R4,
        name="dropped_token_written",
        before="if slot >= 0:\n                phase",
        after="if slot >= -1:\n                phase",
        output="compress_state",
        why="a slot of -1 is no row",
        cases=("dropped_state",),
        fault=NEGATIVE_ROW,
    ),
    Fault(
        op=R4,
        name="uncommitted_row_written",
        before="if slot >= 0:\n                t = b * S",
        after="if slot >= -1:\n                t = b * S",
        output="cmp_kv_cache",
        why="a slot of -1 is no row",
        cases=("uncommitted",),
        fault=NEGATIVE_ROW,
    ),
    Fault(
        op=R4,
        name="stored_at_the_closing_token",
        before="t = b * S\n",
        after="t = b * S + ratio - 1 - phase\n",
        output="kv",
        why="a row goes to the first token of its request, whichever closes the block",
        deployment=MTP,
    ),
    Fault(
        op=R4,
        name="cache_truncated",
        before='pl.cast(row, pl.BF16, mode="rint")',
        after='pl.cast(row, pl.BF16, mode="trunc")',
        output="cmp_kv_cache",
        why="the cached row is rounded to nearest",
    ),
    Fault(
        op=R4,
        name="fp32_row_rounded",
        before="kv[t : t + 1, n0 : n0 + COLS] = row",
        after=f"kv[t : t + 1, n0 : n0 + COLS] = {through_bf16('row')}",
        output="kv",
        why="kv is the row before it is rounded for the cache",
    ),
    Fault(
        op=R4,
        name="no_epsilon",
        before="pl.add(mean_square, RMS_EPS)",
        after="pl.add(mean_square, 0.0)",
        output="kv",
        why="rows around the epsilon are blown up",
        cases=("tiny_kv",),
    ),
    Fault(
        op=R4,
        name="low_precision_rsqrt",
        before="pl.recip(pl.sqrt(pl.add(mean_square, RMS_EPS)))",
        after="pl.rsqrt(pl.add(mean_square, RMS_EPS))",
        output="kv",
        why="the approximate instruction: 1/rms is wrong by up to 2^-12",
    ),
    Fault(
        op=R4,
        name="rms_without_the_last_chunk",
        before="for c in pl.pipeline(WIDTH // COLS, stage=2):\n            n0 = c * COLS\n            chunk",
        after="for c in pl.pipeline(WIDTH // COLS - 1, stage=2):\n            n0 = c * COLS\n            chunk",
        output="kv",
        why="the RMS is that of the whole row, rotary lanes included",
    ),
    Fault(
        op=R4,
        name="rotated_backwards",
        before=TURNED,
        after=f"{TURNED}                turned = pl.neg(turned)\n",
        output="kv",
        why="the sign of the sine",
    ),
    Fault(
        op=R4,
        name="weighted_after_the_rotation",
        before=WEIGHTED + ROTATION,
        after="            scaled = again\n" + ROTATION + WEIGHTED.replace("again", "scaled"),
        output="kv",
        why="the weight of a lane goes with the lane, also to its partner",
    ),
    Fault(
        op=R4,
        name="angles_of_the_first_request",
        before=ANGLES,
        after=ANGLES_OF_ONE,
        output="kv",
        why="every request rotates by the position of its own block",
    ),
    Fault(
        op=R4,
        name="score_projected_with_wkv",
        before="wgate[n0 : n0 + PROJECT_COLS, d0 : d0 + PROJECT_CHUNK]",
        after="wkv[n0 : n0 + PROJECT_COLS, d0 : d0 + PROJECT_CHUNK]",
        output="compress_state",
        why="one chunk of K takes the other weight",
    ),
    Fault(
        op=R4,
        name="last_chunk_not_projected",
        before="pl.pipeline(1, D // PROJECT_CHUNK, stage=2)",
        after="pl.pipeline(1, D // PROJECT_CHUNK - 1, stage=2)",
        output="compress_state",
        why="a chunk of K is lost",
    ),
)

OVERLAPPING = (
    Fault(
        op=R4,
        name="front_keys_from_the_back",
        before="kv = state[front : front + 1, n0 : n0 + COLS]",
        after="kv = state[front : front + 1, kv_back : kv_back + COLS]",
        output="kv",
        why="the previous block counts with its front halves",
    ),
    Fault(
        op=R4,
        name="front_scores_from_the_back",
        before="score = state[front : front + 1, score_front : score_front + COLS]",
        after="score = state[front : front + 1, score_back : score_back + COLS]",
        output="kv",
        why="the previous block counts with its front halves",
    ),
    Fault(
        op=R4,
        name="closing_row_from_the_front",
        before="total = state[closing : closing + 1, kv_back : kv_back + COLS]",
        after="total = state[closing : closing + 1, n0 : n0 + COLS]",
        output="kv",
        why="the block that closes counts with its back halves",
    ),
    Fault(
        op=R4,
        name="first_row_of_the_page",
        before="page * STATE4_PAGE + position % STATE4_PAGE",
        after="page * STATE4_PAGE",
        output="kv",
        why="every position has a row of its own",
    ),
    Fault(
        op=R4,
        name="logical_state_page",
        before=PAGE,
        after="page = position // STATE4_PAGE",
        output="kv",
        why="pages of a ring are found through the block table",
    ),
    Fault(
        op=R4,
        name="state_page_of_the_ring",
        before="[b, position // STATE4_PAGE]",
        after="[b, position // STATE4_PAGE % 65]",
        output="kv",
        why="the table has a column for every position of the model, and holes behind the look-back",
        fault=NEGATIVE_ROW,
    ),
    Fault(
        op=R4,
        name="pages_of_the_first_request",
        before="[b, position // STATE4_PAGE]",
        after="[0, position // STATE4_PAGE]",
        output="kv",
        why="every request has pages of its own",
        fault=NEGATIVE_ROW,
    ),
    Fault(
        op=R4,
        name="pooled_one_token_late",
        before="if phase + S >= RATIO:",
        after="if phase + S > RATIO:",
        output="kv",
        why="a block closes with its last position",
    ),
    Fault(
        op=R4,
        name="stored_when_a_block_begins",
        before="if phase + S >= ratio:",
        after="if phase == 0:",
        output="kv",
        why="a row is stored when its block closes",
    ),
    Fault(
        op=R4,
        name="pooled_when_a_block_begins",
        before="if phase + S >= RATIO:",
        after="if phase == 0:",
        output="kv",
        why="a block is pooled when it closes",
    ),
    Fault(
        op=R4,
        name="second_block_has_no_front",
        before="if start >= RATIO:",
        after="if start > RATIO:",
        output="kv",
        why="the first block is the previous one of the second",
        cases=("first_tokens",),
    ),
    Fault(
        op=R4,
        name="first_block_has_a_front",
        before="if start >= RATIO:",
        after="if start >= 0:",
        output="kv",
        why="there is no position before 0",
        cases=("first_tokens",),
        fault="GG501",
    ),
    Fault(
        op=R4,
        name="oldest_row_left_out",
        before="for i in pl.range(RATIO):",
        after="for i in pl.range(1, RATIO):",
        output="kv",
        why="the window has eight rows",
    ),
    Fault(
        op=R4,
        name="third_row_left_out",
        before="for i in pl.range(RATIO - 1):",
        after="for i in pl.range(RATIO - 2):",
        output="kv",
        why="the window has eight rows",
    ),
    Fault(
        op=R4,
        name="weights_not_normalised",
        before="pl.div(total, weight)",
        after="total",
        output="kv",
        why="every column has a sum of weights of its own, so the norm does not remove it",
    ),
    Fault(
        op=R4,
        name="sum_not_rescaled",
        before="pl.add(pl.mul(total, kept), pl.mul(kv, added))",
        after="pl.add(total, pl.mul(kv, added))",
        output="kv",
        why="what was summed before a larger score counts less",
    ),
    Fault(
        op=R4,
        name="rounded_before_the_norm",
        before="pl.div(total, weight)",
        after=through_bf16("pl.div(total, weight)"),
        output="kv",
        why="the pooled row stays FP32 into the norm",
    ),
)

FAULTS = (
    *everywhere(COMMON),
    *everywhere(OVERLAPPING, (R4, INNER)),
    Fault(
        op=R4,
        name="pooled_before_the_scatter",
        before=SCATTER_THEN_POOL,
        after=swapped(SCATTER_THEN_POOL),
        output="kv",
        why="the row of the token that closes the block is not there yet",
    ),
)
