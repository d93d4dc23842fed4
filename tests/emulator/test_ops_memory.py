"""Creation, slices, loads, stores, shape and valid region (pypto_dsl.md 3.3, 3.4, 3.8)."""

from __future__ import annotations

import pytest
import torch
from ops_testing import codes, gm, kernel, pl, randn, rejects, tile

from harness.devices.emulator import dtypes as dt
from harness.devices.emulator.enums import AtomicType, MemorySpace, PadValue
from harness.devices.emulator.values import Scalar, Tensor, Tile

A = randn(8, 64, seed=1)


# --- creation --------------------------------------------------------------------------------------------------------


def test_create_tensor_is_a_tile_in_a_kernel_and_gm_outside():
    with kernel():
        x = pl.create_tensor([8, 64], dt.FP32)
        assert isinstance(x, Tile)
        assert bool(x.data.isnan().all())
        assert bool((x.taint > 0).all())
    with kernel(region=False):
        g = pl.create_tensor([8, 64], dt.INT32, manual_dep=True)
        assert isinstance(g, Tensor)
        assert g.manual_dep
        assert int(g.data[0, 0]) == int.from_bytes(b"\xa5" * 4, "little") - 2**32
        filled = pl.create_tensor([8, 64], dt.INT32, init_value=-3)
        assert filled.taint is None
        assert bool((filled.data == -3).all())


def test_created_memory_is_undefined():
    """Section 7, trap 10."""
    for create in (lambda: pl.create_tensor([8, 64], dt.FP32), lambda: pl.create_tile([8, 64], dt.FP32)):
        with kernel(), rejects("pl.read: create_t", "[0, 0] is undefined: never-written element"):
            pl.read(create(), [0, 0])
    with kernel():
        buffer = pl.create_l1([16, 64], dt.FP32)
        assert buffer.space == "Mat"
        assert bool((buffer.taint > 0).all())


def test_rejects_init_values_that_do_not_exist():
    with kernel(), rejects("init_value belongs to orchestration"):
        pl.create_tensor([8, 64], dt.FP32, init_value=0)
    with kernel(region=False), rejects("init_value 1.5 in pl.BF16"):
        pl.create_tensor([8, 64], dt.BF16, init_value=1.5)


def test_rejects_types_without_storage():
    with kernel(), rejects("pl.FP8E5M2 cannot be stored on this device"):
        pl.create_tile([8, 64], dt.FP8E5M2)


def test_full_takes_literals_only():
    with kernel():
        assert pl.full([1, 8], dt.FP32, 0.1).data[0, 0] == torch.tensor(0.1)
        assert pl.full([1, 32], dt.INT8, 300).data[0, 0] == 44
        with rejects("the value must be a literal, not a pl.FP32 scalar"):
            pl.full([1, 8], dt.FP32, Scalar(1.0, dt.FP32))


def test_arange_counts_up_and_down():
    with kernel():
        assert pl.arange(3, [1, 8]).data.tolist() == [[3, 4, 5, 6, 7, 8, 9, 10]]
        assert pl.arange(3, [1, 8], descending=True).data[0, -1] == -4
        assert pl.arange(0, [1, 8], dtype=dt.UINT32).data.dtype is torch.uint32
        with rejects("last extent above 1"):
            pl.arange(0, [8, 1])
        with rejects("leading extents 1"):
            pl.arange(0, [2, 8])
        with rejects("start is pl.INT16, the result pl.INT32"):
            pl.arange(Scalar(0, dt.INT16), [1, 8])
        with rejects("dtype must be INT16"):
            pl.arange(0, [1, 8], dtype=dt.FP32)


def test_tri_is_a_mask():
    with kernel():
        assert torch.equal(pl.tri(0, [8, 8]).data, torch.ones(8, 8, dtype=torch.int32).tril())
        assert torch.equal(pl.tri(1, [8, 8], upper=True).data, torch.ones(8, 8, dtype=torch.int32).triu(1))


def test_arrays_start_at_zero_in_orchestration_only():
    with kernel(region=False):
        assert pl.array.create(3, dt.INT32)[2] == Scalar(0, dt.INT32)
        assert pl.array.create(2, dt.TASK_ID)[0] is None
    with kernel():
        assert pl.array.create(3, dt.INT32)[0] != Scalar(0, dt.INT32)
        with rejects("elements must be integers"):
            pl.array.create(3, dt.FP32)


# --- slices and loads ------------------------------------------------------------------------------------------------


