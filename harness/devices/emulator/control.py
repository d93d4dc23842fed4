"""Operations that move no data: block indices, typed literals, static checks, marks without numeric effect."""

from __future__ import annotations

import math
from typing import Any

from harness.devices.emulator import lanes, regions, scalars
from harness.devices.emulator.dtypes import DType
from harness.devices.emulator.machine import fault, machine
from harness.devices.emulator.optable import ANY, KERNEL, ORCHESTRATION, op
from harness.devices.emulator.tasks import Task
from harness.devices.emulator.values import Tensor, as_int, as_ints, describe
from harness.devices.emulator.world import Window, WindowBuffer, World


@op("tile.get_block_idx", "get_block_idx", where=KERNEL)
def get_block_idx() -> int:
    """The index of this block in its dispatch, INDEX (2.4)."""
    region = machine().region
    assert region is not None
    return region.block


@op("tile.get_block_num", "get_block_num", where=KERNEL)
def get_block_num() -> int:
    """The number of blocks of this dispatch, INDEX (2.4)."""
    region = machine().region
    assert region is not None
    return region.blocks


@op("tile.get_subblock_idx", "get_subblock_idx", where=KERNEL)
def get_subblock_idx() -> int:
    """The vector lane of this core group, 0 or 1 (2.4)."""
    region = machine().region
    assert region is not None
    return region.lane


@op("const", where=ANY)
def const(value: Any, dtype: Any) -> Any:
    """A typed scalar literal (1.2)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise fault(f"pl.const takes a literal number, not {describe(value)}")
    if not isinstance(dtype, DType):
        raise fault(f"pl.const needs a dtype, not {describe(dtype)}")
    if isinstance(value, float) and not dtype.is_float:
        raise fault(f"pl.const({value}, {dtype}) is not an integer literal")
    return scalars.make(value, dtype)


@op("static_assert", where=ANY)
def static_assert(condition: Any, message: str = "") -> None:
    """A check at parse time; a false one refuses the kernel (1.6)."""
    if not scalars.truth(condition):
        raise fault(f"static_assert failed{': ' + message if message else ''}")


@op("static_print", where=ANY)
def static_print(*_: Any) -> None:
    """Prints at parse time on the real front end; no effect here (1.6)."""


@op("dump_tag", where=ANY)
def dump_tag(value: Any) -> Any:
    """Marks a tensor for debugging dumps; no effect (1.6)."""
    return value


@op("no_dep", where=ORCHESTRATION)
def no_dep(value: Any) -> Any:
    """The argument adds no automatic order (2.3)."""
    if not isinstance(value, Tensor):
        raise fault(f"pl.no_dep wraps a tensor, not {describe(value)}")
    return value


@op("system.task_dummy", where=ORCHESTRATION)
def task_dummy(*, deps: Any = None) -> regions.TaskId:
    """An empty task for fan-in (2.6)."""

    def run(task: Task) -> None:
        task.after = task.start

    return regions.TaskId(regions.submit("task_dummy", run, (), (), deps))


op("system.syncall", where=KERNEL)(regions.syncall)
op("aiv_shard", "tile.aiv_shard", "tensor.aiv_shard", where=KERNEL)(lanes.aiv_shard)
op("aic_gather", "tile.aic_gather", "tensor.aic_gather", where=KERNEL)(lanes.aic_gather)


@op("split", where=ANY)
def split(mode: Any = None, *, slot_num: Any = None) -> None:
    """`optimizations=[pl.split(mode)]`: how vector work is divided; the region computes what the text says (2.2)."""


@op("cross_core_slot", where=ANY)
def cross_core_slot(*, slot_num: Any = None) -> None:
    """Depth of the queue between cube and vector cores; no effect (3.13)."""


@op("pld.world_size", where=ORCHESTRATION)
def world_size() -> int:
    """The number of ranks, in a host program (4.1)."""
    return _host("world_size").size


@op("pld.alloc_window_buffer", where=ORCHESTRATION)
def alloc_window_buffer(size: Any, *, name: str = "", dtype: Any = None) -> WindowBuffer:
    """Zero-filled memory on every rank: `(nbytes)`, or `(shape, dtype=…)` (4.1)."""
    world = _host("alloc_window_buffer")
    if isinstance(size, (list, tuple)):
        if not isinstance(dtype, DType):
            raise fault("pld.alloc_window_buffer(shape) needs dtype=")
        count = math.prod(as_ints(size, "window shape")) * dtype.nbytes
    else:
        count = as_int(size, "window size")
    if count <= 0:
        raise fault(f"pld.alloc_window_buffer of {count} bytes")
    world.buffers += 1
    return WindowBuffer(name or f"window {world.buffers}", count, world.size)


@op("pld.window", where=ORCHESTRATION)
def window(buffer: Any, shape: Any, *, dtype: Any) -> Window:
    """A typed symmetric view of a window buffer (4.1)."""
    _host("window")
    if not isinstance(buffer, WindowBuffer):
        raise fault(f"pld.window needs a window buffer, not {describe(buffer)}")
    extents = as_ints(shape, "window shape")
    if not isinstance(dtype, DType) or math.prod(extents) * dtype.nbytes > buffer.nbytes:
        raise fault(f"a window {list(extents)} {dtype} does not fit a buffer of {buffer.nbytes} bytes")
    return Window(buffer, extents, dtype)


def _host(name: str) -> World:
    run = machine()
    if run.world is None or run is not run.world.host:
        raise fault(f"pld.{name} belongs to a host program (@pl.jit.host)")
    return run.world
