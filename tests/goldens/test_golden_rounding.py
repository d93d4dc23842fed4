"""goldens.numerics.rounding against the integer definition, and against values worked out by hand."""

import math
import time

import numpy as np
import pytest
import torch
from golden_rounding_reference import BF16_NAN, convert

from goldens.numerics.rounding import MODES, round_to

DTYPES = ("bfloat16", "float16", "int32", "int16", "int8")
INF, NAN = math.inf, math.nan


def from_bits(bits):
    return torch.from_numpy(np.asarray(bits, dtype=np.int64).astype(np.uint32).view(np.float32))


def as_numbers(x):
    """Bit patterns of a float tensor, values of an integer tensor."""
    if x.dtype.is_floating_point:
        return x.view(torch.int16).numpy().view(np.uint16).astype(np.int64)
    return x.numpy().astype(np.int64)


def assert_matches_definition(bits, dtype, mode):
    found = as_numbers(round_to(from_bits(bits), getattr(torch, dtype), mode))
    wanted = convert(bits, dtype, mode)
    wrong = np.flatnonzero(found != wanted)
    assert not wrong.size, (
        f"{wrong.size} of {bits.size} differ, first {bits[wrong[0]]:#010x}: "
        f"{found[wrong[0]]:#x}, expected {wanted[wrong[0]]:#x}"
    )


# The six modes in the order of MODES: rint round trunc floor ceil odd.
ULP = 2.0**-7  # of BF16 in 1..2
DIRECTED = [
    ("bfloat16", 1 + ULP / 2, (1, 1 + ULP, 1, 1, 1 + ULP, 1 + ULP)),  # half, on an even code
    (
        "bfloat16",
        1 + 3 * ULP / 2,
        (1 + 2 * ULP, 1 + 2 * ULP, 1 + ULP, 1 + ULP, 1 + 2 * ULP, 1 + ULP),
    ),  # odd code
    ("bfloat16", -(1 + ULP / 2), (-1, -1 - ULP, -1, -1 - ULP, -1, -1 - ULP)),
    ("bfloat16", 1.01953125, (1.015625, 1.0234375, 1.015625, 1.015625, 1.0234375, 1.0234375)),  # contract 1.3
    ("bfloat16", 1 + ULP / 2 + 2**-23, (1 + ULP, 1 + ULP, 1, 1, 1 + ULP, 1 + ULP)),  # just above half
    ("bfloat16", 1 + ULP / 2 - 2**-23, (1, 1, 1, 1, 1 + ULP, 1 + ULP)),  # just below half
    ("bfloat16", 2.0**-133, (2.0**-133,) * 6),  # the smallest BF16, a subnormal
    ("bfloat16", 2.0**-134, (0, 2.0**-133, 0, 0, 2.0**-133, 2.0**-133)),
    ("bfloat16", -(2.0**-149), (-0.0, -0.0, -0.0, -(2.0**-133), -0.0, -(2.0**-133))),
    ("bfloat16", -0.0, (-0.0,) * 6),
    ("bfloat16", INF, (INF,) * 6),
    ("bfloat16", -INF, (-INF,) * 6),
    ("bfloat16", NAN, (NAN,) * 6),
    (
        "bfloat16",
        3.4028234663852886e38,
        (INF, INF, *(3.3895313892515355e38,) * 2, INF, 3.3895313892515355e38),
    ),
    ("float16", 2049.0, (2048, 2050, 2048, 2048, 2050, 2050)),
    ("float16", 2051.0, (2052, 2052, 2050, 2050, 2052, 2050)),
    ("float16", 2.0**-24, (2.0**-24,) * 6),
    ("float16", 2.0**-25, (0, 2.0**-24, 0, 0, 2.0**-24, 2.0**-24)),
    ("float16", -(2.0**-26), (-0.0, -0.0, -0.0, -(2.0**-24), -0.0, -(2.0**-24))),
    ("float16", 65504.0, (65504,) * 6),
    ("float16", 65519.99, (65504, 65504, 65504, 65504, INF, 65504)),
    ("float16", 65520.0, (INF,) * 6),
    ("float16", -INF, (-INF,) * 6),
    ("float16", NAN, (NAN,) * 6),
    ("float16", -0.0, (-0.0,) * 6),
    ("int32", 2.5, (2, 3, 2, 2, 3, 3)),
    ("int32", 3.5, (4, 4, 3, 3, 4, 3)),
    ("int32", -2.5, (-2, -3, -2, -3, -2, -3)),
    ("int32", 0.49999997, (0, 0, 0, 0, 1, 1)),  # adding a half and truncating would give 1
    ("int32", 8388609.0, (8388609,) * 6),  # odd above 2^23: adding a half and flooring would give 8388610
    ("int32", 2147483520.0, (2147483520,) * 6),  # the largest FP32 inside INT32
    ("int32", 2.0**31, (2**31 - 1,) * 6),
    ("int32", -(2.0**31), (-(2**31),) * 6),
    ("int32", -3e9, (-(2**31),) * 6),
    ("int32", INF, (2**31 - 1,) * 6),
    ("int32", NAN, (0,) * 6),
    ("int16", 32768.0, (-32768,) * 6),
    ("int16", 65537.5, (-32768 + 32770, 2, 1, 1, 2, 1)),
    ("int16", 1e10, (-1,) * 6),  # the low half of the saturated 0x7FFFFFFF
    ("int16", -1e10, (0,) * 6),
    ("int8", 300.0, (44,) * 6),
    ("int8", 127.5, (-128, -128, 127, 127, -128, 127)),
    ("int8", INF, (-1,) * 6),
    ("int8", -INF, (0,) * 6),
    ("int8", NAN, (0,) * 6),
    ("int8", 70000.0, (-1,) * 6),  # infinite in FP16
    # Twice rounded: 2.4999 is 2.5 in FP16 (last place 2^-9), and then a tie.
    ("int8", 2.4999, (2, 3, 2, 2, 3, 3)),
    ("int8", 2.5001, (2, 3, 2, 2, 3, 3)),  # 2.5 in FP16: rint gives 2, a single rounding would give 3
]