def test_slice_of_gm_is_a_view_in_orchestration_and_a_copy_in_a_kernel():
    """Section 7, trap 9."""
    with kernel(region=False):
        g = gm(A.clone())
        view = pl.slice(g, [4, 32], [2, 16])
        g.data[2, 16] = 99
        assert view.data[0, 0] == 99
    with kernel():
        g = gm(A.clone())
        copy = pl.slice(g, [4, 32], [2, 16])
        g.data[2, 16] = 99
        assert torch.equal(copy.data, A[2:6, 16:48])


def test_slice_of_a_tile_is_a_view():
    with kernel() as machine:
        t = tile(A)
        view = pl.slice(t, [4, 32], [2, 16])
        pl.assemble(t, pl.full([1, 8], dt.FP32, 7.0), [2, 16])
        assert view.data[0, :8].tolist() == [7.0] * 8
        assert machine.findings == []
        pl.slice(t, [4, 8], [0, 4])
        assert codes(machine) == {"GG106"}


def test_outside_the_valid_shape_is_undefined():
    with kernel():
        t = pl.slice(gm(A), [8, 64], [4, 0], valid_shape=[4, 64])
        assert t.valid == (4, 64)
        assert torch.equal(t.valid_data, A[4:])
        with rejects("[4, 0] is undefined", "outside the valid region of a slice of g"):
            pl.read(t, [4, 0])


@pytest.mark.parametrize("name", ["load", "slice"])
def test_only_the_valid_part_must_lie_inside(name):
    """Section 7, trap 31, and the static out-of-bounds slice of appendix C."""
    with kernel():
        if name == "load":
            assert pl.load(gm(A), [4, 0], [8, 64], [4, 64]).valid == (4, 64)
            assert pl.load(gm(A), [4, 0], [8, 64], valid_shape=[4, 64], target_memory=MemorySpace.Mat).space == "Mat"
            with rejects("load of g[8, 64] is out of bounds: axis 0, elements 4..11 of 8"):
                pl.load(gm(A), [4, 0], [8, 64])
        else:
            with rejects("slice of g[8, 64] is out of bounds: axis 1, elements 32..95 of 64"):
                pl.slice(gm(A), [8, 64], [0, 32])
            assert pl.slice(gm(A), [8, 64], [4, 0], clamp=True).valid == (4, 64)
        with rejects("out of bounds: axis 0, elements -1.."):
            getattr(pl, name)(gm(A), *(([-1, 0], [8, 64]) if name == "load" else ([8, 64], [-1, 0])))


def test_slice_drops_unit_axes():
    g = gm(randn(4, 8, 64))
    with kernel():
        t = pl.slice(g, [1, 8, 64], [2, 0, 0], drop_dims=[0])
        assert torch.equal(t.data, g.data[2])
        with rejects("axis 1 of [1, 8, 64] is not a unit axis"):
            pl.slice(g, [1, 8, 64], [2, 0, 0], drop_dims=[1])


def test_undefined_gm_is_carried_into_the_tile():
    with kernel(region=False) as machine:
        scratch = pl.create_tensor([8, 64], dt.FP32)
        machine.region = None
    with kernel():
        assert bool((pl.slice(scratch, [4, 64], [0, 0]).taint > 0).all())


# --- stores ----------------------------------------------------------------------------------------------------------


def test_assemble_writes_in_place_and_returns_the_target():
    with kernel():
        out = gm(torch.zeros(16, 64))
        assert pl.assemble(out, tile(A, (5, 40)), [8, 0]) is out
        assert torch.equal(out.data[8:13, :40], A[:5, :40])
        assert not out.data[13:].any()
        assert not out.data[8:, 40:].any()
        assert pl.store(tile(A), [0, 0], out) is out
        assert torch.equal(out.data[:8], A)
        target = pl.create_tile([8, 64], dt.FP32)
        old_name = target
        pl.assemble(target, tile(A), [0, 0])
        assert torch.equal(old_name.data, A)
        assert old_name.storage.taint is None


def test_assemble_of_a_tile_into_itself_reads_before_it_writes():
    with kernel():
        t = tile(A)
        pl.assemble(t, pl.slice(t, [7, 64], [0, 0]), [1, 0])
        assert torch.equal(t.data[1:], A[:7])


def test_store_takes_a_window_of_higher_rank():
    out = gm(torch.zeros(4, 8, 64))
    with kernel():
        pl.store(tile(A), [2, 0, 0], out)
        assert torch.equal(out.data[2], A)
        pl.store(tile(A), [0, 0, 0], out, shapes=[2, 4, 64])
        assert torch.equal(out.data[:2, :4], A.view(2, 4, 64))
        with rejects("shapes [3, 4, 64] do not hold the 512 valid elements"):
            pl.store(tile(A), [0, 0, 0], out, shapes=[3, 4, 64])


