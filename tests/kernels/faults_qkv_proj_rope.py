"""Faults of qkv_proj_rope: the pitfalls of contracts/dense.md 7.7."""

from __future__ import annotations

from fault import RINT_INT32, Fault

ROTATE = """\
    new_even = pl.cast(pl.sub(pl.mul(even, cos), pl.mul(odd, sin)), pl.BF16, mode="rint")
    new_odd = pl.cast(pl.add(pl.mul(even, sin), pl.mul(odd, cos)), pl.BF16, mode="rint")
"""
ROTATE_BACK = """\
    new_even = pl.cast(pl.add(pl.mul(even, cos), pl.mul(odd, sin)), pl.BF16, mode="rint")
    new_odd = pl.cast(pl.sub(pl.mul(odd, cos), pl.mul(even, sin)), pl.BF16, mode="rint")
"""
INTERLEAVE = """\
    blank = pl.full([TOKENS, ROPE_DIM], dtype=pl.BF16, value=0.0)
    half_filled = pl.tensor.scatter(new_even, mask_pattern=pl.tile.MaskPattern.P0101, dst=blank)
    return pl.tensor.scatter(new_odd, mask_pattern=pl.tile.MaskPattern.P1010, dst=half_filled)
"""
SPLIT_HALVES = """\
    return pl.concat(new_even, new_odd)
"""
LAST_KV = """\
        last_normed = pl.col_expand_mul(pl.row_expand_mul(last, inv_rms), last_gamma)
        rotated = rotate(last_normed, cos, sin)
        kv[t0 : t0 + TOKENS, NOPE_DIM:HEAD_DIM] = rotated
"""
LAST_KV_GAMMA_AFTER = """\
        last_normed = pl.row_expand_mul(last, inv_rms)
        turned = rotate(last_normed, cos, sin)
        weighted = pl.col_expand_mul(pl.cast(turned, pl.FP32), last_gamma)
        kv[t0 : t0 + TOKENS, NOPE_DIM:HEAD_DIM] = pl.cast(weighted, pl.BF16, mode="rint")
"""

HEAD_OFFSETS = """\
        nope0 = block % N_HEADS * HEAD_DIM
        rope0 = nope0 + NOPE_DIM
"""
ROTARY_LANES_FIRST = """\
        rope0 = block % N_HEADS * HEAD_DIM
        nope0 = rope0 + ROPE_DIM
"""
HEAD_LOADS = """\
            nope = query[t0 : t0 + TOKENS, nope0 : nope0 + NOPE_DIM]
            rope = query[t0 : t0 + TOKENS, rope0 : rope0 + ROPE_DIM]
"""
HEADS_INNERMOST = """\
            h = block % N_HEADS
            by_lane = pl.reshape(query[t0 : t0 + TOKENS, 0:Q_COLS], [TOKENS * HEAD_DIM, N_HEADS])
            by_head = pl.transpose(by_lane, 0, 1)
            head = pl.reshape(by_head[h : h + 1, 0 : TOKENS * HEAD_DIM], [TOKENS, HEAD_DIM])
            nope = head[0:TOKENS, 0:NOPE_DIM]
            rope = head[0:TOKENS, NOPE_DIM:HEAD_DIM]
"""
PAIRS = """\
    even = pl.gather(lanes, mask_pattern=pl.tile.MaskPattern.P0101)
    odd = pl.gather(lanes, mask_pattern=pl.tile.MaskPattern.P1010)
"""
PAIRS_OF_HALVES = """\
    even = lanes[0:TOKENS, 0:ROPE_HALF]
    odd = lanes[0:TOKENS, ROPE_HALF:ROPE_DIM]
"""
ALL_HEADS = "query[t0 : t0 + TOKENS, 0:Q_COLS]"

