"""The histogram of distances in units of the last place, and its percentiles."""

from __future__ import annotations

import math

import numpy as np

from harness.metrics.figures import Array

# The histogram of distances has one bin per float32 with 8 fraction bits: exact below 512, then within 0.4 %.
_BIN_SHIFT = 15
_FIRST_BIN = 127 << 8
BINS = (192 << 8) - _FIRST_BIN + 1


def add_distances(histogram: Array, distance: Array) -> None:
    """Count distances above 0. Bin 0 is left out: it is what remains."""
    histogram[1] += np.count_nonzero(distance == 1)
    rest = distance[distance > 1]
    if rest.size:
        bins = (rest.astype(np.float32).view(np.int32) >> _BIN_SHIFT) - _FIRST_BIN + 1
        histogram += np.bincount(bins, minlength=BINS)


def percentile(histogram: Array, finite: int, largest: int, percent: float) -> int:
    """The distance of the nearest rank among `finite` elements, as the upper end of its bin; at most `largest`."""
    if not finite:
        return 0
    cumulative = finite - int(histogram[1:].sum()) + np.cumsum(histogram[1:])
    rank = math.ceil(percent / 100 * finite)
    if finite - int(histogram[1:].sum()) >= rank:
        return 0
    above = int(np.searchsorted(cumulative, rank)) + 1  # the bin after the one that reaches the rank
    edge = np.array((above + _FIRST_BIN) << _BIN_SHIFT, np.int32).view(np.float32)
    return min(largest, math.ceil(float(edge)) - 1)