def test_rejects_a_store_out_of_bounds():
    with kernel(), rejects("assemble of g[8, 64] is out of bounds: axis 0, elements 1..8 of 8"):
        pl.assemble(gm(A.clone()), tile(A), [1, 0])


def test_rejects_writes_to_a_plain_input():
    """Section 7, trap 30."""
    plain = gm(A.clone(), "x")
    plain.storage.readonly = True
    with kernel():
        with rejects("write to the plain input x: declare it pl.Out or pl.InOut"):
            pl.assemble(plain, tile(A), [0, 0])
        with rejects("write to the plain input x"):
            pl.write(plain, [0, 0], 1.0)
        with rejects("write to the plain input x"):
            pl.mscatter(tile(A), tile(torch.arange(512, dtype=torch.int32).reshape(8, 64)), plain)


def test_taint_travels_through_gm():
    with kernel():
        out = gm(torch.zeros(8, 64), "out")
        pl.assemble(out, pl.create_tile([4, 64], dt.FP32), [0, 0])
        assert bool((out.taint[:4] > 0).all())
        assert not bool(out.taint[4:].any())
        pl.assemble(out, tile(A[:4]), [0, 0])
        assert not bool(out.taint.any())


def test_storing_another_dtype_is_recorded():
    with kernel() as machine:
        out = gm(torch.zeros(8, 64))
        pl.assemble(out, tile(A.bfloat16()), [0, 0])
        assert codes(machine) == {"GG209"}
        assert torch.equal(out.data, A.bfloat16().float())


def test_accumulator_leaves_with_ties_to_even():
    """Section 7, trap 2: the same tie goes another way in pl.cast."""
    tie = torch.full((16, 16), 1.00390625)
    with kernel() as machine:
        acc = pl.matmul(tile(tie), tile(torch.eye(16)), out_dtype=dt.FP32)
        out = gm(torch.zeros(16, 16, dtype=torch.bfloat16))
        pl.assemble(out, acc, [0, 0])
        assert out.data[0, 0] == 1.0
        assert machine.findings == []
        assert pl.cast(acc, dt.BF16).data[0, 0] == 1.0078125
        integer = pl.matmul(tile(torch.ones(16, 32, dtype=torch.int8)), tile(torch.ones(32, 32, dtype=torch.int8)),
                            out_dtype=dt.INT32)  # fmt: skip
        with rejects("an accumulator of pl.INT32 cannot leave as pl.FP32"):
            pl.assemble(gm(torch.zeros(16, 32)), integer, [0, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int32])
def test_atomic_add_rounds_per_addition(dtype):
    start, step = torch.full((8, 64), 1).to(dtype), (A * 3).to(dtype)
    with kernel():
        out = gm(start.clone())
        for _ in range(2):
            pl.assemble(out, tile(step), [0, 0], atomic=AtomicType.Add)
    expected = ((start.double() + step.double()).to(dtype).double() + step.double()).to(dtype)
    assert torch.equal(out.data, expected)


def test_atomic_add_on_undefined_memory_stays_undefined():
    with kernel(region=False):
        out = pl.create_tensor([8, 64], dt.FP32)
    with kernel():
        pl.assemble(out, tile(A), [0, 0], atomic=AtomicType.Add)
        assert bool((out.taint > 0).all())
        with rejects("atomic=Add needs a target in global memory"):
            pl.assemble(pl.create_tile([8, 64], dt.FP32), tile(A), [0, 0], atomic=AtomicType.Add)
        with rejects("no atomic addition in pl.INT64"):
            pl.store(tile(A.long()), [0, 0], gm(A.long()), atomic=AtomicType.Add)


# --- shape and valid region ------------------------------------------------------------------------------------------


def test_reshape_aliases():
    with kernel(region=False):
        g = gm(A.clone())
        pl.reshape(g, [2, 4, 64]).data[1, 0, 0] = 42
        assert g.data[4, 0] == 42
        with rejects("[8, 64] has 512 elements, [8, 65] does not"):
            pl.reshape(g, [8, 65])
        with rejects("the strided view g[8, 32] has no alias of shape [256]"):
            pl.reshape(pl.slice(g, [8, 32], [0, 0]), [256])
    with kernel():
        t = tile(A[:, :1])
        pl.reshape(t, [1, 8]).data[0, 3] = 7
        assert t.data[3, 0] == 7


