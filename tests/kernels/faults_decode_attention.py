"""Faults of decode attention: the three sparse attentions and the layers around them (decode_attention.md 2.7 to 7.7).

Faults of what the layers splice in from elsewhere are those of the spliced ops. Where a layer is named with a part,
the fault shows only in the composition.
"""

from __future__ import annotations

from fault import RINT_INT32, Fault

SWA, HCA, CSA = "decode_sparse_attn_swa", "decode_sparse_attn_hca", "decode_sparse_attn_csa"
LAYER_SWA, LAYER_HCA, LAYER_CSA = "decode_attention_swa", "decode_attention_hca", "decode_attention_csa"
MTP = "decode_mtp"


def fault(op: str, name: str, before: str, after: str, why: str, output: str = "attn_out", **more) -> Fault:
    return Fault(op, name, before, after, output, why, **more)


BACK = """\
        back_even = pl.add(pl.col_expand_mul(even, cos), pl.col_expand_mul(odd, sin))
        back_odd = pl.sub(pl.col_expand_mul(odd, cos), pl.col_expand_mul(even, sin))
"""
FORTH = """\
        back_even = pl.sub(pl.col_expand_mul(even, cos), pl.col_expand_mul(odd, sin))
        back_odd = pl.add(pl.col_expand_mul(odd, cos), pl.col_expand_mul(even, sin))
"""
LANES = """\
        even = pl.gather(rope, mask_pattern=pl.tile.MaskPattern.P0101)
        odd = pl.gather(rope, mask_pattern=pl.tile.MaskPattern.P1010)
"""
HALVES = """\
        even = rope[0:HEAD_TILE, 0:ROPE_HALF]
        odd = rope[0:HEAD_TILE, ROPE_HALF:ROPE_DIM]
"""
VALUES = """\
        block_out[row : row + HEAD_BATCH, 0:HEAD_DIM] = pl.matmul(rounded, kv_rows, out_dtype=pl.FP32)
"""
KEY_HALF_AS_VALUES = """\
        half = HEAD_DIM // 2
        upper = pl.slice(kv_rows, [KEYS, HEAD_DIM // 2], [0, half])
        block_out[row : row + HEAD_BATCH, 0 : HEAD_DIM // 2] = pl.matmul(rounded, upper, out_dtype=pl.FP32)
        block_out[row : row + HEAD_BATCH, HEAD_DIM // 2 : HEAD_DIM] = pl.matmul(rounded, upper, out_dtype=pl.FP32)
"""
AMAX = """\
        for c in pl.pipeline(O_LORA // QUANT_CHUNK, stage=2):
            n0 = group * O_LORA + c * QUANT_CHUNK
            chunk_max ="""
AMAX_OF_THE_ROW = """\
        for c in pl.pipeline(LORA // QUANT_CHUNK, stage=2):
            n0 = c * QUANT_CHUNK
            chunk_max ="""
BLANK_OVERLAY = """\
            overlay[r * TOKENS : r * TOKENS + TOKENS, 0:HEAD_DIM] = blank
"""