FAULTS = (
    Fault(
        op="qkv_proj_rope",
        name="query_rounded_before_int8",
        before="q_normed[t0 : t0 + TOKENS, n0 : n0 + Q_NORM_CHUNK] = normed",
        after=(
            "q_normed[t0 : t0 + TOKENS, n0 : n0 + Q_NORM_CHUNK] = pl.cast(\n"
            '                pl.cast(normed, pl.BF16, mode="rint"), pl.FP32\n'
            "            )"
        ),
        output="qr",
        why="rounded twice on the way to INT8: 3 % of the codes move, all by one",
    ),
    Fault(
        op="qkv_proj_rope",
        name="quantise_trunc",
        before=RINT_INT32,
        after='pl.INT32, mode="trunc")',
        output="qr",
        why="half of the codes are one too small, all within one step",
    ),
    Fault(
        op="qkv_proj_rope",
        name="quantise_floor",
        before=RINT_INT32,
        after='pl.INT32, mode="floor")',
        output="qr",
        why="half of the codes are one too small, all within one step",
    ),
    Fault(
        op="qkv_proj_rope",
        name="quantise_hop_missing",
        before='pl.cast(pl.cast(scaled, pl.INT32, mode="rint"), pl.FP16, mode="round")',
        after='pl.cast(scaled, pl.FP16, mode="rint")',
        output="qr",
        why="without the integer hop the last cast truncates",
    ),
    Fault(
        op="qkv_proj_rope",
        name="quantises_with_128",
        before="value=INT8_SCALE_MAX",
        after="value=128.0",
        output="qr",
        why="the largest value of a row wraps to -128",
    ),
    Fault(
        op="qkv_proj_rope",
        name="scale_not_inverted",
        before="pl.reshape(pl.recip(gain), [TOKENS, 1])",
        after="gain_column",
        output="qr_scale",
        why="the quantising scale is written instead of the dequantising one",
    ),
    Fault(
        op="qkv_proj_rope",
        name="low_precision_rsqrt",
        before="pl.recip(pl.sqrt(pl.add(mean_square, RMS_EPS)))",
        after="pl.rsqrt(pl.add(mean_square, RMS_EPS))",
        output="q",
        why="the approximate instruction: a fifth of q moves by a bit",
    ),
    Fault(
        op="qkv_proj_rope",
        name="query_head_rounded",
        before="query[t0 : t0 + TOKENS, n0 : n0 + DEQUANT_COLS] = by_column",
        after=(
            "query[t0 : t0 + TOKENS, n0 : n0 + DEQUANT_COLS] = pl.cast(\n"
            '            pl.cast(by_column, pl.BF16, mode="rint"), pl.FP32\n'
            "        )"
        ),
        output="q",
        why="a BF16 hop before the norm of the head",
    ),
    Fault(
        op="qkv_proj_rope",
        name="rounded_before_rotation",
        before="rope_normed = pl.row_expand_mul(rope, inv_once)",
        after='rope_normed = pl.cast(pl.cast(pl.row_expand_mul(rope, inv_once), pl.BF16, mode="rint"), pl.FP32)',
        output="q",
        why="a BF16 hop between the norm and the rotation",
    ),
    Fault(
        op="qkv_proj_rope",
        name="rotates_backwards",
        before=ROTATE,
        after=ROTATE_BACK,
        output="kv",
        why="the sign is on the other lane of a pair",
    ),
    Fault(
        op="qkv_proj_rope",
        name="split_halves",
        before=INTERLEAVE,
        after=SPLIT_HALVES,
        output="q",
        why="even lanes first, odd lanes second, instead of interleaved pairs",
    ),
    Fault(
        op="qkv_proj_rope",
        name="rope_trunc",
        before='pl.mul(odd, cos)), pl.BF16, mode="rint")',
        after='pl.mul(odd, cos)), pl.BF16, mode="trunc")',
        output="q",
        why="odd rotated lanes are cut towards zero",
    ),
    Fault(
        op="qkv_proj_rope",
        name="second_half_of_the_tables",
        before="rope_sin[t0 : t0 + TOKENS, 0:ROPE_HALF]",
        after="rope_sin[t0 : t0 + TOKENS, ROPE_HALF:ROPE_DIM]",
        occurs=2,
        nth=1,
        output="q",
        why="only the first half of a table row holds the angles",
    ),
    Fault(
        op="qkv_proj_rope",
        name="gamma_after_rotation",
        before=LAST_KV,
        after=LAST_KV_GAMMA_AFTER,
        output="kv",
        why="gamma is per lane and does not commute; invisible with gamma = 1",
    ),
    Fault(
        op="qkv_proj_rope",
        name="kv_gamma_dropped_from_rope",
        before="last_normed = pl.col_expand_mul(pl.row_expand_mul(last, inv_rms), last_gamma)",
        after="last_normed = pl.row_expand_mul(last, inv_rms)",
        output="kv",
        why="gamma counts for NOPE and rope lanes alike",
    ),
    Fault(
        op="qkv_proj_rope",
        name="head_sum_misses_rope",
        before="pl.add(nope_sum, rope_sum)",
        after="nope_sum",
        output="q",
        why="the RMS of a head is over all its lanes",
    ),
    Fault(
        op="qkv_proj_rope",
        name="column_scale_of_the_first_head",
        before="column_scale[0:1, n0 : n0 + DEQUANT_COLS]",
        after="column_scale[0:1, 0:DEQUANT_COLS]",
        output="q",
        why="every column block is scaled as the first",
    ),
    Fault(
        op="qkv_proj_rope",
        name="column_before_token_scale_missing",
        before="pl.row_expand_mul(q_acc, qr_scale[t0 : t0 + TOKENS, 0:1])",
        after="q_acc",
        output="q",
        why="without the scale of the token the head's epsilon means something else",
        cases=("tiny_gamma",),
    ),
    Fault(
        op="qkv_proj_rope",
        name="no_rms_epsilon",
        before="pl.add(mean_square, RMS_EPS)",
        after="pl.add(mean_square, 0.0)",
        output="kv",
        why="1/0 for a row of zeros",
        cases=("zero_rows",),
    ),
    Fault(
        op="qkv_proj_rope",
        name="no_amax_floor",
        before="value=INT8_AMAX_EPS",
        after="value=0.0",
        output="qr_scale",
        why="a row of zeros has no scale",
        cases=("zero_rows", "tiny_gamma"),
    ),
    Fault(
        op="qkv_proj_rope",
        name="low_rank_mean_over_wrong_count",
        before="Q_LORA_INV = 1.0 / Q_LORA",
        after="Q_LORA_INV = 1.0 / D",
        output="qr_scale",
        why="the mean is over the low-rank channels",
    ),
    Fault(
        op="qkv_proj_rope",
        name="dropped_query_slice",
        before="return pl.add(low, high)",
        after="return pl.add(low, low)",
        output="qr",
        why="half of the input channels stand in for the others",
    ),
    Fault(
        op="qkv_proj_rope",
        name="dropped_kv_slice",
        before="for k in pl.range(1, KV_SLICES):",
        after="for k in pl.range(1, KV_SLICES - 1):",
        output="kv",
        why="the last partial product is not added",
    ),
    Fault(
        op="qkv_proj_rope",
        name="dropped_code_chunk",
        before="pl.pipeline(1, Q_LORA // Q_UP_CHUNK, stage=2)",
        after="pl.pipeline(1, Q_LORA // Q_UP_CHUNK - 1, stage=2)",
        output="q",
        why="the second projection misses the last codes",
    ),
    Fault(
        op="qkv_proj_rope",
        name="dropped_head",
        before="pl.spmd(TILES * N_HEADS,",
        after="pl.spmd(TILES * N_HEADS - 1,",
        output="q",
        why="the last head of the last tokens is never written",
    ),
    Fault(
        op="qkv_proj_rope",
        name="tables_of_the_first_tokens",
        before="rope_cos[t0 : t0 + TOKENS, 0:ROPE_HALF]",
        after="rope_cos[0:TOKENS, 0:ROPE_HALF]",
        occurs=2,
        nth=2,
        output="kv",
        why="every token tile is rotated as the first",
        deployment="prefill",
    ),
    Fault(
        op="qkv_proj_rope",
        name="no_rms_epsilon_on_heads",
        before="pl.add(mean_square, RMS_EPS)",
        after="pl.add(mean_square, 0.0)",
        output="q",
        why="heads around the epsilon are blown up; invisible with scales of any ordinary size",
        cases=("tiny_scales",),
    ),
    Fault(
        op="qkv_proj_rope",
        name="low_precision_rsqrt_on_kv",
        before="pl.recip(pl.sqrt(pl.add(mean_square, RMS_EPS)))",
        after="pl.rsqrt(pl.add(mean_square, RMS_EPS))",
        output="kv",
        why="the approximate instruction: 1/rms is wrong by up to 2^-12",
        deployment="prefill",
    ),
    Fault(
        op="qkv_proj_rope",
        name="table_column_of_the_lane",
        before="cos = pl.cast(rope_cos[t0 : t0 + TOKENS, 0:ROPE_HALF], pl.FP32)",
        after=(
            "cos = pl.gather(\n"
            "            pl.cast(rope_cos[t0 : t0 + TOKENS, 0:ROPE_DIM], pl.FP32),\n"
            "            mask_pattern=pl.tile.MaskPattern.P0101,\n"
            "        )"
        ),
        occurs=2,
        nth=1,
        output="q",
        why="lane j reads column j of a table row, not j >> 1; the same with the second half a copy of the first",
        cases=("default", "attention_base"),
    ),
    Fault(
        op="qkv_proj_rope",
        name="pairs_of_halves",
        before=PAIRS,
        after=PAIRS_OF_HALVES,
        output="kv",
        why="lane i is paired with i + 32, as other models do, instead of its neighbour",
    ),
    Fault(
        op="qkv_proj_rope",
        name="first_lanes_rotate",
        before=HEAD_OFFSETS,
        after=ROTARY_LANES_FIRST,
        output="q",
        why="the rotary lanes are the last of a head",
    ),
    Fault(
        op="qkv_proj_rope",
        name="heads_innermost",
        before=HEAD_LOADS,
        after=HEADS_INNERMOST,
        output="q",
        why="columns of wq_b are head after head, not lane after lane",
    ),
    Fault(
        op="qkv_proj_rope",
        name="column_scale_per_head",
        before="pl.col_expand_mul(by_token, column_scale[0:1, n0 : n0 + DEQUANT_COLS])",
        after="pl.mul(by_token, pl.read(column_scale, [0, n0 // HEAD_DIM]))",
        output="q",
        why="every column has a scale of its own",
    ),
    Fault(
        op="qkv_proj_rope",
        name="rms_over_all_heads",
        before="pl.add(nope_sum, rope_sum)",
        after=f"pl.mul(pl.row_sum(pl.mul({ALL_HEADS}, {ALL_HEADS})), 1.0 / N_HEADS)",
        output="q",
        why="the RMS is that of each head",
    ),
    Fault(
        op="qkv_proj_rope",
        name="kv_rounded_before_norm",
        before="normed = pl.col_expand_mul(pl.row_expand_mul(again, inv_rms), gamma)\n            kv[",
        after=(
            'rounded = pl.cast(pl.cast(again, pl.BF16, mode="rint"), pl.FP32)\n'
            "            normed = pl.col_expand_mul(pl.row_expand_mul(rounded, inv_rms), gamma)\n            kv["
        ),
        output="kv",
        why="a BF16 hop of the projection",
    ),
    Fault(
        op="qkv_proj_rope",
        name="unprojected_rows",
        before="pl.spmd(BOXES * Q_UP_GROUPS,",
        after="pl.spmd((BOXES - 1) * Q_UP_GROUPS,",
        output="q",
        why="the last row box is never projected",
        deployment="prefill",
    ),
)
