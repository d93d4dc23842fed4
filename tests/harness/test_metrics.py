"""`measure` against a slow definition of every figure, for every dtype, with and without masks."""

import math

import numpy as np
import pytest
import torch

from harness.metrics import PERCENTILES, SWEEP, measure, one_pass

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
INTEGERS = (torch.int8, torch.int32, torch.int64)


def rule(points):
    return points.distance.astype(np.float64), 2.0


def ordered(value, dtype):
    """The rank of a float among all floats of its dtype, by its bits read as sign and magnitude."""
    integer = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}[dtype]
    bits = int(value.view(integer))
    width = 16 if integer is torch.int16 else 32
    magnitude = bits & (2 ** (width - 1) - 1)
    return -magnitude if bits < 0 else magnitude


def slow(actual, expected, keep):
    """The definitions, one element at a time, in Python numbers."""
    pairs = []
    for a, e, k in zip(actual.reshape(-1), expected.reshape(-1), keep.reshape(-1), strict=True):
        if k:
            floating = expected.dtype in FLOATS
            ranks = [ordered(v, expected.dtype) if floating else int(v) for v in (a, e)]
            number = float if floating else int
            pairs.append((number(a), number(e), abs(ranks[0] - ranks[1])))
    errors = [float(a - e) for a, e, _ in pairs]
    relative = [abs(a - e) / max(abs(a), abs(e)) if a != e else 0.0 for a, e, _ in pairs]
    distances = sorted(d for *_, d in pairs)
    norm_a, norm_e = (math.sqrt(sum(float(p[i]) ** 2 for p in pairs)) for i in (0, 1))
    higher, lower = sum(e > 0 for e in errors), sum(e < 0 for e in errors)
    return {
        "compared": len(pairs),
        "over": sum(d > 2 for d in distances),
        "differing": sum(d > 0 for d in distances),
        "higher": higher,
        "lower": lower,
        "bias_z": (higher - lower) / math.sqrt(higher + lower),
        "ulp_max": distances[-1],
        "ulp": {f"{p:g}": distances[math.ceil(p / 100 * len(distances)) - 1] for p in PERCENTILES},
        "sweep": {f"{t:g}": sum(r > t for r in relative) / len(pairs) for t in SWEEP},
        "max_abs_error": max(map(abs, errors)),
        "max_rel_error": max(relative),
        "rel_l2": math.sqrt(sum(e * e for e in errors)) / norm_e,
        "cosine": sum(float(a) * float(e) for a, e, _ in pairs) / norm_a / norm_e,
        "mean_error": sum(errors) / len(errors),
    }


def draw(dtype, generator, n=3000):
    if dtype in FLOATS:
        expected = torch.randn(n, generator=generator).to(dtype)
        integer = torch.int32 if dtype is torch.float32 else torch.int16
        steps = torch.randint(-4, 5, (n,), generator=generator, dtype=integer)
        steps[torch.rand(n, generator=generator) < 0.5] = 0
        actual = (expected.view(integer) + steps).view(dtype)
    else:
        expected = torch.randint(-100, 100, (n,), generator=generator).to(dtype)
        actual = (expected + torch.randint(-3, 4, (n,), generator=generator)).to(dtype)
    return actual.reshape(30, -1), expected.reshape(30, -1)


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk", [64, one_pass.CHUNK])
def test_figures_equal_the_slow_definition(dtype, masked, chunk, monkeypatch):
    monkeypatch.setattr(one_pass, "CHUNK", chunk)
    monkeypatch.setattr(one_pass, "STRIP", 4 * chunk)
    generator = torch.Generator().manual_seed(5)
    actual, expected = draw(dtype, generator)
    valid = torch.rand(expected.shape, generator=generator) < 0.7 if masked else None
    undefined = torch.rand(expected.shape, generator=generator) < 0.1 if masked else None
    keep = torch.ones_like(expected, dtype=torch.bool) if valid is None else valid & ~undefined

    found = measure(actual, expected, rule, valid=valid, undefined=undefined)

    for name, value in slow(actual, expected, keep).items():
        assert getattr(found, name) == pytest.approx(value, rel=2e-5, abs=1e-9), name
    assert found.elements == 3000
    assert found.undefined == (0 if valid is None else int((valid & undefined).sum()))
    assert found.bit_equal == found.compared - found.differing
    assert found.max_abs.index == np.unravel_index(
        int(((actual.double() - expected.double()).abs() * keep).argmax()), expected.shape
    )


