"""Faults of decode_indexer_compressor. Contract: decode_compressor_indexer.md, 4.7."""

from __future__ import annotations

from fault import Fault
from faults_compressor import INNER, SCATTER_THEN_POOL, swapped

SCATTER_THEN_POOL_INNER = SCATTER_THEN_POOL.replace("state_slot_mapping", "inner_state_slot_mapping")
ROTATED_THEN_MIXED = """\
    normalise(pooled_rows, norm_w, IDX_HEAD_DIM_INV, cos, sin, rotated_rows)
    mix_by_hadamard(rotated_rows, hadamard, mixed_rows)
"""
MIXED_THEN_ROTATED = """\
    mix_by_hadamard(pooled_rows, hadamard, rotated_rows)
    normalise(rotated_rows, norm_w, IDX_HEAD_DIM_INV, cos, sin, mixed_rows)
"""

FAULTS = (
    Fault(
        op=INNER,
        name="pooled_before_the_scatter",
        before=SCATTER_THEN_POOL_INNER,
        after=swapped(SCATTER_THEN_POOL_INNER),
        output="kv",
        why="the row of the token that closes the block is not there yet",
    ),
    Fault(
        op=INNER,
        name="no_hadamard",
        before="store(mixed_rows,",
        after="store(rotated_rows,",
        output="kv",
        why="keys and queries are compared after the rotation",
    ),
    Fault(
        op=INNER,
        name="hadamard_from_the_left",
        before=(
            "hadamard[0:IDX_HEAD_DIM, n0 : n0 + HADAMARD_COLS]\n"
            "        mixed[b0 : b0 + BOX, n0 : n0 + HADAMARD_COLS] = pl.matmul(rounded, columns, out_dtype=pl.FP32)"
        ),
        after=(
            "hadamard[n0 : n0 + HADAMARD_COLS, 0:IDX_HEAD_DIM]\n"
            "        product = pl.matmul(rounded, columns, out_dtype=pl.FP32, b_trans=True)\n"
            "        mixed[b0 : b0 + BOX, n0 : n0 + HADAMARD_COLS] = product"
        ),
        output="kv",
        why="a row of the matrix is an input lane; invisible in a symmetric one",
        cases=("random_rotation",),
    ),
    Fault(
        op=INNER,
        name="truncated_before_the_hadamard",
        before='pl.BF16, mode="rint")',
        after='pl.BF16, mode="trunc")',
        output="kv",
        why="the row is rounded to nearest",
    ),
    Fault(
        op=INNER,
        name="mean_over_the_rotary_lanes",
        before="normalise(pooled_rows, norm_w, IDX_HEAD_DIM_INV,",
        after="normalise(pooled_rows, norm_w, 1.0 / ROPE_DIM,",
        output="kv",
        why="the mean is over the width of the head",
    ),
    Fault(
        op=INNER,
        name="stored_at_the_state_slot",
        before="idx_slot_mapping, RATIO, kv_rows",
        after="inner_state_slot_mapping, RATIO, kv_rows",
        output="idx_kv_cache",
        why="a pool has a mapping of its own",
    ),
    Fault(
        op=INNER,
        name="hadamard_before_the_rotation",
        before=ROTATED_THEN_MIXED,
        after=MIXED_THEN_ROTATED,
        output="kv",
        why="the matrix mixes lanes that are already rotated",
    ),
)
