"""row_sum and chunked_sum: each order against its written form, a NumPy FP32 scalar addition at a time."""

import math

import numpy as np
import pytest
import torch

from goldens.numerics.reduce import chunked_sum, row_sum

SIZES = (1, 2, 3, 4, 5, 8, 24, 63, 64, 65, 127, 128, 192, 200, 256, 320, 448, 500, 512, 1024)


def data(n, rows=5):
    return torch.randn(rows, n, generator=torch.Generator().manual_seed(n)) * 3


def sequential(values):
    total = np.float32(values[0])
    for v in values[1:]:
        total = np.float32(total + v)
    return total


def pairwise(values):
    values = list(values)
    while len(values) > 1:
        pairs = [np.float32(a + b) for a, b in zip(values[::2], values[1::2], strict=False)]
        values = pairs + values[len(pairs) * 2 :]
    return values[0]


def device(values):
    """dense.md 2.3 with r the blocks of 64; the case list of that section for 64 to 512 is spelled out."""
    r = [np.asarray(values[i : i + 64]) for i in range(0, len(values), 64)]
    lanes = {
        1: lambda: r[0],
        2: lambda: r[0] + r[1],
        3: lambda: (r[0] + r[1]) + r[2],
        4: lambda: (r[0] + r[1]) + (r[2] + r[3]),
        5: lambda: ((r[0] + r[1]) + r[4]) + (r[2] + r[3]),
        7: lambda: (((r[0] + r[1]) + r[6]) + (r[2] + r[3])) + (r[4] + r[5]),
        10: lambda: ((r[0] + r[1]) + (r[2] + r[3])) + (((r[4] + r[5]) + (r[6] + r[7])) + (r[8] + r[9])),
        8: lambda: ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7])),
    }[len(r)]()
    return pairwise(lanes)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(("order", "written"), [("sequential", sequential), ("pairwise", pairwise)])
def test_order_is_the_written_one(n, order, written):
    x = data(n)
    assert row_sum(x, order).flatten().tolist() == [written(row) for row in x.numpy()]


@pytest.mark.parametrize("n", [1, 6, 24, 63, 64, 128, 192, 256, 320, 448, 512, 640])
def test_device_order(n):
    x = data(n)
    assert row_sum(x, "device").flatten().tolist() == [device(row) for row in x.numpy()]


@pytest.mark.parametrize("n", [65, 100, 200])
def test_device_order_adds_a_ragged_tail_to_the_first_pair(n):
    x = data(n)
    full, tail = x[:, : n // 64 * 64], x[:, n // 64 * 64 :]
    blocks = list(full.split(64, dim=1))
    first = blocks[0] + blocks[1] if len(blocks) > 1 else blocks[0].clone()
    if len(blocks) == 3:
        first = first + blocks[2]
    first[:, : tail.shape[1]] += tail
    assert torch.equal(row_sum(x, "device"), row_sum(first, "pairwise"))


@pytest.mark.parametrize("n", SIZES)
def test_exact_is_the_sum_rounded_once(n):
    x = data(n)
    assert row_sum(x).flatten().tolist() == [np.float32(math.fsum(row)) for row in x.tolist()]


def test_orders_differ():
    """An order that quietly fell back to another would go unseen otherwise."""
    x = data(448, rows=200)
    sums = [row_sum(x, order) for order in ("exact", "sequential", "pairwise", "device")]
    assert all(not torch.equal(a, b) for i, a in enumerate(sums) for b in sums[:i])


@pytest.mark.parametrize("chunk", [1, 128, 512, 600])
def test_chunked_chains_the_chunks_left_to_right(chunk):
    x = data(1792)
    chunks = [row_sum(x[:, i : i + chunk])[:, 0].numpy() for i in range(0, 1792, chunk)]
    assert chunked_sum(x, chunk).flatten().tolist() == [sequential(row) for row in np.stack(chunks, 1)]


def test_leading_axes_and_source_are_kept():
    x = data(96).reshape(5, 3, 32)
    before = x.clone()
    for order in ("exact", "sequential", "pairwise", "device"):
        assert row_sum(x, order).shape == (5, 3, 1)
        assert row_sum(x[..., :1], order).data_ptr() != x.data_ptr()
    assert torch.equal(x, before)


def test_rejects_unknown_order_and_empty_row():
    with pytest.raises(ValueError, match="unknown summation order 'kahan'"):
        row_sum(torch.ones(1, 2), "kahan")
    with pytest.raises(ValueError, match="empty row"):
        row_sum(torch.ones(3, 0))
