"""Sizes that the operators of this repository share."""

from kernels.sizes import HC_MULT, RMS_EPS, D

ROWS = 8
EPSILON = RMS_EPS
HIDDEN = D
STREAMS = HC_MULT
