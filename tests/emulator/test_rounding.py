"""Casts of the emulator against a third, table-driven definition (pypto_dsl.md 3.6)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.devices.emulator import rounding

FLOAT_MODES = ("rint", "round", "floor", "ceil", "trunc", "odd")
INT_MODES = ("rint", "round", "floor", "ceil", "trunc")


def fp32_patterns() -> np.ndarray:
    """Every upper half of an FP32 pattern, with the low halves at which a rounding can change and a random one."""
    upper = np.arange(2**16, dtype=np.uint32) << 16
    random = np.random.default_rng(7).integers(0, 2**16, size=(2, 2**16), dtype=np.uint32)
    lows = [np.full(2**16, low, np.uint32) for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0x0FFF, 0x1000, 0x1001, 0xFFFF)]
    return np.concatenate([upper | low for low in (*lows, *random)]).view(np.float32)


def by_table(values: np.ndarray, table: np.ndarray, mode: str) -> np.ndarray:
    """Patterns of a narrow float: `table[p]` is the value of the positive pattern p, its last entry stands for inf.

    The definition itself: find the two neighbours, then choose by distance or direction.
    """
    wide = values.astype(np.float64)
    magnitude, negative = np.abs(wide), np.signbit(wide)
    capped = np.minimum(magnitude, table[-1])
    low = np.searchsorted(table, capped, side="right") - 1
    exact = table[low] == capped
    high = np.minimum(low + 1, len(table) - 1)
    down, up = capped - table[low], table[high] - capped
    choice = {
        "trunc": low,
        "floor": np.where(negative, high, low),
        "ceil": np.where(negative, low, high),
        "odd": np.where(low % 2 == 1, low, high),
        "rint": np.where((up < down) | ((up == down) & (low % 2 == 1)), high, low),
        "round": np.where(up <= down, high, low),
    }[mode]
    # A finite value beyond the last finite pattern is between it and infinity.
    beyond = np.isfinite(wide) & (magnitude > table[-2])
    away = {"trunc": False, "odd": False, "floor": negative, "ceil": ~negative}.get(mode)
    if away is not None:
        choice = np.where(beyond, np.where(away, len(table) - 1, len(table) - 2), choice)
        exact = exact & ~beyond
    choice = np.where(exact, low, choice)
    if table[-1] == 65536.0:  # FP16: from 65520 on infinity in every mode (3.6, out of range)
        choice = np.where(magnitude >= 65520.0, len(table) - 1, choice)
    return np.where(negative, choice | 0x8000, choice)


def fp16_table() -> np.ndarray:
    finite = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    return np.append(finite, 65536.0)


def bf16_table() -> np.ndarray:
    finite = (np.arange(0x7F80, dtype=np.uint32) << 16).view(np.float32).astype(np.float64)
    return np.append(finite, 2.0**128)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("mode", FLOAT_MODES)
@pytest.mark.parametrize(
    ("convert", "table", "nan"),
    [(rounding.fp32_to_bf16, bf16_table, 0x7FC0), (rounding.fp32_to_fp16, fp16_table, 0x7E00)],
    ids=["bf16", "fp16"],
)
def test_accepts_every_upper_pattern_in_every_mode(convert, table, nan, mode):
    values = fp32_patterns()
    got = convert(torch.from_numpy(values), mode).view(torch.int16).numpy().view(np.uint16)
    is_nan = np.isnan(values)
    expected = by_table(np.where(is_nan, 0, values), table(), mode).astype(np.uint16)
    assert values.size == 11 * 2**16
    assert np.array_equal(got[~is_nan], expected[~is_nan])
    assert np.all((got[is_nan] & 0x7FFF) == nan)


@pytest.mark.parametrize(("convert", "dtype"), [
    (rounding.fp32_to_bf16, torch.bfloat16), (rounding.fp32_to_fp16, torch.float16),
])  # fmt: skip
def test_accepts_torch_as_rint(convert, dtype):
    values = torch.from_numpy(fp32_patterns())
    values = values[~values.isnan()]
    assert torch.equal(convert(values, "rint").view(torch.int16), values.to(dtype).view(torch.int16))


def test_default_mode_differs_from_torch_on_a_tie():
    """Section 7, trap 1: half away from zero. 1 + 2^-8 lies between two BF16 values, the even one below."""
    tie = torch.tensor([1.00390625, -1.00390625])
    assert rounding.fp32_to_bf16(tie, "round").tolist() == [1.0078125, -1.0078125]
    assert tie.to(torch.bfloat16).tolist() == [1.0, -1.0]


def to_integer(values: np.ndarray, mode: str, bits: int) -> list[int]:
    """Exact integers in Python, saturated; NaN is 0."""
    wide = values.astype(np.float64)
    whole = np.abs(wide) >= 2**52
    shifted = np.copysign(np.floor(np.abs(wide) + 0.5), wide)
    rounded = {"rint": np.rint, "floor": np.floor, "ceil": np.ceil, "trunc": np.trunc}.get(mode, lambda _: shifted)(
        wide
    )
    rounded = np.where(whole, wide, rounded)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return [
        0 if np.isnan(v) else high if v >= 2.0 ** (bits - 1) else low if v < low else int(v) for v in rounded.tolist()
    ]


def integer_candidates() -> np.ndarray:
    rng = np.random.default_rng(3)
    halves = np.arange(-40, 41, dtype=np.float32) / 4
    large = np.array([2**22, 2**23, 2**24, 2**31, 2**32, 2**40, 2**63, 2**64, 3e38, np.inf, np.nan], np.float32)
    near = np.concatenate([large, np.nextafter(large, np.float32(0)), large - np.float32(0.5)])
    random = (rng.standard_normal(4000) * 10.0 ** rng.uniform(-3, 20, 4000)).astype(np.float32)
    tiny = np.array([0.0, -0.0, 1e-45, 0.49999997, 0.5, 8388607.5, 4194303.5], np.float32)
    return np.concatenate([halves, near, -near, random, tiny, -tiny])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("mode", INT_MODES)
@pytest.mark.parametrize(("convert", "bits"), [(rounding.fp32_to_int32, 32), (rounding.fp32_to_int64, 64)])
def test_accepts_integers_saturated(convert, bits, mode):
    values = integer_candidates()
    assert convert(torch.from_numpy(values), mode).tolist() == to_integer(values, mode, bits)


def rounded_integer(value: int, precision: int, mode: str) -> int:
    """A Python integer rounded to `precision` significant bits."""
    magnitude, negative = abs(value), value < 0
    drop = max(0, magnitude.bit_length() - precision)
    low = magnitude >> drop << drop
    rest, unit = magnitude - low, 1 << drop
    even = (low >> drop) % 2 == 0
    up = {
        "trunc": False,
        "floor": negative,
        "ceil": not negative,
        "round": 2 * rest >= unit,
        "rint": 2 * rest > unit or (2 * rest == unit and not even),
    }[mode]
    result = low + unit if rest and up else low
    return -result if negative else result


@pytest.mark.parametrize("mode", INT_MODES)
def test_accepts_wide_integers_to_fp32(mode):
    rng = np.random.default_rng(5)
    cases = [2**24 + 1, 2**24 + 3, 2**25 + 2, 2**53 + 1, 2**62 + 2**38, 2**63 - 1, -(2**63), -(2**63) + 1, 0, 1, -7]
    cases += [
        int(v) >> int(s) for v, s in zip(rng.integers(-(2**63), 2**63, 3000), rng.integers(0, 60, 3000), strict=True)
    ]
    got = rounding.int_to_fp32(torch.tensor(cases, dtype=torch.int64), mode)
    assert [int(v) for v in got.double().tolist()] == [rounded_integer(v, 24, mode) for v in cases]


@pytest.mark.parametrize("mode", INT_MODES)
def test_accepts_every_int16_to_fp16(mode):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    got = rounding.int16_to_fp16(every, mode)
    assert [int(v) for v in got.double().tolist()] == [rounded_integer(v, 11, mode) for v in every.tolist()]


def test_accepts_int32_to_fp16():
    values = torch.tensor([0, 127, 2048, 2049, 2051, -2049, 65519, 65520, 2**31 - 1, -(2**31)], dtype=torch.int32)
    inf = float("inf")
    assert rounding.int32_to_fp16(values).tolist() == [0, 127, 2048, 2048, 2052, -2048, 65504, inf, inf, -inf]


def test_rejects_an_unknown_mode():
    with pytest.raises(ValueError, match="unknown rounding mode 'up'"):
        rounding.fp32_to_bf16(torch.ones(1), "up")
