"""Faults in decode_indexer. Contract: decode_compressor_indexer.md, 5.4 and 5.7."""

from __future__ import annotations

from fault import RINT_INT32, Fault

OP = "decode_indexer"
MTP = "decode_mtp"
TOPK = "topk_idxs"

QUERY_GAIN = "gain = pl.div(pl.full([1, HADAMARD_ROWS], dtype=pl.FP32, value=INT8_SCALE_MAX), amax)"
KEY_GAIN = "gain = pl.div(pl.full([1, KEY_ROWS], dtype=pl.FP32, value=INT8_SCALE_MAX), amax)"
BY_RECIPROCAL = "gain = pl.mul(pl.recip(amax), INT8_SCALE_MAX)"
KEY_AMAX = "amax = pl.maximum(pl.reshape(pl.row_max(pl.abs(rows)), [1, KEY_ROWS]), INT8_AMAX_EPS)"
RELU = "pl.col_expand_mul(pl.maximum(by_head, 0.0), head_weight)"
PAD = "pl.maximum(pl.fillpad(seen, pad_value=pl.PadValue.min), FP32_NEG_INF)"
VISIBLE = "return pl.min(pl.min(closed, committed), SCORE_LEN)"
HADAMARD = """\
        mixed = pl.matmul(plain, hadamard[0:IDX_NOPE_DIM, 0:IDX_HEAD_DIM], out_dtype=pl.FP32)
        turned = rotated[r0 : r0 + HADAMARD_ROWS, 0:ROPE_DIM]
        mixed = pl.matmul_acc(mixed, turned, hadamard[IDX_NOPE_DIM:IDX_HEAD_DIM, 0:IDX_HEAD_DIM])
"""
HADAMARD_FROM_THE_LEFT = """\
        left = hadamard[0:IDX_HEAD_DIM, 0:IDX_NOPE_DIM]
        mixed = pl.matmul(plain, left, out_dtype=pl.FP32, b_trans=True)
        turned = rotated[r0 : r0 + HADAMARD_ROWS, 0:ROPE_DIM]
        mixed = pl.matmul_acc(mixed, turned, hadamard[0:IDX_HEAD_DIM, IDX_NOPE_DIM:IDX_HEAD_DIM], b_trans=True)
"""
COMPRESS = """\
    decode_indexer_compressor_inline(
        x,
        inner_kv,
        inner_compress_state,
        inner_compress_state_block_table,
        inner_wkv,
        inner_wgate,
        inner_ape,
        inner_norm_w,
        inner_cos,
        inner_sin,
        hadamard,
        idx_kv_cache,
        position_ids,
        idx_slot_mapping,
        inner_state_slot_mapping,
    )
"""
QUANTISE = "    quantise_keys(cache, idx_block_table, position_ids, kv_seq_lens, k_codes, k_scale)\n"
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
    Fault(
        op=OP,
        name="future_group_visible",
        before=VISIBLE,
        after="return pl.min(committed, SCORE_LEN)",
        output="score",
        why="the first token of a step sees a group that the second one closes",
        deployment=MTP,
    ),
    Fault(
        op=OP,
        name="uncommitted_group_visible",
        before=VISIBLE,
        after="return pl.min(closed, SCORE_LEN)",
        output="score",
        why="a group counts once its tokens are committed",
        cases=("uncommitted",),
    ),
    Fault(
        op=OP,
        name="new_group_invisible",
        before="pl.read(position_ids, [b, s]), pl.INDEX) + 1) // RATIO",
        after="pl.read(position_ids, [b, s]), pl.INDEX)) // RATIO",
        output="score",
        why="a token that closes a group sees it",
    ),
    Fault(
        op=OP,
        name="every_token_sees_the_same",
        before="visible = visible_keys(position_ids, kv_seq_lens, b, t % S)\n        head_scale",
        after="visible = visible_keys(position_ids, kv_seq_lens, b, 0)\n        head_scale",
        output="score",
        why="the visible length of a token is that of its own position",
        deployment=MTP,
    ),
    Fault(
        op=OP,
        name="invisible_scores_zero",
        before="unseen = pl.full([1, REDUCE_ROWS], dtype=pl.FP32, value=FP32_NEG_INF)",
        after="unseen = pl.full([1, REDUCE_ROWS], dtype=pl.FP32, value=0.0)",
        output="score",
        why="a masked score is the least number",
    ),
    Fault(
        op=OP,
        name="masked_by_a_product",
        before=PAD,
        after="pl.fillpad(seen, pad_value=pl.PadValue.zero)",
        output="score",
        why="a masked score is the least number, not zero",
    ),
    Fault(
        op=OP,
        name="infinite_pad",
        before=PAD,
        after="pl.fillpad(seen, pad_value=pl.PadValue.min)",
        output="score",
        why="a masked score is finite",
    ),
    Fault(
        op=OP,
        name="stale_score_columns",
        before="(REDUCE_TILES - lane + LANES - 1) // LANES",
        after="(REDUCE_TILES - lane) // LANES",
        output="score",
        why="columns of the last lanes are never written",
    ),
    Fault(
        op=OP,
        name="keys_before_the_compressor",
        before=COMPRESS + QUANTISE,
        after=QUANTISE + COMPRESS,
        output="score",
        why="the key of the group that closes in this step is not in the cache yet",
    ),
    Fault(
        op=OP,
        name="physical_page_by_number",
        before="page = pl.cast(pl.read(block_table, [b, key // BLOCK_SIZE]), pl.INDEX)",
        after="page = b * IDX_MAX_BLOCKS + key // BLOCK_SIZE",
        output="score",
        why="keys are found through the block table",
    ),
    Fault(
        op=OP,
        name="page_row_lost",
        before="row = page * BLOCK_SIZE + key % BLOCK_SIZE",
        after="row = page * BLOCK_SIZE",
        output="score",
        why="the second tile of a page is read as the first",
    ),
    Fault(
        op=OP,
        name="keys_of_the_first_token",
        before="visible = visible_keys(position_ids, kv_seq_lens, b, S - 1)",
        after="visible = visible_keys(position_ids, kv_seq_lens, b, 0)",
        output="score",
        why="the last token of a request sees furthest",
        deployment=MTP,
    ),
    Fault(
        op=OP,
        name="keys_by_reciprocal",
        before=KEY_GAIN,
        after=BY_RECIPROCAL,
        output="score",
        why="two roundings: codes at ties move",
    ),
    Fault(
        op=OP,
        name="query_gain_inverted",
        before=QUERY_GAIN,
        after="gain = pl.div(amax, pl.full([1, HADAMARD_ROWS], dtype=pl.FP32, value=INT8_SCALE_MAX))",
        output="score",
        why="the scale and its reciprocal exchanged",
    ),
    Fault(
        op=OP,
        name="keys_truncated",
        before=RINT_INT32,
        after='pl.INT32, mode="trunc")',
        occurs=2,
        nth=2,
        output="score",
        why="codes are rounded to nearest",
    ),
    Fault(
        op=OP,
        name="key_ties_away",
        before=RINT_INT32,
        after='pl.INT32, mode="round")',
        occurs=2,
        nth=2,
        output="score",
        why="ties go to even; only some hundred keys have one that shows",
        cases=("last_positions",),
    ),
    Fault(
        op=OP,
        name="key_amax_without_sign",
        before="pl.row_max(pl.abs(rows))",
        after="pl.row_max(rows)",
        output="score",
        why="the largest lane may be negative",
    ),
    Fault(
        op=OP,
        name="query_amax_without_sign",
        before="pl.row_max(pl.abs(mixed))",
        after="pl.row_max(mixed)",
        output="score",
        why="the largest lane may be negative",
    ),
    Fault(
        op=OP,
        name="no_floor_of_keys",
        before=KEY_AMAX,
        after="amax = pl.reshape(pl.row_max(pl.abs(rows)), [1, KEY_ROWS])",
        output="score",
        why="keys below 1e-4 have codes of few bits",
        cases=("tiny_keys",),
    ),
    Fault(
        op=OP,
        name="no_key_scale",
        before="pl.mul(pl.row_sum(weighted), key_scale)",
        after="pl.row_sum(weighted)",
        output="score",
        why="codes of different keys have different scales",
    ),
    Fault(
        op=OP,
        name="key_scale_per_tile",
        before="pl.mul(pl.row_sum(weighted), key_scale)",
        after="pl.mul(pl.row_sum(weighted), pl.read(k_scale, [k0, 0]))",
        output="score",
        why="every key has a scale of its own",
    ),
    Fault(
        op=OP,
        name="no_head_scale",
        before='pl.col_expand_mul(pl.cast(dots, pl.FP32, mode="rint"), head_scale)',
        after='pl.cast(dots, pl.FP32, mode="rint")',
        output="score",
        why="codes of different heads have different scales",
    ),
    Fault(
        op=OP,
        name="head_scale_of_the_first_token",
        before="pl.slice(q_scale, [1, HEADS_PADDED], [t, 0]",
        after="pl.slice(q_scale, [1, HEADS_PADDED], [b * S, 0]",
        output="score",
        why="every token has scales of its own",
        deployment=MTP,
    ),
    Fault(
        op=OP,
        name="no_relu",
        before=RELU,
        after="pl.col_expand_mul(by_head, head_weight)",
        output="score",
        why="heads that disagree do not count",
    ),
    Fault(
        op=OP,
        name="relu_after_the_weights",
        before=RELU,
        after="pl.maximum(pl.col_expand_mul(by_head, head_weight), 0.0)",
        output="score",
        why="weights have a sign",
    ),
    Fault(
        op=OP,
        name="relu_of_the_sum",
        before="column = pl.mul(pl.row_sum(weighted), key_scale)",
        after="column = pl.maximum(pl.mul(pl.row_sum(weighted), key_scale), 0.0)",
        output="score",
        why="a score may be negative",
    ),
    Fault(
        op=OP,
        name="no_weights_constant",
        before="pl.mul(acc, IDX_WEIGHTS_SCALE)",
        after="pl.mul(acc, 1.0)",
        output="score",
        why="scores are scaled by the head width and the number of heads",
    ),
    Fault(
        op=OP,
        name="weights_constant_twice",
        before="pl.mul(acc, IDX_WEIGHTS_SCALE)",
        after="pl.mul(pl.mul(acc, IDX_WEIGHTS_SCALE), IDX_WEIGHTS_SCALE)",
        output="score",
        why="scores are scaled once",
    ),
    Fault(
        op=OP,
        name="heads_weighed_by_a_part",
        before="for c in pl.pipeline(1, D // WEIGHTS_CHUNK, stage=2):",
        after="for c in pl.pipeline(1, D // WEIGHTS_CHUNK - 1, stage=2):",
        output="score",
        why="a chunk of K is lost",
    ),
    Fault(
        op=OP,
        name="query_projected_by_a_part",
        before="for c in pl.pipeline(1, Q_LORA // QUERY_CHUNK, stage=2):",
        after="for c in pl.pipeline(1, Q_LORA // QUERY_CHUNK - 1, stage=2):",
        output="score",
        why="a chunk of K is lost",
    ),
    Fault(
        op=OP,
        name="no_token_scale",
        before="by_token = pl.row_expand_mul(acc, qr_scale[t0 : t0 + TOKENS, 0:1])",
        after="by_token = acc",
        output="score",
        why="codes of different tokens have different scales",
    ),
    Fault(
        op=OP,
        name="column_scales_permuted",
        before="column_scale[0:1, n0 : n0 + DEQUANT_COLS]",
        after="column_scale[0:1, Q_COLS - n0 - DEQUANT_COLS : Q_COLS - n0]",
        output="score",
        why="columns take each other's scale",
    ),
    Fault(
        op=OP,
        name="queries_at_the_first_position",
        before="t = r0 // IDX_N_HEADS\n",
        after="t = r0 // (S * IDX_N_HEADS) * S\n",
        output="score",
        why="one rotary row per request: fault 2 of the July kernel",
        deployment=MTP,
    ),
    Fault(
        op=OP,
        name="queries_rotated_backwards",
        before="new_lanes = pl.add(pl.col_expand_mul(lanes, cos_lanes), turned)",
        after="new_lanes = pl.sub(pl.col_expand_mul(lanes, cos_lanes), turned)",
        output="score",
        why="the sign of the sine",
    ),
    Fault(
        op=OP,
        name="queries_not_rotated",
        before="new_lanes = pl.add(pl.col_expand_mul(lanes, cos_lanes), turned)",
        after="new_lanes = lanes",
        output="score",
        why="the last lanes of a query rotate",
    ),
    Fault(
        op=OP,
        name="inner_key_at_the_token",
        before="        inner_cos,\n        inner_sin,\n        hadamard,\n        idx_kv_cache,",
        after="        cos,\n        sin,\n        hadamard,\n        idx_kv_cache,",
        output="inner_kv",
        why="a key rotates by the first position of its group: fault 1 of the July kernel",
    ),
    Fault(
        op=OP,
        name="no_hadamard_of_rotated_lanes",
        before=HADAMARD,
        after="".join(HADAMARD.splitlines(keepends=True)[:1]),
        output="score",
        why="half of K is lost",
    ),
    Fault(
        op=OP,
        name="hadamard_from_the_left",
        before=HADAMARD,
        after=HADAMARD_FROM_THE_LEFT,
        output="score",
        why="a row of the matrix is an input lane; invisible in a symmetric one",
        cases=("random_rotation",),
    ),
    Fault(
        op=OP,
        name="plain_lanes_truncated",
        before='0:IDX_NOPE_DIM], pl.BF16, mode="rint")',
        after='0:IDX_NOPE_DIM], pl.BF16, mode="trunc")',
        output="score",
        why="queries are rounded to nearest before the Hadamard matrix",
    ),
    Fault(
        op=OP,
        name="last_keys_not_multiplied",
        before="for i in pl.range((visible + MULTIPLY_ROWS - 1) // MULTIPLY_ROWS):",
        after="for i in pl.range(visible // MULTIPLY_ROWS):",
        output="score",
        why="a part of a tile of keys is lost",
    ),
    Fault(
        op=OP,
        name="keys_of_the_first_request",
        before="k0 = b * SCORE_LEN + key\n            keys",
        after="k0 = key\n            keys",
        output="score",
        why="every request has keys of its own",
    ),
)
