"""Scatters (contracts/pypto_dsl.md 3.9, 3.11). The winner among duplicate targets is undefined: it is an error here."""

from __future__ import annotations

import torch
from torch import Tensor as Torch

from harness.devices.emulator.machine import fault, machine
from harness.devices.emulator.ops.common import as_tile
from harness.devices.emulator.ops.gather import checked_index, pattern
from harness.devices.emulator.ops.memory import touch
from harness.devices.emulator.optable import op
from harness.devices.emulator.values import Tensor, Tile, as_int, describe


def _copied(tile: Tile, name: str) -> Tile:
    taint = tile.taint
    return Tile.of(
        tile.data.clone(memory_format=torch.contiguous_format),
        tile.dtype,
        valid=tile.valid,
        taint=None if taint is None else taint.clone(),
        name=name,
    )


def _set(target: Tile, where: tuple[Torch | slice, ...], source: Tile) -> None:
    """Elements of the target's buffer at an index expression, with their taint."""
    target.data[where] = source.data
    if source.taint is not None or target.storage.taint is not None:
        target.storage.need_taint()
        marks = target.taint
        assert marks is not None
        marks[where] = 0 if source.taint is None else source.taint


def _refuse_duplicates(positions: Torch, name: str) -> None:
    ordered = positions.sort(dim=-1).values
    if bool((ordered[..., 1:] == ordered[..., :-1]).any()):
        raise fault(f"pl.{name}: two sources go to the same place; which one wins is undefined")


@op("scatter", "tensor.scatter", "tile.scatter")
def scatter(
    input: Tensor | Tile,
    dim: object = -1,
    index: Tensor | Tile | None = None,
    src: Tensor | Tile | None = None,
    *,
    mask_pattern: object = None,
    dst: Tensor | Tile | None = None,
) -> Tile:
    """A copy of `input` with out[b, index[b,k]] = src[b,k]; or, with `mask_pattern`, `dst` with the columns of `input`
    at the pattern's positions (3.11)."""
    if mask_pattern is not None:
        return _by_mask(as_tile(input, "scatter"), mask_pattern, as_tile(dst, "scatter", "dst"))
    base, idx = as_tile(input, "scatter"), as_tile(index, "scatter", "index")
    values = as_tile(src, "scatter", "src")
    rank = len(base.shape)
    if rank != 2 or as_int(dim, "pl.scatter dim") % rank != 1:
        raise fault(f"pl.scatter: needs 2-D operands and the last axis, not {list(base.shape)} and dim {dim}")
    if idx.shape != values.shape or idx.shape[0] != base.shape[0] or values.dtype is not base.dtype:
        raise fault(f"pl.scatter: index {list(idx.shape)} and src {describe(values)} do not fit {describe(base)}")
    if not idx.full or not values.full:
        raise fault("pl.scatter: index and src must be fully valid")
    positions = checked_index(idx, base.shape[1], "scatter")
    _refuse_duplicates(positions, "scatter")
    result = _copied(base, "scatter")
    _set(result, (torch.arange(base.shape[0])[:, None], positions), values)
    return result


def _by_mask(values: Tile, mask: object, base: Tile) -> Tile:
    stride, first = pattern(mask, "scatter")
    if values.dtype is not base.dtype or base.shape != (*values.shape[:-1], values.shape[-1] * stride):
        raise fault(f"pl.scatter: src {describe(values)} does not fill every {stride}. column of {describe(base)}")
    result = _copied(base, "scatter")
    _set(result, (slice(None),) * (len(base.shape) - 1) + (slice(first, None, stride),), values)
    return result


@op("scatter_update", "tensor.scatter_update", "tile.scatter_update")
def scatter_update(input: Tile, dim: object, index: Tensor | Tile, src: Tensor | Tile) -> Tile:
    """Rows of `src` into the rows of `input` that `index` names, in place (3.11). The axis is −2."""
    idx, values = as_tile(index, "scatter_update", "index"), as_tile(src, "scatter_update", "src")
    if not isinstance(input, Tile) or len(input.shape) != 2 or as_int(dim, "pl.scatter_update dim") not in (-2, 0):
        raise fault(f"pl.scatter_update: needs a 2-D tile and axis -2, not {describe(input)} and dim {dim}")
    rows = checked_index(idx, input.shape[0], "scatter_update").reshape(-1)
    if values.dtype is not input.dtype or values.shape != (rows.numel(), input.shape[1]):
        raise fault(f"pl.scatter_update: src {describe(values)} does not fit {rows.numel()} rows of {describe(input)}")
    _refuse_duplicates(rows, "scatter_update")
    _set(input, (rows,), values)
    return input


@op("mscatter", "tensor.mscatter", "tile.mscatter")
def mscatter(src: Tile, idx: Tile, out: Tensor) -> Tensor:
    """Elements of `src` to the flat positions `idx` of a GM tensor, in place (3.9)."""
    values, index = as_tile(src, "mscatter"), as_tile(idx, "mscatter", "idx")
    if not isinstance(out, Tensor) or out.dtype is not values.dtype or index.shape != values.shape:
        raise fault(f"pl.mscatter: {describe(values)} with index {list(index.shape)} does not fit {describe(out)}")
    positions = checked_index(index, out.data.numel(), "mscatter").reshape(-1)
    _refuse_duplicates(positions, "mscatter")
    touch(out, write=True)
    machine().count("gm_write_bytes", positions.numel() * out.dtype.nbytes)
    cut = tuple(slice(v) for v in index.valid)
    where = torch.unravel_index(positions, out.shape)
    out.data[where] = values.data[cut].reshape(-1)
    taint = values.taint
    if taint is not None or out.storage.taint is not None:
        out.storage.need_taint()
        marks = out.taint
        assert marks is not None
        marks[where] = 0 if taint is None else taint[cut].reshape(-1)
    return out


@op("mgather", "tensor.mgather", "tile.mgather")
def mgather(mem: Tensor, idx: Tensor | Tile) -> Tile:
    """Elements of a GM tensor at flat positions, in the shape of `idx` (3.11, H)."""
    index = as_tile(idx, "mgather", "idx")
    if not isinstance(mem, Tensor) or not index.full:
        raise fault(f"pl.mgather: needs global memory and a fully valid index, not {describe(mem)}")
    positions = checked_index(index, mem.data.numel(), "mgather")
    touch(mem, write=False)
    machine().count("gm_read_bytes", positions.numel() * mem.dtype.nbytes)
    taint = mem.taint
    marks = None if taint is None else taint.reshape(-1)[positions]
    return Tile.of(mem.data.reshape(-1)[positions], mem.dtype, taint=marks, name=mem.name)