# All three forms splice these stages.
SHARED = (
    fault(SWA, "no_sink", "total = pl.add(running_sum, sink_weight)", "total = running_sum", "no logit takes no share"),
    fault(
        SWA,
        "softmax_scale",
        "pl.mul(products, SOFTMAX_SCALE)",
        "pl.mul(products, SOFTMAX_SCALE * 1.01)",
        "scores are 1 % too large",
    ),
    fault(
        SWA,
        "probabilities_cut",
        'rounded = pl.cast(weights, pl.BF16, mode="rint")',
        'rounded = pl.cast(weights, pl.BF16, mode="trunc")',
        "probabilities are cut towards zero",
    ),
    fault(
        SWA,
        "sum_of_rounded_probabilities",
        """        block_sum[row : row + HEAD_BATCH, 0:1] = pl.row_sum(weights)
        rounded = pl.cast(weights, pl.BF16, mode="rint")
""",
        """        rounded = pl.cast(weights, pl.BF16, mode="rint")
        block_sum[row : row + HEAD_BATCH, 0:1] = pl.row_sum(pl.cast(rounded, pl.FP32))
""",
        "the denominator is that of the unrounded probabilities",
    ),
    fault(SWA, "key_half_as_values", VALUES, KEY_HALF_AS_VALUES, "half of a row serves as all values"),
    fault(
        SWA,
        "sum_not_rescaled",
        "pl.mul(old_weight, running_sum)",
        "running_sum",
        "the running sum keeps an old maximum",
    ),
    fault(
        SWA,
        "output_not_rescaled",
        "old_part = pl.row_expand_mul(out, pl.reshape(old_weight, [HEAD_TILE, 1]))",
        "old_part = out",
        "the running output keeps an old maximum",
    ),
    fault(
        SWA,
        "block_not_rescaled",
        "next_part = pl.row_expand_mul(next_out, pl.reshape(next_weight, [HEAD_TILE, 1]))",
        "next_part = next_out",
        "a block counts as if it held the maximum",
    ),
    fault(
        SWA,
        "second_block_not_merged",
        "for k in pl.range(1, blocks):",
        "for k in pl.range(1, blocks - 1):",
        "the overlay is computed and never merged, as once in the reference",
    ),
    fault(SWA, "rotated_forward", BACK, FORTH, "the values are rotated on instead of back"),
    fault(SWA, "rotated_by_halves", LANES, HALVES, "pairs are neighbours, not halves apart"),
    fault(
        SWA,
        "rope_row_of_another_token",
        "cos = pl.cast(freqs_cos[t : t + 1, 0:ROPE_HALF], pl.FP32)",
        "cos = pl.cast(freqs_cos[0:1, 0:ROPE_HALF], pl.FP32)",
        "every token is rotated by the first one's cosines",
    ),
    fault(
        SWA,
        "packed_by_token",
        "packed0 = (group * T + t) * GROUP_HEADS",
        "packed0 = (t * O_GROUPS + group) * GROUP_HEADS",
        "tokens and groups are exchanged",
    ),
    fault(
        SWA,
        "bf16_o_r",
        "o_r[0:T, n0 : n0 + LORA_COLS] = acc",
        'o_r[0:T, n0 : n0 + LORA_COLS] = pl.cast(pl.cast(acc, pl.BF16, mode="rint"), pl.FP32)',
        "rounded before it is quantised",
        "o_r",
    ),
    fault(SWA, "scale_of_the_whole_row", AMAX, AMAX_OF_THE_ROW, "one scale for all groups of a token", "o_scale"),
    fault(
        SWA,
        "scale_of_another_group",
        "o_scale[t0 : t0 + TOKENS, group : group + 1])",
        "o_scale[t0 : t0 + TOKENS, O_GROUPS - 1 - group : O_GROUPS - group])",
        "a group is scaled as another",
    ),
    fault(SWA, "codes_trunc", RINT_INT32, 'pl.INT32, mode="trunc")', "codes are cut towards zero", "o_codes"),
    fault(SWA, "codes_floor", RINT_INT32, 'pl.INT32, mode="floor")', "codes are cut downwards", "o_codes"),
    fault(
        SWA,
        "codes_hop_missing",
        'pl.cast(pl.cast(scaled, pl.INT32, mode="rint"), pl.FP16, mode="round")',
        'pl.cast(scaled, pl.FP16, mode="rint")',
        "without the integer hop the last cast truncates",
        "o_codes",
    ),
    fault(
        SWA, "quantises_with_128", "value=INT8_SCALE_MAX", "value=128.0", "the largest code wraps to -128", "o_codes"
    ),
    fault(
        SWA,
        "no_amax_floor",
        "value=INT8_AMAX_EPS",
        "value=0.0",
        "127/0 for a token that sees nothing",
        "o_scale",
        cases=("counts",),
    ),
    fault(
        SWA,
        "dropped_group",
        "for group in pl.pipeline(O_GROUPS, stage=2):",
        "for group in pl.pipeline(O_GROUPS - 1, stage=2):",
        "the last group of heads is not added",
    ),
    fault(
        SWA,
        "dropped_projection_chunk",
        "pl.pipeline(1, O_GROUP_IN // PROJECT_CHUNK, stage=2)",
        "pl.pipeline(1, O_GROUP_IN // PROJECT_CHUNK - 1, stage=2)",
        "the last channels of a group are not projected",
    ),
    fault(
        SWA,
        "dropped_columns",
        "pl.spmd(T // TOKENS * OUT_BLOCKS,",
        "pl.spmd(T // TOKENS * OUT_BLOCKS - 1,",
        "the last columns are never written",
    ),
    fault(
        SWA,
        "out_trunc",
        'pl.cast(out, pl.BF16, mode="rint")',
        'pl.cast(out, pl.BF16, mode="trunc")',
        "the output is cut towards zero",
    ),
)

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

WRITE_LOOP = """\
        for i in pl.range(TOKENS):
            t = block * TOKENS + i
            row ="""
FIVE_ROWS = """\
        for i in pl.range(TOKENS - 3):
            t = block * TOKENS + i
            row ="""
SPARSE_SWA = "    decode_sparse_attn_swa_inline(\n        q,"
EARLY_WRITE = "    write_back(kv, x_normed, ori_slot_mapping, kv_cache)\n" + SPARSE_SWA

