"""Matrix multiplication on the cube unit (contracts/pypto_dsl.md 3.7)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor as Torch

from harness.devices.emulator.dtypes import BF16, FP16, FP32, INT8, INT32, DType
from harness.devices.emulator.machine import fault, machine
from harness.devices.emulator.ops.common import check_space, embed, gm_copy, merge_taint
from harness.devices.emulator.optable import op
from harness.devices.emulator.values import Tensor, Tile, describe

_OPERANDS = frozenset((INT8, FP16, BF16, FP32))
_FRACTAL_K = {FP32: 8, FP16: 16, BF16: 16}
_EXACT_K = 1024  # products of INT8 are at most 2^14, so 2^10 of them stay within FP32's exact integers


class _Factor:
    """One operand with its transpose flag resolved: `[..., rows, K]` on the left, `[..., K, columns]` on the right."""

    __slots__ = ("data", "dtype", "shape", "taint", "valid")

    def __init__(self, tile: Tile, transposed: bool) -> None:
        self.dtype = tile.dtype
        data, taint = tile.data, tile.taint
        shape, valid = list(tile.shape), list(tile.valid)
        if transposed:
            shape[-1], shape[-2] = shape[-2], shape[-1]
            valid[-1], valid[-2] = valid[-2], valid[-1]
        self.data: Torch = data.mT if transposed else data
        self.taint: Torch | None = taint if taint is None or not transposed else taint.mT
        self.shape, self.valid = tuple(shape), tuple(valid)


def _operand(value: object, name: str, side: str) -> Tile:
    tile = gm_copy(value, "Mat") if isinstance(value, Tensor) else value
    if not isinstance(tile, Tile):
        raise fault(f"pl.{name}: {side} must be a tensor or tile, not {describe(value)}")
    if len(tile.shape) < 2:
        raise fault(f"pl.{name}: {side} {list(tile.shape)} needs at least two axes")
    if tile.dtype not in _OPERANDS:
        raise fault(f"pl.{name}: the cube unit has no {tile.dtype} operands")
    rows, columns = tile.shape[-2:]
    if (rows != 1 and rows % 16) or columns * tile.dtype.nbytes % 32:
        machine().lint(
            "GG103",
            f"pl.{name}: {side} {[rows, columns]} {tile.dtype}: rows must be a multiple of 16 and a row of 32 bytes",
        )
    if rows > 4095 or columns > 4095:
        machine().lint("GG105", f"pl.{name}: {side} {[rows, columns]}: an extent exceeds 4095")
    check_space((rows, columns), tile.dtype, "Mat")
    return tile


def _multiply(
    name: str, lhs: object, rhs: object, a_trans: bool, b_trans: bool, acc: Tile | None = None
) -> tuple[Torch, Torch | None, tuple[int, ...], DType]:
    """The product (added to the accumulator) on the valid box: data, taint, physical shape, accumulator dtype."""
    left, right = _Factor(_operand(lhs, name, "lhs"), a_trans), _Factor(_operand(rhs, name, "rhs"), b_trans)
    if left.dtype is not right.dtype:
        raise fault(f"pl.{name}: operands are {left.dtype} and {right.dtype}; the cube unit needs equal dtypes")
    if left.shape[-1] != right.shape[-2]:
        raise fault(f"pl.{name}: K differs: lhs {list(left.shape)}, rhs {list(right.shape)} (after transposition)")
    batch = _batch(left.shape[:-2], right.shape[:-2], name)
    depth = left.valid[-1]
    if depth != right.valid[-2]:
        machine().lint("GG208", f"pl.{name}: valid K is {depth} for lhs and {right.valid[-2]} for rhs")
    shape = (*batch, left.shape[-2], right.shape[-1])
    check_space(shape[-2:], INT32, "Acc")
    a = left.data[..., : left.valid[-2], :depth]
    b = right.data[..., :depth, : right.valid[-1]]
    taint = _product_taint(left, right, depth)
    start = None if acc is None else acc.data[..., : a.shape[-2], : b.shape[-1]]
    machine().count("cube_macs", a.numel() * b.shape[-1])
    if left.dtype is INT8:
        product = _int8(a, b)
        return product if start is None else start + product, taint, shape, INT32
    return _float(a, b, _FRACTAL_K[left.dtype], start), taint, shape, FP32


def _batch(left: tuple[int, ...], right: tuple[int, ...], name: str) -> tuple[int, ...]:
    """Leading axes broadcast against each other, aligned at the right. Raises where neither is 1."""
    rank = max(len(left), len(right))
    pairs = list(zip((1,) * (rank - len(left)) + left, (1,) * (rank - len(right)) + right, strict=True))
    if any(a != b and 1 not in (a, b) for a, b in pairs):
        raise fault(f"pl.{name}: batch axes {list(left)} and {list(right)} differ")
    return tuple(b if a == 1 else a for a, b in pairs)


def _product_taint(left: _Factor, right: _Factor, depth: int) -> Torch | None:
    """An element is undefined when its row of lhs or its column of rhs holds something undefined."""
    rows = None if left.taint is None else left.taint[..., : left.valid[-2], :depth].amax(dim=-1, keepdim=True)
    columns = None if right.taint is None else right.taint[..., :depth, : right.valid[-1]].amax(dim=-2, keepdim=True)
    return merge_taint(rows, columns)


def _int8(a: Torch, b: Torch) -> Torch:
    """Exact INT32 product: FP32 multiplies in chunks of K whose sums FP32 holds exactly."""
    wide_a, wide_b = a.float(), b.float()
    depth = a.shape[-1]
    if depth <= _EXACT_K:
        return torch.matmul(wide_a, wide_b).to(torch.int32)
    total: Torch | None = None
    for k in range(0, depth, _EXACT_K):
        part = torch.matmul(wide_a[..., k : k + _EXACT_K], wide_b[..., k : k + _EXACT_K, :]).to(torch.int32)
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def _float(a: Torch, b: Torch, fractal: int, start: Torch | None) -> Torch:
    """`start` + a·b in FP32, in the schedule's K order.

    `exact`: the product of the whole call rounded once, then one addition. The others round after every fractal:
    one after another from `start` on, in a drawn order, or summed as a tree.
    """
    schedule = machine().schedule
    order = schedule.pick("cube")
    wide_a, wide_b = a.double(), b.double()
    if order == "exact":
        product = torch.matmul(wide_a, wide_b).float()
        return product if start is None else start + product
    parts = _fractals(wide_a, wide_b, fractal)
    if order == "tree":
        product = _tree(list(parts))
        return product if start is None else start + product
    if order == "shuffled":
        listed = list(parts)
        parts = (listed[i] for i in schedule.permutation(len(listed)))
    total = next(parts) if start is None else start.clone()
    for part in parts:
        total = total + part
    return total


def _fractals(a: Torch, b: Torch, step: int) -> Iterator[Torch]:
    """The products of `step` neighbouring K elements each, rounded to FP32, in ascending order."""
    rows, columns, depth = a.shape[-2], b.shape[-1], a.shape[-1]
    whole = depth // step
    lefts = a[..., : whole * step].reshape(*a.shape[:-1], whole, step).movedim(-2, 0)
    rights = b[..., : whole * step, :].reshape(*b.shape[:-2], whole, step, columns).movedim(-3, 0)
    # Many small products in one call; a chunk of them keeps the FP64 results within a few megabytes.
    chunk = max(1, 2**19 // max(1, rows * columns))
    for start in range(0, whole, chunk):
        yield from torch.matmul(lefts[start : start + chunk], rights[start : start + chunk]).float()
    if whole * step < depth:
        yield torch.matmul(a[..., whole * step :], b[..., whole * step :, :]).float()


def _tree(parts: list[Torch]) -> Torch:
    """Adjacent pairs until one is left."""
    while len(parts) > 1:
        merged = [x + y for x, y in zip(parts[0::2], parts[1::2], strict=False)]
        parts = merged + parts[len(merged) * 2 :]
    return parts[0]


@op("matmul", "tensor.matmul", "tile.matmul", "batch_matmul", "tensor.batch_matmul", "tile.batch_matmul")
def matmul(
    lhs: Tensor | Tile,
    rhs: Tensor | Tile,
    out_dtype: DType | None = None,
    a_trans: bool = False,
    b_trans: bool = False,
    c_matrix_nz: bool = False,
) -> Tile:
    """lhs · rhs into a new accumulator: INT32 for INT8, else FP32, whatever `out_dtype` says (3.7)."""
    data, taint, shape, dtype = _multiply("matmul", lhs, rhs, a_trans, b_trans)
    if out_dtype is None:
        machine().lint("GG205", f"pl.matmul without out_dtype: the accumulator is {dtype}")
    elif out_dtype is not dtype:
        machine().lint("GG205", f"pl.matmul with out_dtype {out_dtype}: the accumulator is {dtype} all the same")
    return embed(data, dtype, shape, "matmul", taint=taint, space="Acc")


@op("matmul_acc", "tensor.matmul_acc", "tile.matmul_acc", "batch_matmul_acc", "tensor.batch_matmul_acc",
    "tile.batch_matmul_acc")  # fmt: skip
def matmul_acc(
    acc: Tile,
    lhs: Tensor | Tile,
    rhs: Tensor | Tile,
    a_trans: bool = False,
    b_trans: bool = False,
    init_cond: object = None,
) -> Tile:
    """acc += lhs · rhs, in place; returns acc (3.7). With a true `init_cond` the product replaces acc."""
    if not isinstance(acc, Tile) or acc.dtype not in (FP32, INT32):
        raise fault(f"pl.matmul_acc: the accumulator must be an FP32 or INT32 tile, not {describe(acc)}")
    if init_cond is not None and not isinstance(init_cond, bool):
        raise fault(f"pl.matmul_acc: init_cond must be a Bool, not {describe(init_cond)}")
    fresh = init_cond is True
    data, taint, shape, dtype = _multiply("matmul_acc", lhs, rhs, a_trans, b_trans, None if fresh else acc)
    if acc.shape != shape or acc.dtype is not dtype:
        raise fault(f"pl.matmul_acc: the accumulator is {describe(acc)}, the product {list(shape)} {dtype}")
    own = None if fresh else acc.taint
    if taint is not None and not bool(taint.any()):
        taint = None
    region = tuple(slice(n) for n in data.shape)
    marks = merge_taint(taint, None if own is None else own[region])
    acc.data[region] = data
    if marks is not None or acc.storage.taint is not None:
        acc.storage.need_taint()
        where = acc.taint
        assert where is not None
        where[region] = 0 if marks is None else marks
    return acc


@op("matmul_bias", "tensor.matmul_bias", "tile.matmul_bias")
def matmul_bias(lhs: Tensor | Tile, rhs: Tensor | Tile, bias: Tensor | Tile, **flags: Any) -> Tile:
    """lhs · rhs + bias [1, N], the accumulator starting from the bias (3.7)."""
    row = _bias(bias)
    acc = _start(lhs, rhs, row, flags.get("a_trans", False), flags.get("b_trans", False))
    result: Tile = matmul_acc(acc, lhs, rhs, flags.get("a_trans", False), flags.get("b_trans", False))
    return result


def _bias(bias: Tensor | Tile) -> Tile:
    tile = gm_copy(bias, "Bias") if isinstance(bias, Tensor) else bias
    if not isinstance(tile, Tile) or len(tile.shape) != 2 or tile.shape[0] != 1 or tile.dtype not in (FP32, INT32):
        raise fault(f"pl.matmul_bias: the bias must be [1, N] of FP32 or INT32, not {describe(bias)}")
    return tile


def _start(lhs: Tensor | Tile, rhs: Tensor | Tile, row: Tile, a_trans: bool, b_trans: bool) -> Tile:
    rows = lhs.shape[-1] if a_trans else lhs.shape[-2]
    columns = rhs.shape[-2] if b_trans else rhs.shape[-1]
    if row.shape[1] != columns:
        raise fault(f"pl.matmul_bias: the bias {list(row.shape)} does not have {columns} columns")
    taint = row.taint
    return Tile.of(
        row.data.expand(rows, columns).clone(),
        row.dtype,
        taint=None if taint is None else taint.expand(rows, columns).clone(),
        space="Acc",
        name="matmul_bias",
    )


@op("gemv", "tensor.gemv", "tile.gemv")
def gemv(lhs: Tensor | Tile, rhs: Tensor | Tile, out_dtype: DType | None = None, **flags: Any) -> Tile:
    """A matrix product whose lhs has one row (3.7)."""
    _one_row(lhs, "gemv")
    result: Tile = matmul(lhs, rhs, out_dtype, **flags)
    return result


@op("gemv_acc", "tensor.gemv_acc", "tile.gemv_acc")
def gemv_acc(acc: Tile, lhs: Tensor | Tile, rhs: Tensor | Tile, **flags: Any) -> Tile:
    """acc += a one-row product (3.7)."""
    _one_row(lhs, "gemv_acc")
    result: Tile = matmul_acc(acc, lhs, rhs, **flags)
    return result


@op("gemv_bias", "tensor.gemv_bias", "tile.gemv_bias")
def gemv_bias(lhs: Tensor | Tile, rhs: Tensor | Tile, bias: Tensor | Tile, **flags: Any) -> Tile:
    """A one-row product that starts from the bias (3.7)."""
    _one_row(lhs, "gemv_bias")
    result: Tile = matmul_bias(lhs, rhs, bias, **flags)
    return result


def _one_row(lhs: Tensor | Tile, name: str) -> None:
    if lhs.shape[-2] != 1:
        raise fault(f"pl.{name}: lhs {list(lhs.shape)} must have one row")