def test_reshape_declares_garbage_valid():
    """Section 7, trap 8."""
    with kernel():
        t = pl.reshape(tile(A, (5, 64)), [1, 512])
        assert t.full
        assert bool((t.taint[0, 320:] > 0).all())
        assert not bool(t.taint[0, :320].any())


def test_transpose_copies_in_a_kernel_and_swaps_the_valid_region():
    with kernel():
        source = tile(A, (5, 40))
        t = pl.transpose(source, 0, 1)
        source.data.zero_()
        assert t.valid == (40, 5)
        assert torch.equal(t.valid_data, A[:5, :40].T)
        with rejects("no transposition of pl.INT64"):
            pl.transpose(tile(A.long()), 0, 1)
    with kernel(region=False):
        g = gm(A.clone())
        pl.transpose(g, 0, 1).data[3, 0] = 42
        assert g.data[0, 3] == 42


def test_set_validshape_changes_the_source_too():
    """Section 7, trap 9."""
    with kernel():
        t = tile(A)
        narrowed = pl.set_validshape(t, 5, 40)
        assert narrowed.storage is t.storage
        assert t.valid == (5, 40)
        assert pl.set_validshape(t, 8, 64).storage.taint is None
        with rejects("valid shape [9, 64] does not fit the physical shape [8, 64]"):
            pl.set_validshape(t, 9, 64)


@pytest.mark.parametrize(("dtype", "low", "high"), [
    (torch.float32, -torch.inf, torch.inf), (torch.bfloat16, -torch.inf, torch.inf), (torch.int32, -(2**31), 2**31 - 1),
    (torch.int8, -128, 127), (torch.uint8, 0, 255),
])  # fmt: skip
def test_fillpad_is_full_and_uses_infinities(dtype, low, high):
    """Section 7, trap 11."""
    with kernel():
        for pad, value in ((PadValue.min, low), (PadValue.max, high), (PadValue.zero, 0), (0, 0)):
            t = pl.fillpad(tile(A.to(dtype), (5, 40)), pad_value=pad)
            assert t.full
            assert t.storage.taint is None
            assert torch.equal(t.data[:5, :40], A.to(dtype)[:5, :40])
            assert bool((t.data[5:] == value).all())
            assert bool((t.data[:, 40:] == value).all())


def test_fillpad_expand_and_inplace():
    with kernel():
        grown = pl.fillpad_expand(tile(A), [16, 64])
        assert torch.equal(grown.data[:8], A)
        assert not grown.data[8:].any()
        t = tile(A, (5, 64))
        assert pl.tile.fillpad_inplace(t) is t
        assert t.full
        assert not t.data[5:].any()
        with rejects("[4, 64] is not at least [8, 64]"):
            pl.fillpad_expand(tile(A), [4, 64])
        with rejects("must be a pl.PadValue, 0 or an infinity, not the number 3"):
            pl.fillpad(tile(A), 3)


def test_concat_joins_columns():
    with kernel():
        t = pl.concat(tile(A), tile(A[:, :32], (8, 16)))
        assert t.valid == (8, 80)
        assert torch.equal(t.valid_data, torch.cat((A, A[:, :16]), dim=1))
        with rejects("must be 2-D with equal rows"):
            pl.concat(tile(A), tile(A[:4]))
        with rejects("leave a gap"):
            pl.concat(tile(A, (8, 40)), tile(A))


def test_move_extract_and_transpose_view():
    with kernel():
        t = tile(A)
        moved = pl.move(t, MemorySpace.Mat)
        part = pl.tile.extract(t, 2, 16, [4, 32], target_memory=MemorySpace.Vec)
        turned = pl.tile.transpose_view(moved)
        t.data.zero_()
        assert moved.space == "Mat"
        assert torch.equal(turned.data, A.T)
        assert turned.storage is moved.storage
        assert torch.equal(part.data, A[2:6, 16:48])


def test_reinterpret_keeps_bits():
    with kernel():
        assert torch.equal(pl.reinterpret_view(tile(A), dt.INT32).data, A.view(torch.int32))
        with rejects("have different widths"):
            pl.reinterpret_view(tile(A), dt.INT16)


def test_prefetch_does_nothing():
    with kernel(region=False):
        context = pl.prefetch.make_context()
        event = pl.prefetch.async_prefetch(pl.slice(gm(A), [4, 64], [0, 0]), context)
        assert pl.prefetch.wait(event, pl.prefetch.session(context)) is None
        with rejects("needs a tensor in global memory"):
            pl.prefetch.async_prefetch(3, context)


def test_host_data_may_start_inside_a_larger_tensor():
    big = randn(16, 64)
    with kernel():
        assert torch.equal(tile(big[8:]).data, big[8:])
