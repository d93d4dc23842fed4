"""Element-wise ops, broadcasting, comparison and bits (pypto_dsl.md 3.1, 3.2, 3.5)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ops_testing import codes, gm, kernel, pl, randn, rejects, tile

from harness.devices.emulator import dtypes as dt
from harness.devices.emulator.values import Scalar, Tile

A, B = randn(8, 64, seed=1), randn(8, 64, seed=2)
COLUMN, ROW = randn(8, 1, seed=3), randn(1, 64, seed=4)


def same_bits(got: torch.Tensor, expected: np.ndarray) -> bool:
    raw = np.ascontiguousarray(expected)
    return got.numpy().tobytes() == raw.astype(got.numpy().dtype).tobytes()


def fp64(function, *operands: torch.Tensor) -> np.ndarray:
    """One rounding to FP32 of an FP64 evaluation: the definition of a correctly rounded + − · / √ of FP32 values."""
    with np.errstate(all="ignore"):
        return np.asarray(function(*(o.double().numpy() for o in operands))).astype(np.float32)


@pytest.mark.parametrize(("name", "function"), [
    ("add", np.add), ("sub", np.subtract), ("mul", np.multiply), ("div", np.divide),
    ("maximum", np.maximum), ("minimum", np.minimum),
])  # fmt: skip
def test_accepts_two_tiles_and_a_scalar(name, function):
    with kernel():
        assert same_bits(getattr(pl, name)(tile(A), tile(B)).data, fp64(function, A, B))
        scalar = torch.tensor(np.float32(0.3))
        assert same_bits(getattr(pl, name)(tile(A), 0.3).data, fp64(function, A, scalar))


@pytest.mark.parametrize(("name", "function"), [
    ("neg", np.negative), ("abs", np.abs), ("sqrt", np.sqrt), ("recip", np.reciprocal), ("exp", np.exp),
    ("log", np.log),
    ("sin", np.sin), ("cos", np.cos), ("relu", lambda x: np.maximum(x, 0)),
])  # fmt: skip
def test_accepts_one_tile(name, function):
    with kernel():
        got = getattr(pl, name)(tile(A.abs() + 1e-3)).data
    assert same_bits(got, fp64(function, A.abs() + 1e-3))


def test_accepts_fp16_with_a_rounding_per_op():
    a, b = A.half(), B.half()
    with kernel():
        got = pl.mul(tile(a), tile(b)).data
        third = pl.mul(tile(a), 1 / 3).data
    assert same_bits(got, (a.double() * b.double()).numpy().astype(np.float16))
    assert same_bits(third, (a.double() * float(np.float16(np.float32(1 / 3)))).numpy().astype(np.float16))


def test_neg_multiplies_by_minus_one():
    """Section 7, trap 17."""
    with kernel():
        got = pl.neg(tile(torch.zeros(1, 8))).data
    assert bool(torch.signbit(got).all())


def test_literal_is_rounded_to_fp32_once():
    """Section 7, trap 14."""
    ones = torch.ones(1, 8)
    with kernel():
        got = pl.mul(tile(ones), 1 / 3).data
    assert float(got[0, 0]) == float(np.float32(1 / 3))


def test_integers_wrap():
    big = torch.full((1, 8), 2**31 - 1, dtype=torch.int32)
    with kernel():
        assert pl.add(tile(big), 1).data[0, 0] == -(2**31)
        assert pl.add(tile(big), tile(big)).data[0, 0] == -2


def test_fmod_and_rem_are_computed_literally():
    a, b = A * 100, B
    quotient = fp64(np.divide, a, b)
    with kernel():
        f, r = pl.fmod(tile(a), tile(b)).data, pl.rem(tile(a), tile(b)).data
    for got, rounded in ((f, np.trunc(quotient)), (r, np.floor(quotient))):
        product = (rounded.astype(np.float64) * b.double().numpy()).astype(np.float32)
        assert same_bits(got, (a.double().numpy() - product).astype(np.float32))


def test_addc_rounds_twice_and_lrelu_once():
    with kernel():
        got = pl.addc(tile(A), tile(B), tile(A)).data
        leaky = pl.lrelu(tile(A), 0.1).data
    first = fp64(np.add, A, B)
    assert same_bits(got, (first.astype(np.float64) + A.double().numpy()).astype(np.float32))
    assert same_bits(leaky, np.where(A.numpy() > 0, A.numpy(), A.numpy() * np.float32(0.1)))


def test_an_operand_in_global_memory_is_loaded():
    source = A.clone()
    with kernel() as machine:
        result = pl.add(gm(source), gm(B))
        source += 1
        assert isinstance(result, Tile)
        assert same_bits(result.data, fp64(np.add, A, B))
        assert machine.counters["gm_read_bytes"] == 2 * 8 * 64 * 4


# --- broadcasting ----------------------------------------------------------------------------------------------------

EXPAND = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.maximum, "min": np.minimum,
}  # fmt: skip


@pytest.mark.parametrize("name", EXPAND)
@pytest.mark.parametrize(("axis", "vector"), [("row", COLUMN), ("col", ROW)])
def test_accepts_explicit_broadcast(name, axis, vector):
    with kernel():
        got = getattr(pl, f"{axis}_expand_{name}")(tile(A), tile(vector)).data
    assert same_bits(got, fp64(EXPAND[name], A, vector))


@pytest.mark.parametrize(("axis", "vector"), [("row", COLUMN), ("col", ROW)])
def test_expdif_rounds_the_difference_first(axis, vector):
    with kernel():
        got = getattr(pl, f"{axis}_expand_expdif")(tile(A), tile(vector)).data
    assert same_bits(got, fp64(np.exp, torch.from_numpy(fp64(np.subtract, A, vector))))


def test_expand_ignores_the_target():
    """Section 7, trap 7: not even undefined values of the target matter."""
    with kernel():
        target = pl.create_tensor([8, 64], dt.FP32)
        rows, columns = pl.row_expand(target, tile(COLUMN)), pl.col_expand(target, tile(ROW))
        filled = pl.expands(target, 2.5)
        cloned = pl.expand_clone(tile(ROW), target)
        for result in (rows, columns, filled, cloned):
            assert result.storage.taint is None
        assert torch.equal(rows.data, COLUMN.expand(8, 64))
        assert torch.equal(columns.data, ROW.expand(8, 64))
        assert torch.equal(cloned.data, ROW.expand(8, 64))
        assert bool((filled.data == 2.5).all())


def test_matrix_with_column_is_implicit():
    with kernel():
        assert torch.equal(pl.sub(tile(A), tile(COLUMN)).data, A - COLUMN)


@pytest.mark.parametrize("name", ["sub", "div", "add", "mul"])
def test_rejects_column_with_matrix(name):
    """Section 7, trap 6: the device exchanges the operands."""
    with kernel(), rejects(f"pl.{name}: [8, 1] with [8, 64]", f"row_expand_{name}"):
        getattr(pl, name)(tile(COLUMN), tile(A))


def test_rejects_a_row_without_col_expand():
    with kernel(), rejects("[8, 64] and [1, 64] differ", "pl.col_expand_add"):
        pl.add(tile(A), tile(ROW))


def test_rejects_other_shapes():
    with kernel(), rejects("pl.add: shapes [16, 64] and [32, 64] differ"):
        pl.add(tile(randn(16, 64)), tile(randn(32, 64)))
    with kernel(), rejects("pl.maximum: shapes [8, 64] and [8, 1] differ"):
        pl.maximum(tile(A), tile(COLUMN))
    with kernel(), rejects("needs a column [M, 1], not [1, 64]"):
        pl.row_expand_mul(tile(A), tile(ROW))
    with kernel(), rejects("needs a row [1, N], not [8, 1]"):
        pl.col_expand_mul(tile(A), tile(COLUMN))


# --- dtypes ----------------------------------------------------------------------------------------------------------


def test_rejects_a_float_on_integers():
    """Section 7, trap 19."""
    with kernel(), rejects("pl.mul", "the number 0.5 meets a pl.INT32 tile"):
        pl.mul(tile(torch.ones(1, 8, dtype=torch.int32)), 0.5)


def test_rejects_a_leading_scalar_and_a_bool():
    with kernel(), rejects("pl.sub: the first operand must be a tensor or tile"):
        pl.sub(1.0, tile(A))
    with kernel(), rejects("a Bool is no arithmetic operand"):
        pl.add(tile(A), True)
    with kernel(), rejects("needs a float tile, not pl.INT32"):
        pl.exp(tile(torch.ones(1, 8, dtype=torch.int32)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_halves_without_arithmetic_are_recorded(dtype):
    """Section 7, trap 20."""
    x = torch.ones(1, 32, dtype=dtype)
    with kernel() as machine:
        pl.add(tile(x), tile(x))
        assert codes(machine) == {"GG202"}


def test_mixed_dtypes_are_recorded():
    with kernel() as machine:
        result = pl.add(tile(A), tile(B.bfloat16()))
        assert codes(machine) == {"GG201"}
        assert result.dtype is dt.FP32
    with kernel() as machine:
        pl.add(tile(A), Scalar(1, dt.INT32))
        assert codes(machine) == {"GG201"}


def test_legal_use_leaves_no_finding():
    with kernel() as machine:
        pl.exp(pl.add(pl.mul(tile(A), tile(B)), 1.0))
        assert machine.findings == []


@pytest.mark.parametrize("shape", [(8, 6), (4, 1)])
def test_unaligned_tiles_are_recorded(shape):
    """Section 7, trap 35."""
    with kernel() as machine:
        pl.mul(tile(torch.ones(shape)), 2.0)
        assert codes(machine) == {"GG101"}


def test_rejects_a_tile_beyond_the_vector_memory():
    """Section 7, trap 35; appendix C: refused in on-chip allocation."""
    with kernel(), rejects("GG102", "262144 bytes"):
        pl.mul(tile(torch.ones(16, 4096)), 2.0)


# --- valid regions and taint -----------------------------------------------------------------------------------------


def test_only_the_valid_box_is_computed():
    """Section 7, trap 8."""
    with kernel() as machine:
        result = pl.add(tile(A, (5, 40)), tile(B, (5, 40)))
        assert result.valid == (5, 40)
        assert torch.equal(result.valid_data, (A + B)[:5, :40])
        assert bool(result.data[5:].isnan().all())
        assert bool((result.taint[5:] > 0).all())
        assert bool((result.taint[:5, :40] == 0).all())
        assert machine.findings == []


def test_other_valid_boxes_are_recorded():
    with kernel() as machine:
        result = pl.add(tile(A, (5, 64)), tile(B))
        assert codes(machine) == {"GG208"}
        assert result.valid == (5, 64)


def test_taint_is_the_maximum_of_the_operands():
    with kernel() as machine:
        holed = pl.create_tile([8, 64], dt.FP32)
        pl.assemble(holed, tile(A[:4]), [0, 0])
        result = pl.add(pl.row_expand_mul(holed, tile(COLUMN)), tile(B))
        assert bool((result.taint[4:] > 0).all())
        assert not bool(result.taint[:4].any())
        assert "never-written element of create_tile" in machine.origin_text(int(result.taint[5, 0]))
        with rejects("pl.read", "[4, 0] is undefined", "create_tile"):
            pl.read(result, [4, 0])


def test_rejects_l1_operands():
    with kernel(), rejects("the first operand lies in Mat"):
        pl.neg(pl.create_l1([16, 64], dt.FP32))


def test_partial_ops_take_the_valid_one():
    with kernel():
        got = pl.part_add(tile(A), tile(B, (5, 64)))
        assert got.full
        assert torch.equal(got.data[:5], (A + B)[:5])
        assert torch.equal(got.data[5:], A[5:])
    with kernel(), rejects("neither valid region [5, 64], [8, 40] contains the other"):
        pl.part_max(tile(A, (5, 64)), tile(B, (8, 40)))


# --- comparison and bits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "function"), list(enumerate(
    [np.equal, np.not_equal, np.less, np.less_equal, np.greater, np.greater_equal])))  # fmt: skip
def test_accepts_every_comparison_of_floats(kind, function):
    a = A.round()
    with kernel() as machine:
        mask = pl.cmp(tile(a), tile(B.round()), kind)
        assert same_bits(mask.data, function(a.numpy(), B.round().numpy()).astype(np.float32))
        chosen = pl.sel(mask, tile(A), tile(B))
        assert torch.equal(chosen.data, torch.where(mask.data != 0, A, B))
        assert machine.findings == []


def test_int32_compare_tests_equality():
    """Section 7, trap 5."""
    x = torch.arange(8, dtype=torch.int32).reshape(1, 8)
    with kernel() as machine:
        assert pl.cmps(tile(x), 3, 4).data.tolist() == [[0, 0, 0, 1, 0, 0, 0, 0]]
        assert codes(machine) == {"GG207"}
    with kernel() as machine:
        pl.cmps(tile(x), 3, 0)
        assert machine.findings == []
    with kernel(), rejects("cmp_type 6 is outside 0..5"):
        pl.cmp(tile(A), tile(B), 6)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint16, np.uint32])
def test_accepts_bit_operations(dtype):
    rng = np.random.default_rng(2)
    bits = np.dtype(dtype).itemsize * 8
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    a = rng.integers(low, high, (4, 32), dtype=dtype, endpoint=True)
    b = rng.integers(low, high, (4, 32), dtype=dtype, endpoint=True)
    shift = rng.integers(0, bits, (4, 32)).astype(dtype)
    with kernel():
        x, y, s = (tile(torch.from_numpy(v.copy())) for v in (a, b, shift))
        assert np.array_equal(pl.and_(x, y).data.numpy(), a & b)
        assert np.array_equal(pl.or_(x, y).data.numpy(), a | b)
        assert np.array_equal(pl.xor(x, y).data.numpy(), a ^ b)
        assert np.array_equal(pl.shl(x, s).data.numpy(), a << shift)
        assert np.array_equal(pl.shr(x, s).data.numpy(), a >> shift)
        assert np.array_equal(pl.shrs(x, 3).data.numpy(), a >> 3)
        if bits == 16:
            assert np.array_equal(pl.not_(x).data.numpy(), ~a)
        else:
            with rejects("needs a 16-bit integer tile"):
                pl.not_(x)


def test_rejects_bits_of_floats():
    with kernel(), rejects("pl.and_: needs a 16- or 32-bit integer tile, not pl.FP32"):
        pl.and_(tile(A), tile(B))


@pytest.mark.parametrize("name", ["add", "exp", "row_sum", "matmul", "fillpad", "sort32", "load"])
def test_rejects_compute_in_orchestration(name):
    with kernel(region=False), rejects(f"misplaced operation: pl.{name}"):
        getattr(pl, name)(gm(A), gm(B))


def test_rejects_what_only_a5_has():
    with kernel(), rejects("pl.random: exists on A5 only"):
        pl.random(1, 2)