LAYERS = (
    fault(
        LAYER_SWA,
        "write_back_of_some_tokens",
        WRITE_LOOP,
        FIVE_ROWS,
        "three of eight rows are missing, which the reference's gate lets pass",
        "kv_cache",
    ),
    fault(
        LAYER_SWA,
        "wrong_ring_slot",
        "pl.read(ori_slot_mapping, [t])",
        "pl.read(ori_slot_mapping, [(t + 1) % T])",
        "each row lands where the next belongs",
        "kv_cache",
        cases=("default", "unstored_rows"),
    ),
    fault(
        LAYER_SWA,
        "unmapped_row_written",
        "            if row >= 0:\n",
        "            if row >= -1:\n",
        "-1 means do not write",
        "kv_cache",
        cases=("unstored_rows",),
        fault="negative slice bound",
    ),
    fault(
        LAYER_SWA,
        "early_write_back",
        SPARSE_SWA,
        EARLY_WRITE,
        "the first token sees the row of the second, as before the overlay was there",
        "x_out",
        deployment=MTP,
        cases=("window_edges",),
    ),
    fault(
        LAYER_SWA,
        "rounded_write_back",
        "ring[row : row + 1, GUARD:HEAD_DIM] = kv[t : t + 1, GUARD:HEAD_DIM]",
        "ring[row : row + 1, GUARD:HEAD_DIM] = kv[t : t + 1, 0 : HEAD_DIM - GUARD]",
        "columns are shifted",
        "kv_cache",
    ),
    fault(
        LAYER_SWA,
        "stale_ring_row",
        "if u <= s:",
        "if u < s:",
        "a token sees the row that its own is about to replace",
        "win_bias",
    ),
    fault(
        LAYER_SWA,
        "future_token_visible",
        "token + 1.0",
        "token + 2.0",
        "the overlay row of the next token is seen",
        "win_bias",
        deployment=MTP,
    ),
    fault(
        LAYER_SWA,
        "overlay_of_other_requests",
        "first = pl.cast(t - t % S, pl.FP32)",
        "first = pl.cast(t % S, pl.FP32)",
        "rows of the requests before are seen",
        "win_bias",
    ),
    fault(
        LAYER_SWA,
        "row_without_a_position_visible",
        "position + 1.0",
        "position + 2.0",
        "the ring row behind the last position is seen",
        "win_bias",
        cases=("first_tokens",),
    ),
    fault(
        LAYER_SWA,
        "bias_polarity",
        "pl.mul(pl.sub(ring, 1.0), MASKED)",
        "pl.mul(ring, -MASKED)",
        "what a token sees is hidden",
        "win_bias",
    ),
    fault(
        LAYER_SWA,
        "one_rope_row_per_request",
        "p = pl.cast(pl.read(position_ids, [t]), pl.INDEX)",
        "p = pl.cast(pl.read(position_ids, [t - t % S]), pl.INDEX)",
        "the second token is rotated at the position of the first",
        "rope_cos",
        deployment=MTP,
    ),
    fault(
        LAYER_SWA,
        "projected_before_the_norm",
        "        x_normed, wq_a,",
        "        x_mixed, wq_a,",
        "query and KV are projected from x_mixed",
        "x_out",
    ),
    fault(
        LAYER_HCA,
        "uncommitted_slot_visible",
        "pl.min((position + 1) // RATIO, length // RATIO)",
        "(position + 1) // RATIO",
        "a slot closed by an uncommitted token is seen",
        "cmp_sparse_indices",
        cases=("uncommitted",),
        deployment=MTP,
    ),
    fault(
        LAYER_HCA,
        "future_slot_visible",
        "pl.min((position + 1) // RATIO, length // RATIO)",
        "length // RATIO",
        "the first token sees the slot that the second closes",
        "cmp_sparse_indices",
        cases=("window_edges",),
        deployment=MTP,
    ),
    fault(
        LAYER_HCA,
        "newest_slot_late",
        "(position + 1) // RATIO",
        "position // RATIO",
        "a slot closed in this step is seen in the next",
        "cmp_sparse_indices",
        cases=("all_close",),
    ),
    fault(
        LAYER_HCA,
        "slots_not_shifted_by_the_step",
        "end = pl.cast(S + slots, pl.FP32)",
        "end = pl.cast(slots, pl.FP32)",
        "compressed columns start behind those of this step",
        "cmp_sparse_indices",
    ),
    fault(
        LAYER_HCA,
        "future_token_visible",
        "seen = pl.cast(t % S + 1, pl.FP32)",
        "seen = pl.cast(S, pl.FP32)",
        "the overlay row of the next token is seen",
        "cmp_sparse_indices",
        deployment=MTP,
    ),
    fault(
        LAYER_HCA,
        "overlay_missing",
        "seen = pl.cast(t % S + 1, pl.FP32)",
        "seen = pl.cast(t % S, pl.FP32)",
        "a token does not see its own row",
        "cmp_sparse_indices",
    ),
    fault(
        LAYER_HCA,
        "compressed_row_rotated_at_its_end",
        "p = position - position % ratio",
        "p = position",
        "the row is rotated at the position that closes it",
        "cmp_kv",
        cases=("all_close",),
    ),
    fault(
        LAYER_HCA,
        "compressed_before_the_norm",
        "pl.reshape(x_normed, [B, S, D])",
        "pl.reshape(x_mixed, [B, S, D])",
        "the compressor takes x_mixed",
        "compress_state",
    ),
    fault(
        LAYER_HCA,
        "stale_window_row",
        "if u <= s:",
        "if u < s:",
        "a token sees the ring row that its own is about to replace",
        "cmp_sparse_indices",
        part=LAYER_SWA,
    ),
    fault(
        LAYER_CSA,
        "stale_overlay",
        "if u <= s:",
        "if u < s:",
        "a token sees the ring row that its own is about to replace",
        "cmp_sparse_indices",
    ),
    fault(
        LAYER_CSA,
        "row_without_a_position_visible",
        "position + 1.0",
        "position + 2.0",
        "the ring row behind the last position is seen",
        "cmp_sparse_indices",
        cases=("first_tokens",),
    ),
    fault(
        LAYER_CSA,
        "overlay_of_the_first_token",
        "pl.cast(WIN + u, pl.FP32)",
        "pl.cast(1.0 * WIN, pl.FP32)",
        "the second token of a step reads the row of the first twice",
        "cmp_sparse_indices",
        deployment=MTP,
    ),
    fault(
        LAYER_CSA,
        "offset_without_the_step",
        "        FIRST_SLOT,\n    )",
        "        WIN,\n    )",
        "the indexer numbers slots from WIN on",
        "topk_idxs",
    ),
    fault(
        LAYER_CSA,
        "first_slot_lost",
        "pl.add(raw, 1.0 - FIRST_SLOT)",
        "pl.add(raw, 0.0 - FIRST_SLOT)",
        "slot 0 is taken for a window row",
        "cmp_sparse_indices",
    ),
    fault(
        LAYER_CSA,
        "newest_slot_late",
        "pl.mul(pl.add(position, 1.0), RATIO_INV)",
        "pl.mul(position, RATIO_INV)",
        "a slot closed in this step is seen in the next",
        "cmp_sparse_indices",
        cases=("all_close",),
    ),
    fault(
        LAYER_CSA,
        "block_mask_of_full_blocks",
        "pl.row_max(keep)",
        "pl.row_min(keep)",
        "a block counts only when all of its lanes are named",
        "valid_block_mask",
    ),
    fault(
        LAYER_CSA,
        "window_block_masked",
        "held = pl.full([TOKENS, 1], dtype=pl.INT32, value=1)",
        "held = pl.full([TOKENS, 1], dtype=pl.INT32, value=0)",
        "the window is skipped",
        "valid_block_mask",
    ),
    fault(
        LAYER_CSA,
        "inner_row_rotated_at_the_token",
        "        cmp_cos,\n        cmp_sin,\n        hadamard_idx,",
        "        idx_cos,\n        idx_sin,\n        hadamard_idx,",
        "the new key is rotated three positions too far, as in July",
        "idx_kv_cache",
        cases=("all_close",),
    ),
    fault(
        LAYER_CSA,
        "query_rotated_at_the_group",
        "        idx_cos,\n        idx_sin,\n        cmp_cos,",
        "        cmp_cos,\n        cmp_sin,\n        cmp_cos,",
        "the query is rotated at the start of its group",
        "q_codes",
    ),
    fault(
        LAYER_CSA,
        "indexed_before_the_norm",
        "x_normed_rows = pl.reshape(x_normed, [B, S, D])",
        "x_normed_rows = pl.reshape(x_mixed, [B, S, D])",
        "compressors and indexer take x_mixed",
        "compress_state",
    ),
    fault(
        LAYER_CSA,
        "bottom_k",
        "sort_descending(score[t : t + 1, first : first + SORT_COLS], first)",
        "sort_descending(pl.neg(score[t : t + 1, first : first + SORT_COLS]), first)",
        "the worst candidates are selected",
        "topk_idxs",
        cases=("topk_edge", "last_positions"),
        part="decode_indexer",
    ),
    fault(
        LAYER_CSA,
        "write_back_of_some_tokens",
        WRITE_LOOP,
        FIVE_ROWS,
        "three of eight rows are missing",
        "kv_cache",
        part=LAYER_SWA,
    ),
)

FAULTS = (*SHARED, *WINDOW, *GATHERED, *LAYERS)