@pytest.mark.parametrize(("dtype", "value", "wanted"), DIRECTED)
@pytest.mark.parametrize("mode", MODES)
def test_directed_value(dtype, value, wanted, mode):
    target = getattr(torch, dtype)
    found = round_to(torch.tensor([value]), target, mode)
    expected = torch.full((1,), wanted[MODES.index(mode)], dtype=target)  # not .to(): its NaN is another
    assert found.dtype == target
    assert as_numbers(found) == as_numbers(expected)


@pytest.mark.parametrize("mode", MODES)
def test_bf16_every_upper_half(mode):
    """All 2^16 upper halves with the remainders around zero, half and one: every decision that BF16 has."""
    upper = np.arange(1 << 16, dtype=np.int64)[:, None] << 16
    bits = (upper + np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])).ravel()
    assert_matches_definition(bits, "bfloat16", mode)


@pytest.mark.parametrize("mode", MODES)
def test_fp16_every_code_and_midpoint(mode):
    """All finite FP16 values, the midpoints above them, and the FP32 neighbours of both."""
    codes = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    values = codes[np.isfinite(codes)].astype(np.float32)
    values.sort()
    middle = ((values[1:].astype(np.float64) + values[:-1]) / 2).astype(np.float32)
    points = np.concatenate([values, middle, np.float32([65520.0, -65520.0])])
    near = [points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(-np.inf))]
    bits = np.concatenate(near).view(np.uint32).astype(np.int64)
    assert_matches_definition(bits, "float16", mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["int32", "int16", "int8"])
def test_integers_every_fp16_value_and_halves(dtype, mode):
    """All FP16 values, and every half from -70000 to 70000 with its FP32 neighbours: ties, wraps and
    overflow.
    """
    fp16 = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves = (np.arange(-140000, 140001) / 2).astype(np.float32)
    near = [fp16, halves, np.nextafter(halves, np.float32(1e9)), np.nextafter(halves, np.float32(-1e9))]
    bits = np.concatenate(near).view(np.uint32).astype(np.int64)
    assert_matches_definition(bits, dtype, mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_random_patterns(dtype, mode):
    bits = np.random.default_rng(7).integers(0, 1 << 32, 200_000)
    assert_matches_definition(bits, dtype, mode)


def test_keeps_shape_and_source():
    x = torch.tensor([[1.3, -2.7], [0.5, NAN]]).t()
    before = x.clone()
    assert round_to(x, torch.bfloat16, "floor").shape == (2, 2)
    assert torch.equal(x[~x.isnan()], before[~before.isnan()])


def test_rejects_other_source_target_and_mode():
    x = torch.zeros(2)
    with pytest.raises(ValueError, match=r"takes float32, got torch\.float64"):
        round_to(x.double(), torch.bfloat16)
    with pytest.raises(ValueError, match=r"cannot target torch\.uint8"):
        round_to(x, torch.uint8)
    with pytest.raises(ValueError, match="'up', expected one of rint, round"):
        round_to(x, torch.bfloat16, "up")


REST = np.arange(1 << 16)
STEPS = {  # what is added to the upper half, by its parity and sign, over the 2^16 lower halves
    "rint": lambda odd, negative: (0x8000 if odd else 0x8001) <= REST,
    "round": lambda odd, negative: REST >= 0x8000,
    "trunc": lambda odd, negative: REST < 0,
    "floor": lambda odd, negative: (REST > 0) & negative,
    "ceil": lambda odd, negative: (REST > 0) & (not negative),
    "odd": lambda odd, negative: (REST > 0) & (not odd),
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_bf16_all_fp32_patterns(mode):
    """All 2^32 FP32 patterns, 2^18 (a cache's worth) at a time. `pytest -m slow -s` prints the time taken."""
    start, visited = time.perf_counter(), 0
    steps = [[STEPS[mode](odd, negative) for odd in (0, 1)] for negative in (False, True)]
    steps = np.array(steps, dtype=np.uint16)
    lower = torch.arange(1 << 18, dtype=torch.int32)
    for head in range(0, 1 << 16, 4):
        heads = np.arange(head, head + 4, dtype=np.uint16)
        wanted = heads[:, None] + steps[head >> 15][heads & 1]
        wanted[(heads & 0x7FFF) > 0x7F80] = BF16_NAN
        wanted[(heads & 0x7FFF) == 0x7F80, 1:] = BF16_NAN
        offset = (head << 16) - (1 << 32 if head >= 1 << 15 else 0)
        found = round_to((lower + offset).view(torch.float32), torch.bfloat16, mode)
        assert torch.equal(found.view(torch.int16), torch.from_numpy(wanted.view(np.int16)).flatten()), (
            f"mode {mode}: one of the 2^18 patterns from {head << 16:#010x} differs"
        )
        visited += found.numel()
    assert visited == 1 << 32
    print(f"\n{mode}: {visited} patterns in {time.perf_counter() - start:.1f} s")
