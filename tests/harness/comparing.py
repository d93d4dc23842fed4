"""Comparators at plain limits, and two tensors judged by one."""

import torch

from harness.compare import Close, Codes, Exact, Output, Ulp

EXACT = Exact()
CLOSE = Close(rtol=0.0, atol=0.5, over_fraction=0.0, over_points=0)
ULP = Ulp(max_ulp=1, atol_rms=0.0, differing_fraction=0.5, differing_points=0)
CODES = Codes(max_step=1, step_fraction=0.5, step_points=0, bias_z=6.0)


def judge(comparator, actual, expected, dtype=None, **known):
    tensors = [torch.as_tensor(t) if dtype is None else torch.as_tensor(t).to(dtype) for t in (actual, expected)]
    return comparator.judge(Output(*tensors, **known))


def bf16(*bits):
    return torch.tensor(bits, dtype=torch.int16).view(torch.bfloat16)
