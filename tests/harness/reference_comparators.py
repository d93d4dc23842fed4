"""Comparators of the reference repository, by contracts/reference_harness.md 12: for comparison only."""

import torch


def allclose(actual, expected, *, atol, rtol):
    return bool(torch.allclose(actual, expected, atol=atol, rtol=rtol))


def ratio_allclose(actual, expected, *, atol, rtol, ratio):
    a, e = actual.float(), expected.float()
    if not bool(torch.isfinite(a).all()):
        return False
    bad = int(((a - e).abs() > atol + rtol * e.abs()).sum())
    return bad <= round(ratio * a.numel())


def ratio_reldiff(actual, expected, *, diff_thd, pct_thd):
    a, e = actual.float(), expected.float()
    if not bool(torch.isfinite(a).all()):
        return False
    d = (a - e).abs()
    base = torch.maximum(torch.maximum(a.abs(), e.abs()), torch.tensor(2.0**-14 / diff_thd)) + 1e-9
    bad = int((torch.where(d < diff_thd, d, d / base) > diff_thd).sum())
    return bad <= round(pct_thd * a.numel())
