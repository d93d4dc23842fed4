"""`pypto.language.distributed`: copies between ranks, signals, collectives (contracts/pypto_dsl.md 4.2 to 4.4)."""

from __future__ import annotations

import math

import torch

from harness.devices.emulator.dtypes import INT32
from harness.devices.emulator.enums import AtomicType, NotifyOp, ReduceOp, WaitCmp
from harness.devices.emulator.fibers import Wait, offer, wait
from harness.devices.emulator.machine import fault, machine
from harness.devices.emulator.ops.common import check_space, gm_copy
from harness.devices.emulator.ops.memory import load_window, write_window
from harness.devices.emulator.optable import ANY, KERNEL, op
from harness.devices.emulator.values import Scalar, Tensor, Tile, as_int, as_ints, describe
from harness.devices.emulator.world import Cell, Gathering, WindowTensor, World


def _window(value: object, name: str) -> WindowTensor:
    if not isinstance(value, WindowTensor):
        raise fault(f"pld.{name}: needs a window (pld.DistributedTensor), not {describe(value)}")
    return value


def _world(name: str) -> World:
    world = machine().world
    if world is None:
        raise fault(f"pld.{name} needs a world of ranks: run it from a @pl.jit.host entry")
    return world


# -- who am I -----------------------------------------------------------------------------------


@op("pld.get_comm_ctx", where=ANY)
def get_comm_ctx(window: object) -> WindowTensor:
    """The communication context of a window (4.1)."""
    return _window(window, "get_comm_ctx")


@op("pld.rank", where=ANY)
def rank(context: object) -> int:
    """The own rank, INDEX (4.1)."""
    return _window(context, "rank").rank


@op("pld.nranks", where=ANY)
def nranks(context: object) -> int:
    """The number of ranks, INDEX (4.1)."""
    return len(_window(context, "nranks").ranks)


# -- copies -------------------------------------------------------------------------------------


