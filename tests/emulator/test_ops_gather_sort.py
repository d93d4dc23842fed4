"""Gathers, scatters and sorting (pypto_dsl.md 3.11)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ops_testing import codes, gm, kernel, pl, randn, rejects, tile

from harness.devices.emulator import dtypes as dt
from harness.devices.emulator.enums import MaskPattern

A = randn(4, 64, seed=1)
KEPT = {
    "P0101": slice(0, None, 2), "P1010": slice(1, None, 2), "P0001": slice(0, None, 4), "P0010": slice(1, None, 4),
    "P0100": slice(2, None, 4), "P1000": slice(3, None, 4), "P1111": slice(None),
}  # fmt: skip


def index(*shape: int, high: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, high, shape, dtype=torch.int32, generator=torch.Generator().manual_seed(seed))


# --- gather ----------------------------------------------------------------------------------------------------------


def test_index_gather_is_per_row_and_tile_gather_flat():
    """Section 7, trap 21."""
    idx = index(4, 16, high=64)
    with kernel():
        per_row = pl.gather(tile(A), dim=-1, index=tile(idx)).data
        flat = pl.tile.gather(tile(A), tile(idx * 4), None).data
    assert np.array_equal(per_row.numpy(), np.take_along_axis(A.numpy(), idx.numpy(), 1))
    assert np.array_equal(flat.numpy(), A.numpy().reshape(-1)[idx.numpy() * 4])


def test_gather_along_another_axis():
    idx = index(2, 64, high=4)
    with kernel():
        got = pl.gather(tile(A), dim=0, index=tile(idx)).data
    assert np.array_equal(got.numpy(), np.take_along_axis(A.numpy(), idx.numpy(), 0))


@pytest.mark.parametrize("bad", [-1, 64])
def test_rejects_an_index_out_of_range(bad):
    idx = index(4, 8, high=64)
    idx[2, 3] = bad
    with kernel(), rejects(f"pl.gather: index g[2, 3] = {bad} is out of bounds 0..63"):
        pl.gather(tile(A), index=tile(idx))


def test_rejects_an_undefined_index():
    with kernel():
        with rejects("pl.gather: index create_tile[0, 0] is undefined: never-written"):
            pl.gather(tile(A), index=pl.create_tile([4, 8], dt.INT32))
        with rejects("the index must be INT32, not pl.INT64"):
            pl.gather(tile(A), index=tile(index(4, 8, high=8).long()))
        with rejects("no gather of pl.BF16"):
            pl.gather(tile(A.bfloat16()), index=tile(index(4, 8, high=8)))
        with rejects("differ beside axis -1"):
            pl.gather(tile(A), index=tile(index(2, 8, high=8)))
        with rejects("exactly one of index, mask_pattern and kvalue"):
            pl.gather(tile(A))


def test_gather_keeps_the_index_region_and_takes_taint_along():
    with kernel():
        source = pl.create_tile([4, 64], dt.FP32)
        pl.assemble(source, tile(A[:, :32]), [0, 0])
        idx = torch.tensor([[0, 31, 32, 63, 0, 0, 0, 0]] * 4, dtype=torch.int32)
        got = pl.gather(source, index=tile(idx))
        assert (got.taint[0] > 0).tolist() == [False, False, True, True, False, False, False, False]
        partial = pl.gather(tile(A), index=tile(idx, (2, 5)))
        assert partial.valid == (2, 5)
        assert torch.equal(partial.valid_data, A[:2].gather(1, idx[:2, :5].long()))


@pytest.mark.parametrize("name", KEPT)
def test_mask_gather_keeps_its_columns(name):
    with kernel():
        got = pl.gather(tile(A), mask_pattern=MaskPattern[name])
        assert torch.equal(got.data, A[:, KEPT[name]])
        bits = pl.gather(tile(A), mask_pattern=MaskPattern[name], output_dtype=dt.UINT32)
        assert bits.dtype is dt.UINT32
        assert torch.equal(bits.data.view(torch.int32), A[:, KEPT[name]].contiguous().view(torch.int32))
        narrowed = pl.tile.gather(tile(A, (4, 37)), mask_pattern=MaskPattern[name])
        assert narrowed.valid == (4, A[:, :37][:, KEPT[name]].shape[1])


def test_rejects_mask_gathers():
    """Section 7, trap 22: bits are reinterpreted, so widths must agree."""
    with kernel():
        with rejects("output_dtype pl.INT16 does not have the width of pl.FP32"):
            pl.gather(tile(A), mask_pattern=MaskPattern.P0101, output_dtype=dt.INT16)
        with rejects("62 columns are not divisible by the pattern's stride 4"):
            pl.gather(tile(A[:, :62]), mask_pattern=MaskPattern.P0001)
        with rejects("unknown mask pattern the number 9"):
            pl.gather(tile(A), mask_pattern=9)


@pytest.mark.parametrize(("mode", "function"), [("eq", np.equal), ("gt", np.greater)])
def test_compare_gather_lists_columns(mode, function):
    values = index(4, 64, high=3).int()
    with kernel():
        found, counts = pl.gather(tile(values), kvalue=1, cmp_mode=mode, out_cols=64, offset=100)
        for row in range(4):
            expected = np.nonzero(function(values[row].numpy(), 1))[0] + 100
            assert int(counts.data[row, 0]) == len(expected)
            assert found.data[row, : len(expected)].tolist() == expected.tolist()
            assert bool((found.taint[row, len(expected) :] > 0).all())
            assert not bool(found.taint[row, : len(expected)].any())
        with rejects("cmp_mode 'lt' is not available"):
            pl.gather(tile(values), kvalue=1, cmp_mode="lt", out_cols=64)
        with rejects("out_cols is 1"):
            pl.gather(tile(values), kvalue=0, cmp_mode="gt", out_cols=1)


def test_gather_row_copies_into_l1():
    """Section 7, trap 9."""
    with kernel():
        buffer = pl.create_l1([16, 64], dt.FP32)
        source = gm(randn(32, 64))
        for row, wanted in enumerate((7, 0, 31)):
            assert pl.gather_row(buffer, source, [row, 0], [wanted, 0], [1, 64]) is buffer
        assert torch.equal(buffer.data[:3], source.data[[7, 0, 31]])
        assert bool((buffer.taint[3:] > 0).all())
        assert not bool(buffer.taint[:3].any())
        turned = pl.create_l1([64, 16], dt.FP32, transpose=True)
        pl.gather_row(acc=turned, src=source, dst_offset=[0, 3], src_offset=[5, 0], shapes=[1, 64], transpose=True)
        assert torch.equal(turned.data[:, 3], source.data[5])
        with rejects("gather_row of g[32, 64] is out of bounds: axis 0, elements 32..32 of 32"):
            pl.gather_row(buffer, source, [0, 0], [32, 0], [1, 64])
        with rejects("pl.BF16 into pl.FP32; it does not convert"):
            pl.gather_row(buffer, gm(randn(32, 64).bfloat16()), [0, 0], [0, 0], [1, 64])


def test_paged_gather_goes_through_the_table():
    pool, table = randn(32, 64), torch.tensor([[3, 1]], dtype=torch.int32)
    wanted = torch.tensor([[0, 9, 15, -1]], dtype=torch.int32)
    with kernel():
        got = pl.paged_gather(gm(pool), gm(wanted), gm(table), 8, 64, 4)
        assert torch.equal(got.data[:3], pool[[24, 9, 15]])
        assert bool((got.taint[3] > 0).all())
        with rejects("index 16 lies beyond the 2 pages"):
            pl.paged_gather(gm(pool), gm(wanted + 16), gm(table), 8, 64, 1)


# --- scatter ---------------------------------------------------------------------------------------------------------


def test_scatter_copies_and_replaces():
    base, values = randn(4, 64, seed=2), randn(4, 8, seed=3)
    idx = torch.stack([torch.randperm(64, generator=torch.Generator().manual_seed(s))[:8] for s in range(4)]).int()
    with kernel():
        source = tile(base)
        got = pl.scatter(source, -1, tile(idx), tile(values))
        assert torch.equal(source.data, base)
    expected = base.numpy().copy()
    np.put_along_axis(expected, idx.long().numpy(), values.numpy(), 1)
    assert np.array_equal(got.data.numpy(), expected)


def test_rejects_scatters_without_a_winner():
    with kernel(), rejects("two sources go to the same place"):
        pl.scatter(tile(A), -1, tile(torch.zeros(4, 8, dtype=torch.int32)), tile(A[:, :8]))
    with kernel(), rejects("= 64 is out of bounds 0..63"):
        pl.scatter(tile(A), -1, tile(torch.full((4, 1), 64, dtype=torch.int32)), tile(A[:, :1]))


def test_mask_scatter_interleaves():
    even, odd = randn(4, 32, seed=4), randn(4, 32, seed=5)
    with kernel():
        target = pl.create_tile([4, 64], dt.FP32)
        target = pl.tensor.scatter(tile(even), mask_pattern=MaskPattern.P0101, dst=target)
        assert bool((target.taint[:, 1::2] > 0).all())
        target = pl.tensor.scatter(tile(odd), mask_pattern=MaskPattern.P1010, dst=target)
        assert torch.equal(target.data, torch.stack((even, odd), dim=-1).reshape(4, 64))
        assert not bool(target.taint.any())


def test_scatter_update_and_mscatter_work_in_place():
    with kernel():
        target = tile(torch.zeros(8, 64))
        assert pl.scatter_update(target, -2, tile(torch.tensor([[6, 1, 3, 0]], dtype=torch.int32)), tile(A)) is target
        assert torch.equal(target.data[[6, 1, 3, 0]], A)
        out = gm(torch.zeros(8, 64))
        positions = torch.randperm(512, generator=torch.Generator().manual_seed(1))[:256].reshape(4, 64).int()
        assert pl.mscatter(tile(A), tile(positions), out) is out
        assert torch.equal(out.data.reshape(-1)[positions.long()], A)
        assert torch.equal(pl.mgather(out, tile(positions)).data, A)


# --- sorting ---------------------------------------------------------------------------------------------------------


def test_sort32_interleaves_values_and_payload_bits():
    """Section 7, trap 23. Payloads that are NaN patterns or subnormals as floats survive."""
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 2**32, (4, 64), dtype=np.uint32))
    with kernel() as machine:
        got = pl.sort32(tile(A), tile(labels))
        assert machine.findings == []
        assert got.shape == (4, 128)
        values = pl.gather(got, mask_pattern=MaskPattern.P0101).data.numpy()
        payload = pl.gather(got, mask_pattern=MaskPattern.P1010, output_dtype=dt.UINT32).data.numpy()
    for row in range(4):
        for block in (slice(0, 32), slice(32, 64)):
            order = np.argsort(-A[row, block].numpy(), kind="stable")
            assert np.array_equal(values[row, block], A[row, block].numpy()[order])
            assert np.array_equal(payload[row, block], labels[row, block].numpy()[order])


def full_sort(values: torch.Tensor):
    """sort32, then merges of four until one run is left (the idiom of 3.11)."""
    n = values.shape[1]
    pairs = pl.sort32(tile(values), pl.arange(0, [1, n], dtype=dt.UINT32))
    run = 64
    while run < 2 * n:
        pairs = pl.mrgsort(pairs, block_len=run)
        run *= 4
    return pairs


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n", [128, 512, 2048])
def test_a_full_sort_orders_everything_and_carries_the_index(seed, n):
    values = randn(1, n, seed=seed).round(decimals=1)  # many ties
    with kernel(seed):
        pairs = full_sort(values)
        got = pl.gather(pairs, mask_pattern=MaskPattern.P0101).data[0]
        where = pl.gather(pairs, mask_pattern=MaskPattern.P1010, output_dtype=dt.INT32).data[0]
    assert torch.equal(got, values[0].sort(descending=True).values)
    assert torch.equal(values[0][where.long()], got)
    assert sorted(where.tolist()) == list(range(n))
    if seed == 0:
        assert where.tolist() == np.argsort(-values[0].numpy(), kind="stable").tolist()


def test_lists_of_other_lengths_merge():
    with kernel():
        a, b = (
            full_sort(randn(1, 128, seed=1)),
            pl.sort32(tile(randn(1, 32, seed=2)), pl.arange(500, [1, 32], dtype=dt.UINT32)),
        )
        merged = pl.mrgsort(a, b)
        assert merged.shape == (1, 320)
        values = merged.data[0, ::2]
        assert bool((values[:-1] >= values[1:]).all())
        assert merged.data.view(torch.int32)[0, 1::2].sort().values.tolist() == [*range(128), *range(500, 532)]


def test_an_exhausted_merge_leaves_an_undefined_tail():
    with kernel():
        high = pl.sort32(tile(torch.arange(32).float().reshape(1, 32) + 100), pl.arange(0, [1, 32], dtype=dt.UINT32))
        low = pl.sort32(tile(torch.arange(32).float().reshape(1, 32)), pl.arange(32, [1, 32], dtype=dt.UINT32))
        merged = pl.mrgsort(high, low, exhausted=True)
        assert not bool(merged.taint[0, :64].any())
        assert bool((merged.taint[0, 64:] > 0).all())


def test_rejects_merges_of_unsorted_runs_and_bad_lengths():
    pairs = torch.zeros(1, 256)
    pairs[0, 66] = 1.0  # pair 1 of run 1 rises
    with kernel():
        with rejects("a run is not sorted descending (run [0, 1], pair 0)"):
            pl.mrgsort(tile(pairs), block_len=64)
        with rejects("256 positions must be 1 to 255 groups of 4 runs of 128"):
            pl.mrgsort(tile(pairs), block_len=128)
        with rejects("block_len 32 must be a positive multiple of 64"):
            pl.mrgsort(tile(pairs), block_len=32)
        with rejects("must be a single row"):
            pl.mrgsort(tile(torch.zeros(2, 256)), block_len=64)
        with rejects("needs block_len, or two to four lists, got 1"):
            pl.mrgsort(tile(pairs))


def test_rejects_sort32_of_other_types_and_widths():
    with kernel():
        labels = pl.arange(0, [1, 64], dtype=dt.UINT32)
        with rejects("FP16 records are 8 bytes"):
            pl.sort32(tile(A[:1].half()), labels)
        with rejects("N % 32 = 0"):
            pl.sort32(tile(A[:1, :40]), pl.arange(0, [1, 40], dtype=dt.UINT32))
    with kernel() as machine:
        pl.sort32(tile(A[:1]), pl.arange(0, [1, 64]))
        assert codes(machine) == {"GG201"}


def test_an_undefined_key_leaves_its_block_undefined():
    with kernel():
        values = pl.create_tile([1, 64], dt.FP32)
        pl.assemble(values, tile(A[:1, :40]), [0, 0])
        got = pl.sort32(values, pl.arange(0, [1, 64], dtype=dt.UINT32))
        assert not bool(got.taint[0, :64].any())
        assert bool((got.taint[0, 64:] > 0).all())
