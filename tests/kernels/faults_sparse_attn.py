"""Faults of the stages that all three forms of sparse attention have in common (decode_attention.md 2.7, 3.7, 4.7)."""

from __future__ import annotations

from attention_faults import CSA, HCA, SWA, fault
from fault import RINT_INT32

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
ONE_BLOCK = """\
        score_max = pl.row_max(scores)
        weights = pl.exp(pl.row_expand_sub(scores, score_max))
        block_max[row : row + HEAD_BATCH, 0:1] = score_max
        block_sum[row : row + HEAD_BATCH, 0:1] = pl.row_sum(weights)
        rounded = pl.cast(weights, pl.BF16, mode="rint")
        block_out[row : row + HEAD_BATCH, 0:HEAD_DIM] = pl.matmul(rounded, kv_rows, out_dtype=pl.FP32)
"""
TWO_HALVES = """\
        left_scores = pl.slice(scores, [HEAD_BOX, KEYS // 2], [0, 0], valid_shape=[HEAD_BATCH, KEYS // 2])
        right_scores = pl.slice(scores, [HEAD_BOX, KEYS // 2], [0, KEYS // 2], valid_shape=[HEAD_BATCH, KEYS // 2])
        left_max = pl.row_max(left_scores)
        right_max = pl.row_max(right_scores)
        left_weights = pl.exp(pl.row_expand_sub(left_scores, left_max))
        right_weights = pl.exp(pl.row_expand_sub(right_scores, right_max))
        left_rows = pl.slice(kv_rows, [KEYS // 2, HEAD_DIM], [0, 0])
        right_rows = pl.slice(kv_rows, [KEYS // 2, HEAD_DIM], [KEYS // 2, 0])
        left_out = pl.matmul(pl.cast(left_weights, pl.BF16, mode="rint"), left_rows, out_dtype=pl.FP32)
        right_out = pl.matmul(pl.cast(right_weights, pl.BF16, mode="rint"), right_rows, out_dtype=pl.FP32)
        score_max = pl.maximum(left_max, right_max)
        left = pl.exp(pl.sub(left_max, score_max))
        right = pl.exp(pl.sub(right_max, score_max))
        left_sum = pl.mul(left, pl.row_sum(left_weights))
        right_sum = pl.mul(right, pl.row_sum(right_weights))
        block_max[row : row + HEAD_BATCH, 0:1] = score_max
        block_sum[row : row + HEAD_BATCH, 0:1] = pl.add(left_sum, right_sum)
        block_out[row : row + HEAD_BATCH, 0:HEAD_DIM] = pl.add(
            pl.row_expand_mul(left_out, left), pl.row_expand_mul(right_out, right)
        )
"""

# Planted in the form that the others splice these stages from.
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

# A part of a block, or a tie, lies elsewhere in each form: its rows come from other places.
IN_EVERY_FORM = tuple(
    fault(op, name, before, after, why, output, cases=(case,), part="" if op == SWA else SWA)
    for op in (SWA, HCA, CSA)
    for name, before, after, why, output, case in (
        (
            "codes_half_away",
            RINT_INT32,
            'pl.INT32, mode="round")',
            "ties go away from zero",
            "o_codes",
            "code_ties",
        ),
        (
            "blocks_of_64_rows",
            ONE_BLOCK,
            TWO_HALVES,
            "probabilities are rounded relative to the largest of half a block",
            "o_packed",
            "default",
        ),
    )
)

FAULTS = (*SHARED, *IN_EVERY_FORM)