def test_the_worst_point_has_index_values_bits_and_distance():
    expected = torch.zeros(2, 3, dtype=torch.bfloat16) + 1
    actual = expected.clone()
    actual[1, 2] = 1.03125
    worst = measure(actual, expected, rule).worst
    assert worst.index == (1, 2)
    assert (worst.actual, worst.expected) == (1.03125, 1.0)
    assert (worst.actual_bits, worst.expected_bits, worst.distance) == ("0x3f84", "0x3f80", 4)


@pytest.mark.parametrize(("bits", "distance"), [((0, -0x8000), 0), ((1, -0x7FFF), 2), ((0x7F7F, 0x7F7E), 1)])
def test_distance_across_zero_and_at_the_largest_value(bits, distance):
    """R22: both zeros are one value, and the smallest positive and negative numbers are two steps apart."""
    actual, expected = (torch.tensor([b], dtype=torch.int16).view(torch.bfloat16) for b in bits)
    assert measure(actual, expected, rule).ulp_max == distance


def test_int64_extremes_do_not_wrap():
    low, high = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max
    assert measure(torch.tensor([high]), torch.tensor([low]), rule).ulp_max == 2**64 - 1


def test_int64_is_not_compared_in_floating_point():
    assert measure(torch.tensor([2**60 + 1]), torch.tensor([2**60]), rule).ulp_max == 1


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_norms_survive_squares_outside_fp32(scale):
    expected = torch.full((1000,), scale, dtype=torch.bfloat16)
    actual = expected * 1.0625
    found = measure(actual, expected, rule)
    assert found.rel_l2 == pytest.approx(float(actual[0]) / float(expected[0]) - 1, rel=1e-4)
    assert found.nonfinite_bad == 0


@pytest.mark.parametrize("side", ["actual", "expected"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", FLOATS)
def test_non_finite_elements_are_counted_and_bad_on_either_side(side, value, dtype):
    sides = {"actual": torch.ones(5, dtype=dtype), "expected": torch.ones(5, dtype=dtype)}
    sides[side][3] = value
    found = measure(sides["actual"], sides["expected"], rule)
    assert (found.nonfinite_actual, found.nonfinite_expected) == ((1, 0) if side == "actual" else (0, 1))
    assert found.over == found.nonfinite_bad == 1
    assert found.worst.index == (3,)
    assert found.rel_l2 == 0.0


def test_non_finite_on_both_sides_is_bad_unless_the_same_is_declared():
    values = torch.tensor([math.nan, math.inf, 1.0])
    assert measure(values, values, rule).nonfinite_bad == 2
    assert measure(values, values, rule, same_nonfinite=True).nonfinite_bad == 0
    assert measure(values, -values, rule, same_nonfinite=True).nonfinite_bad == 1  # the infinity


def test_an_empty_output_has_an_empty_record():
    found = measure(torch.empty(0, 4), torch.empty(0, 4), rule)
    assert (found.elements, found.compared, found.over, found.rel_l2) == (0, 0, 0, 0.0)
    assert found.worst is None


def test_distances_above_512_round_up_by_at_most_0_4_percent():
    expected = torch.zeros(100, dtype=torch.int32)
    actual = torch.full((100,), 12345, dtype=torch.int32)
    actual[99] = 10**9
    found = measure(actual, expected, rule)
    assert 12345 <= found.ulp["50"] <= 12345 * 1.004
    assert found.ulp_max == 10**9


def test_the_number_of_threads_changes_nothing(monkeypatch):
    monkeypatch.setattr(one_pass, "CHUNK", 64)
    monkeypatch.setattr(one_pass, "STRIP", 128)
    actual, expected = draw(torch.bfloat16, torch.Generator().manual_seed(1))
    found = []
    for threads in (1, 4):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(measure(actual, expected, rule))
    assert found[0] == found[1]


def test_rejects_unequal_shapes_and_dtypes():
    with pytest.raises(ValueError, match=r"actual has shape \(1,\), expected has \(4,\)"):
        measure(torch.ones(1), torch.ones(4), rule)
    with pytest.raises(ValueError, match=r"actual is torch.float32"):
        measure(torch.ones(4), torch.ones(4).half(), rule)