def _region(
    tensor: Tensor, offsets: object, shape: object, name: str, which: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Offsets and extents of one side of a copy; the whole tensor when neither is given."""
    if offsets is None and shape is None:
        return (0,) * len(tensor.shape), tensor.shape
    if offsets is None or shape is None:
        raise fault(f"pld.{name}: dst_offsets, src_offsets and shape come together")
    start, extents = as_ints(offsets, f"pld.{name} {which}_offsets"), as_ints(shape, f"pld.{name} shape")
    tensor.check_window(start, extents, name)
    return start, extents


def _copy(
    dst: Tensor, dst_offsets: object, src: Tensor, src_offsets: object, shape: object, name: str, add: bool
) -> None:
    to, to_shape = _region(dst, dst_offsets, shape, name, "dst")
    start, extents = _region(src, src_offsets, shape, name, "src")
    if to_shape != extents or dst.dtype is not src.dtype:
        raise fault(f"pld.{name}: {list(extents)} {src.dtype} does not fit {list(to_shape)} {dst.dtype}")
    write_window(dst, to, gm_copy(src.window(start, extents)), name, atomic=add)


def _check_staging(src: Tensor, shape: object, rows: int, columns: int) -> None:
    """The data passes through a Vec tile of the flattened region, capped by chunk_rows and chunk_cols (4.2)."""
    extents = src.shape if shape is None else as_ints(shape, "pld copy shape")
    height, width = math.prod(extents[:-1]), extents[-1]
    check_space((min(height, rows or height), min(width, columns or width)), src.dtype, "Vec")


@op("pld.tensor.put", "pld.put", where=KERNEL)
def put(
    dst: object,
    peer: object,
    src: object,
    dst_offsets: object = None,
    src_offsets: object = None,
    shape: object = None,
    *,
    atomic: AtomicType = AtomicType.None_,
    chunk_rows: int = 0,
    chunk_cols: int = 0,
    pipeline: bool = False,
) -> None:
    """Push a region of local `src` into the peer's `dst` (4.2); synchronous."""
    target = _window(dst, "tensor.put").peer(as_int(peer, "pld.tensor.put peer"))
    if not isinstance(src, Tensor):
        raise fault(f"pld.tensor.put: the source must be in global memory, not {describe(src)}")
    _check_staging(src, shape, chunk_rows, chunk_cols)
    _copy(target, dst_offsets, src, src_offsets, shape, "tensor.put", atomic == AtomicType.Add)
    offer()


@op("pld.tensor.get", "pld.get", where=KERNEL)
def get(
    dst: object,
    peer: object,
    src: object,
    dst_offsets: object = None,
    src_offsets: object = None,
    shape: object = None,
    *,
    chunk_rows: int = 0,
    chunk_cols: int = 0,
    pipeline: bool = False,
) -> None:
    """Pull a region of the peer's `src` into local `dst` (4.2)."""
    source = _window(src, "tensor.get").peer(as_int(peer, "pld.tensor.get peer"))
    if not isinstance(dst, Tensor):
        raise fault(f"pld.tensor.get: the target must be in global memory, not {describe(dst)}")
    _check_staging(source, shape, chunk_rows, chunk_cols)
    offer()
    _copy(dst, dst_offsets, source, src_offsets, shape, "tensor.get", add=False)


@op("pld.tile.remote_store", "pld.tensor.remote_store", "pld.remote_store", where=KERNEL)
def remote_store(
    tile: object, target: object, peer: object, offsets: object, *, atomic: AtomicType = AtomicType.None_
) -> None:
    """A tile's valid region into the peer's window at `offsets` (4.2)."""
    source = gm_copy(tile) if isinstance(tile, Tensor) else tile
    if not isinstance(source, Tile):
        raise fault(f"pld.remote_store: the source must be a tile, not {describe(tile)}")
    window = _window(target, "remote_store").peer(as_int(peer, "pld.remote_store peer"))
    if source.dtype is not window.dtype:
        raise fault(f"pld.remote_store: {source.dtype} into a window of {window.dtype}; nothing converts")
    starts = as_ints(offsets, "pld.remote_store offsets")
    write_window(window, starts, source, "remote_store", atomic=atomic == AtomicType.Add)
    offer()


@op("pld.tile.remote_load", "pld.remote_load", where=KERNEL)
def remote_load(target: object, peer: object, offsets: object, shape: object, *, valid_shape: object = None) -> Tile:
    """A tile from the peer's window (4.2)."""
    window = _window(target, "remote_load").peer(as_int(peer, "pld.remote_load peer"))
    extents = as_ints(shape, "pld.remote_load shape")
    valid = extents if valid_shape is None else as_ints(valid_shape, "pld.remote_load valid_shape")
    offer()
    return load_window(window, as_ints(offsets, "pld.remote_load offsets"), extents, valid, "remote_load")


# -- signals ------------------------------------------------------------------------------------


def _cell(window: Tensor, offsets: object, name: str) -> int:
    """The flat element of a signal cell in its storage."""
    position = as_ints(offsets, f"pld.system.{name} offsets")
    window.check_window(position, (1,) * len(position), name)
    if window.dtype is not INT32:
        raise fault(f"pld.system.{name}: a signal is an INT32 cell, not {window.dtype}")
    return window.offset + sum(i * s for i, s in zip(position, window.strides, strict=True))


def _number(value: object, name: str) -> int:
    if isinstance(value, Scalar) and not value.dtype.is_integer:
        raise fault(f"pld.system.{name}: the value must be an integer, not {describe(value)}")
    return as_int(value, f"pld.system.{name} value")


@op("pld.system.notify", where=KERNEL)
def notify(target: object, peer: object, offsets: object, value: object, *, op: NotifyOp = NotifyOp.AtomicAdd) -> None:
    """Add to, or set, a signal cell of the peer; what this unit did before is ordered before its wait (4.3)."""
    run, world = machine(), _world("system.notify")
    window = _window(target, "system.notify").peer(as_int(peer, "pld.system.notify peer"))
    at, number = _cell(window, offsets, "notify"), _number(value, "notify")
    data = window.storage.data
    data[at] = number if op == NotifyOp.Set else int(data[at]) + number
    key = (id(window.storage), at)
    cell = world.cells.setdefault(key, Cell())
    if op == NotifyOp.Set:
        cell.notifies.clear()
    cell.notifies.append((1 if op == NotifyOp.Set else number, run.unit.known))
    # What the unit does from here on is not covered by this notify.
    run.unit = run.new_unit(run.unit.name, run.unit.known, run.unit.task)
    run.count("notifies")
    offer()


@op("pld.system.wait", "pld.system.defer_wait", where=KERNEL)
def wait_(signal: object, offsets: object, expected: object, *, cmp: WaitCmp = WaitCmp.Ge) -> None:
    """Wait until the own cell is at least (or equal to) `expected` (4.3). Orders the unit that waited, no other."""
    run, world = machine(), _world("system.wait")
    window = _window(signal, "system.wait")
    at, wanted = _cell(window, offsets, "wait"), _number(expected, "wait")
    data = window.storage.data
    file, line = run.where()
    symbol = "==" if cmp == WaitCmp.Eq else ">="
    place = ", ".join(map(str, as_ints(offsets, "pld.system.wait offsets")))

    def texts() -> list[str]:
        return [f"waits at {file}:{line} for {window.name}[{place}] {symbol} {wanted}, it is {int(data[at])}"]

    def ready() -> bool:
        value = int(data[at])
        return value == wanted if cmp == WaitCmp.Eq else value >= wanted

    offer()
    wait(Wait(ready, texts))
    cell = world.cells.get((id(window.storage), at))
    if cell is not None:
        set_once = len(cell.notifies) == 1
        run.unit.known |= cell.guaranteed(int(data[at]), wanted, exact=set_once or cmp == WaitCmp.Eq)


# -- collectives --------------------------------------------------------------------------------


def _gather(window: WindowTensor, signal: object, name: str) -> list[torch.Tensor]:
    """Meet all ranks at the next use of `signal`; the data of every rank's window as it was on arrival."""
    run, world = machine(), _world(name)
    meeting = _window(signal, name)
    uses = run.collectives.get(id(meeting.ranks), 0)
    run.collectives[id(meeting.ranks)] = uses + 1
    if uses:
        run.lint("GG411", f"pld.{name}: {meeting.name} is used again in one dispatch; signals are single-use at J")
    gathering = world.gatherings.setdefault((id(meeting.ranks), uses), Gathering())
    run.reads(window)
    gathering.data[window.rank] = window.data.clone()
    gathering.known |= run.unit.known
    file, line = run.where()

    def texts() -> list[str]:
        missing = sorted(set(range(world.size)) - set(gathering.data))
        return [f"waits at {file}:{line} in pld.{name} for ranks {missing}"]

    wait(Wait(lambda: len(gathering.data) == world.size, texts))
    run.unit = run.new_unit(run.unit.name, run.unit.known | gathering.known, run.unit.task)
    return [gathering.data[r] for r in range(world.size)]


def _put_back(window: WindowTensor, data: torch.Tensor) -> None:
    run = machine()
    run.writes(window)
    window.data.copy_(data)


def _sum(parts: list[torch.Tensor]) -> torch.Tensor:
    """The order over ranks is not documented: the schedule draws it."""
    order = machine().schedule.permutation(len(parts))
    total = parts[order[0]].clone()
    for position in order[1:]:
        total += parts[position]
    return total


@op("pld.tensor.allreduce", where=KERNEL)
def allreduce(
    target: object, signal: object, *, op: ReduceOp = ReduceOp.Sum, mode: str = "mesh", core_num: int = 1
) -> None:
    """Every rank's window becomes the sum over the ranks (4.2)."""
    window = _window(target, "tensor.allreduce")
    if op != ReduceOp.Sum:
        raise fault("pld.tensor.allreduce: only ReduceOp.Sum is implemented on the device")
    _put_back(window, _sum(_gather(window, signal, "tensor.allreduce")))


@op("pld.tensor.barrier", where=KERNEL)
def barrier(signal: object) -> None:
    """Every rank arrives before any goes on (4.2)."""
    window = _window(signal, "tensor.barrier")
    _gather(window, signal, "tensor.barrier")


@op("pld.tensor.broadcast", where=KERNEL)
def broadcast(target: object, signal: object, *, root: object) -> None:
    """Every rank's window becomes the root's (4.2)."""
    window = _window(target, "tensor.broadcast")
    source = as_int(root, "pld.tensor.broadcast root")
    parts = _gather(window, signal, "tensor.broadcast")
    if not 0 <= source < len(parts):
        raise fault(f"pld.tensor.broadcast: root {source} of {len(parts)} ranks")
    _put_back(window, parts[source])


def _sliced(target: object, name: str) -> WindowTensor:
    """A window whose leading axis has one slice per rank."""
    window = _window(target, name)
    if not window.shape or window.shape[0] != len(window.ranks):
        raise fault(f"pld.{name}: the leading axis of {list(window.shape)} must have one slice per rank")
    return window


@op("pld.tensor.allgather", where=KERNEL)
def allgather(target: object, signal: object) -> None:
    """Slice r of every rank's window becomes rank r's slice r (4.2)."""
    window = _sliced(target, "tensor.allgather")
    parts = _gather(window, signal, "tensor.allgather")
    _put_back(window, torch.stack([part[r] for r, part in enumerate(parts)]))


@op("pld.tensor.reduce_scatter", where=KERNEL)
def reduce_scatter(target: object, signal: object, *, op: ReduceOp = ReduceOp.Sum) -> None:
    """Slice r of rank r's window becomes the sum of all ranks' slices r (4.2)."""
    window = _sliced(target, "tensor.reduce_scatter")
    if op != ReduceOp.Sum:
        raise fault("pld.tensor.reduce_scatter: only ReduceOp.Sum is implemented on the device")
    parts = _gather(window, signal, "tensor.reduce_scatter")
    own = window.data.clone()
    own[window.rank] = _sum([part[window.rank] for part in parts])
    _put_back(window, own)


@op("pld.tensor.all_to_all", where=KERNEL)
def all_to_all(target: object, signal: object) -> None:
    """Slice s of rank r's window becomes slice r of rank s's window (4.2, H)."""
    window = _sliced(target, "tensor.all_to_all")
    parts = _gather(window, signal, "tensor.all_to_all")
    _put_back(window, torch.stack([part[window.rank] for part in parts]))
