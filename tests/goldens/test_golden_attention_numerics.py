"""Visibility by enumeration of positions, and FP32 products of short BF16 sums (decode_attention.md, CB-6 and CB-2)."""

from fractions import Fraction

import pytest
import torch
from golden_testing import Draw, assert_same_bits

from goldens.numerics import matmul, visibility
from goldens.numerics.matmul import fp32_matmul

WIN = 128


def positions_of(start, seq):
    return start + torch.arange(seq).unsqueeze(0)


def visible_positions(start, step):
    """The last WIN positions up to the token's own."""
    return set(range(max(0, start + step - WIN + 1), start + step + 1))


def named_positions(row, start, seq):
    """The positions whose KV the raw indices of one token name, before the step has written the ring."""
    held = {k: max((p for p in range(start) if p % WIN == k), default=None) for k in range(WIN)}
    named = [held[r] if r < WIN else start + r - WIN for r in row if 0 <= r < WIN + seq]
    assert None not in named, "a row that holds nothing is listed"
    assert len(set(named)) == len(named)
    return set(named)


STARTS = (0, 1, 2, 3, 63, 125, 126, 127, 128, 129, 130, 254, 255, 256, 257, 1000)


@pytest.mark.parametrize("seq", [1, 2, 3, 4])
@pytest.mark.parametrize("start", STARTS)
def test_every_form_lists_the_last_positions(start, seq):
    positions = positions_of(start, seq)
    csa = visibility.csa_window(positions, WIN).tolist()
    hca = visibility.hca_list(positions, positions[:, -1] + 1, WIN, 8).tolist()
    bias = visibility.window_bias(positions, WIN)
    for step in range(seq):
        wanted = visible_positions(start, step)
        assert named_positions(csa[step], start, seq) == wanted
        assert named_positions(hca[step], start, seq) == wanted
        seen = (bias[step] == 0).nonzero().flatten().tolist()  # of one request: columns are its raw indices
        assert named_positions(seen, start, seq) == wanted
        assert int((bias[step] == 0).sum()) == min(start + step + 1, WIN)  # the count law (5.8)
        assert all(k in (row, -1) for row, k in enumerate(hca[step][:WIN]))


@pytest.mark.parametrize("committed", [0, 1, 2])
@pytest.mark.parametrize("start", [0, 125, 126, 127, 254, 255, 256, 639])
def test_slots_are_those_closed_and_committed(start, committed):
    seq, slots = 2, 4
    positions = positions_of(start, seq)
    listed = visibility.hca_list(positions, torch.tensor([start + committed]), WIN, slots)
    for step in range(seq):
        closed = min(slots, (start + step + 1) // 128, (start + committed) // 128)
        found = [int(r) - WIN - seq for r in listed[step] if r >= WIN + seq]
        assert found == list(range(closed))


def test_overlay_columns_belong_to_the_request():
    positions = torch.tensor([[5, 6], [200, 201], [0, 1]])
    seen = visibility.window_bias(positions, WIN)[:, WIN:] == 0
    assert [row.nonzero().flatten().tolist() for row in seen] == [[0], [0, 1], [2], [2, 3], [4], [4, 5]]


def test_widths():
    """Contract 0.4, for FLASH, DEMO and PRO with S = 1, and FLASH with S = 2."""
    assert [visibility.csa_columns(128, k) // 128 for k in (512, 512, 1024)] == [5, 5, 9]
    sizes = ((16384, 512, 1), (16384, 512, 2), (4096, 512, 1), (1048576, 1024, 1))
    slots = [visibility.hca_slots(longest, topk) for longest, topk, _ in sizes]
    used = [128 + seq + n for (_, _, seq), n in zip(sizes, slots, strict=True)]
    assert used == [257, 258, 161, 1153]
    assert [visibility.hca_columns(128, s[2], n) // 128 for s, n in zip(sizes, slots, strict=True)] == [3, 3, 2, 10]


def ties(draw, rows, k):
    """BF16 whose short sums of products often lie half-way between two FP32 numbers."""
    significand = draw.integers(128, 256, rows, k).float()
    return (significand * torch.exp2(draw.integers(-9, 5, rows, k).float())).bfloat16()


@pytest.mark.parametrize("k", [2, 5, 17])
def test_short_bf16_sums_are_rounded_once(k):
    draw = Draw(k)
    a, b = ties(draw, 24, k), ties(draw, 40, k)
    found = fp32_matmul(a, b)
    doubtful = 0
    for i, x in enumerate(a.tolist()):
        for j, y in enumerate(b.tolist()):
            exact = sum(Fraction(p) * Fraction(q) for p, q in zip(x, y, strict=True))
            below, above = (torch.nextafter(found[i, j], torch.tensor(s)) for s in (-torch.inf, torch.inf))
            error = abs(Fraction(float(found[i, j])) - exact)
            other = min(abs(Fraction(float(n)) - exact) for n in (below, above))
            assert error <= other
            doubtful += error == other
            if error == other:
                assert int(found[i, j].view(torch.int32)) % 2 == 0  # a tie goes to the even neighbour
    assert doubtful or k == 17, "no tie was drawn"


@pytest.mark.parametrize("many", [True, False])
def test_exact_sums_are_not_settled_one_by_one(monkeypatch, many):
    """The short cuts (all rows at once, the doubtful ones alone) and the long way agree, and are taken."""
    draw = Draw(3)
    a, b = ties(draw, 24, 5), ties(draw, 40, 5)
    settled = []
    original = matmul.rounded_sums
    monkeypatch.setattr(matmul, "rounded_sums", lambda terms: settled.append(len(terms)) or original(terms))
    monkeypatch.setattr(matmul, "_mostly_ties", lambda *_: many)
    short = fp32_matmul(a, b)
    assert not settled
    monkeypatch.setattr(matmul, "_mostly_ties", lambda *_: False)
    monkeypatch.setattr(matmul, "_quantum", lambda x: torch.zeros(*x.shape[:-1], 1, dtype=torch.float64))
    assert_same_bits(fp32_matmul(a, b), short)
    assert sum(settled) > 64
