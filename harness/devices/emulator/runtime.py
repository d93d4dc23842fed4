"""What rewritten kernel code calls: loops, regions, blocks, scopes, sub-functions, subscripts (pypto_dsl.md 1.3, 2).

Scopes and subscripts are here. The rest is in `loops`, `regions`, `lanes`, `subfunctions` and `scalars` and is reached
through this module, so that rewritten code needs one name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from harness.devices.emulator import enums
from harness.devices.emulator.lanes import on_cube, split_aiv
from harness.devices.emulator.loops import (
    UNASSIGNED,
    ParallelIds,
    carried,
    parallel_,
    pipeline_,
    range_,
    release,
    unroll_,
)
from harness.devices.emulator.machine import fault, machine
from harness.devices.emulator.ops.subscript import subscript_load, subscript_store
from harness.devices.emulator.regions import TaskId, at, spmd
from harness.devices.emulator.scalars import (  # rewritten code calls these as runtime.<name>
    add,
    and_,
    eq,
    floordiv,
    fold_add,
    fold_floordiv,
    fold_mod,
    fold_mul,
    fold_sub,
    fold_truediv,
    ge,
    gt,
    host_floordiv,
    host_mod,
    invert,
    le,
    lshift,
    lt,
    mod,
    mul,
    ne,
    neg,
    not_,
    or_,
    rshift,
    sub,
    truediv,
    truth,
)  # fmt: skip
from harness.devices.emulator.subfunctions import call, child, spmd_submit, submit
from harness.devices.emulator.values import Array, Tensor, View, as_int, describe

ALIAS = "__goldengate_runtime__"  # the name of this module in the globals of a kernel file
ENUMS = (
    enums.Level, enums.MemorySpace, enums.ScopeMode, enums.SplitMode, enums.AtomicType, enums.PadValue,
    enums.MaskPattern, enums.TensorLayout, enums.FunctionType, enums.NotifyOp, enums.WaitCmp, enums.ReduceOp,
)  # fmt: skip
slice_ = slice


# -- scopes -----------------------------------------------------------------------------------------


@contextmanager
def scope(mode: Any = enums.ScopeMode.AUTO) -> Iterator[None]:
    """A runtime scope: GM tensors created inside are released at its end (2.2)."""
    run = machine()
    if run.region is not None:
        raise fault("pl.scope belongs to orchestration, not inside a compute region")
    if run.scopes and run.scopes[-1].manual:
        raise fault(
            f"a pl.{'manual_scope' if mode is enums.ScopeMode.MANUAL else 'scope'} may not stand inside a manual scope"
        )
    with run.scope(manual=mode is enums.ScopeMode.MANUAL):
        yield


def manual_scope() -> Any:
    """`with pl.manual_scope()`: no automatic order between tasks, only `deps=`."""
    return scope(enums.ScopeMode.MANUAL)


@contextmanager
def cluster(*, name_hint: str = "") -> Iterator[None]:
    """Co-scheduling hint: no numeric effect."""
    yield


def created(name: str, value: Any, outer: bool) -> Any:
    """`name = pl.create_tensor(…)`: GM that orchestration creates may be an intermediate that the harness asked for."""
    run = machine()
    if run.region is None and isinstance(value, Tensor):
        run.keep(name, value, outer=outer)
    return value


# -- subscripts -------------------------------------------------------------------------------------


def item(value: Any, index: Any) -> Any:
    """`value[index]`."""
    if isinstance(value, Array):
        return value[index]
    if isinstance(value, (list, tuple)):
        return value[as_int(index, "index")]
    if isinstance(value, View):
        return subscript_load(value, index)
    raise fault(f"{describe(value)} cannot be subscripted")


def set_item(target: Any, index: Any, value: Any) -> None:
    """`target[index] = value`."""
    if isinstance(target, Array):
        target[index] = value
    elif isinstance(target, View):
        subscript_store(target, index, value)
    else:
        raise fault(f"{describe(target)} cannot be assigned through a subscript")


def dynamic_slice(lower: Any, upper: Any) -> slice:
    """`lower:upper` whose extent is known at run time only: for orchestration (3.3)."""
    dynamic_extent(None)
    return slice(lower, upper)


def dynamic_extent(value: Any) -> Any:
    """An extent that is known at run time only. Raises inside a kernel, where tiles are static (3.12)."""
    if machine().region is not None:
        raise fault("an extent inside a kernel must be a compile-time constant; only offsets may vary", "GG309")
    return value


def shape_item(shape: tuple[int, ...], index: Any) -> int:
    """`x.shape[i]`."""
    position = as_int(index, "axis")
    if not 0 <= position < len(shape):
        raise fault(f"axis {position} of a shape of rank {len(shape)}")
    return shape[position]


def extent(value: Any, axis: int) -> int:
    """The runtime size behind a dynamic dimension."""
    if not isinstance(value, View):
        raise fault(f"a dynamic dimension is bound to {describe(value)}")
    return value.shape[axis]


__all__ = [
    "ALIAS", "ENUMS", "UNASSIGNED", "ParallelIds", "TaskId", "add", "and_", "at", "call", "carried", "child", "cluster",
    "created", "dynamic_extent", "dynamic_slice", "eq", "extent", "floordiv", "fold_add", "fold_floordiv", "fold_mod",
    "fold_mul", "fold_sub", "fold_truediv", "ge", "gt", "host_floordiv", "host_mod", "invert", "item", "le", "lshift",
    "lt", "manual_scope", "mod", "mul", "ne", "neg", "not_", "on_cube", "or_", "parallel_", "pipeline_", "range_",
    "release", "rshift", "scope", "set_item", "shape_item", "slice_", "split_aiv", "spmd", "spmd_submit", "sub",
    "submit", "truediv", "truth", "unroll_",
]  # fmt: skip
