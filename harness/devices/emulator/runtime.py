"""What rewritten kernel code calls: loops, regions, blocks, scopes, sub-functions, subscripts (pypto_dsl.md 1.3, 2).

Scalar operators are in `scalars` and are reached through this module too, so that rewritten code needs one name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from harness.devices.emulator import enums
from harness.devices.emulator.annotations import ScalarType, TensorType
from harness.devices.emulator.effects import parameter_effects
from harness.devices.emulator.functions import KernelFunction, Parameter
from harness.devices.emulator.machine import Machine, Region, fault, machine
from harness.devices.emulator.ops.subscript import subscript_load, subscript_store
from harness.devices.emulator.regions import TaskId, at, inside, spmd, split_aiv, submit
from harness.devices.emulator.scalars import (  # rewritten code calls these as runtime.<name>
    add, and_, eq, floordiv, ge, gt, host_floordiv, host_mod, invert, le, lshift, lt, make, mod, mul, ne, neg,
    not_, or_, rshift, sub, truediv, truth,
)  # fmt: skip
from harness.devices.emulator.tasks import Task
from harness.devices.emulator.values import Array, Scalar, Tensor, View, as_int, describe
from harness.devices.emulator.world import Window

ALIAS = "__goldengate_runtime__"  # the name of this module in the globals of a kernel file
ENUMS = (
    enums.Level, enums.MemorySpace, enums.ScopeMode, enums.SplitMode, enums.AtomicType, enums.PadValue,
    enums.MaskPattern, enums.TensorLayout, enums.FunctionType, enums.NotifyOp, enums.WaitCmp, enums.ReduceOp,
)  # fmt: skip
slice_ = slice


@dataclass(frozen=True)
class Construct:
    """A name of the language that the front end rewrites; it is no value and no operation. `place` says where it may
    stand."""

    name: str
    place: str

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"pl.{self.name} has a meaning inside a kernel only: {self.place}")


CONSTRUCTS = (
    Construct("range", "write `for i in pl.range(…):`"),
    Construct("parallel", "write `for i in pl.parallel(…):`"),
    Construct("pipeline", "write `for i in pl.pipeline(…, stage=k):`"),
    Construct("unroll", "write `for i in pl.unroll(…):`"),
    Construct("while_", "write `for (a,) in pl.while_(init_values=(…)):`"),
    Construct("cond", "it is the first statement of a pl.while_ body"),
    Construct("yield_", "write `a = pl.yield_(…)` as the last statement of a loop or branch"),
    Construct("spmd", "write `for i in pl.spmd(n):` or `with pl.spmd(n):`"),
    Construct("split_aiv", "write `for lane in pl.split_aiv(2, mode=…):`"),
    Construct("at", "write `with pl.at(…):`"),
    Construct("scope", "write `with pl.scope():`"),
    Construct("manual_scope", "write `with pl.manual_scope():`"),
    Construct("cluster", "write `with pl.cluster():`"),
)


class Unassigned:
    """What a name stands for after a loop of zero iterations that would have assigned it; no op accepts it."""


UNASSIGNED = Unassigned()


# -- loops ------------------------------------------------------------------------------------------


def _bounds(kind: str, bounds: tuple[Any, ...]) -> range:
    if not 1 <= len(bounds) <= 3:
        raise fault(f"pl.{kind} takes 1 to 3 bounds, got {len(bounds)}")
    values = [as_int(b, f"bound of pl.{kind}") for b in bounds]
    if len(values) == 3 and values[2] <= 0 and kind != "unroll":
        raise fault(f"pl.{kind} with step {values[2]}: loops never count down")
    if len(values) == 3 and values[2] == 0:
        raise fault("pl.unroll with step 0")
    return range(*values)


def range_(*bounds: Any) -> Iterable[int]:
    return _bounds("range", bounds)


def pipeline_(*bounds: Any, stage: Any = None) -> Iterable[int]:
    """Sequential semantics; `stage` copies of the body's tiles cost capacity, not bits."""
    if type(stage) is not int or stage < 1:
        raise fault("pl.pipeline needs a constant stage= of at least 1")
    return _bounds("pipeline", bounds)


def unroll_(*bounds: Any) -> Iterable[int]:
    return _bounds("unroll", bounds)


def parallel_(*bounds: Any) -> Iterable[int]:
    """Iterations are asserted independent: in orchestration their order is the schedule's, in a kernel plain."""
    steps = _bounds("parallel", bounds)
    run = machine()
    return steps if run.region is not None else _unordered(run, steps)


def _unordered(run: Machine, steps: range) -> Iterator[int]:
    loops = run.tasks.loops
    loop = run.tasks.new_loop()
    for position in run.schedule.order(len(steps)):
        loops[loop] = position
        yield steps[position]
    loops.pop(loop, None)


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


# -- sub-functions ----------------------------------------------------------------------------------


def call(function: KernelFunction, *arguments: Any) -> Any:
    """A call of an inline (spliced: same region, same storage) or of an in-core function (a task of its own)."""
    compiled = function.compiled
    if function.kind == "incore":
        return _incore(function, arguments)
    result = compiled.run(*arguments)
    if compiled.writebacks:
        order = [p.name for p in function.parameters]
        for name, final in zip(compiled.writebacks, result[1], strict=True):
            given = arguments[order.index(name)]
            if not (isinstance(final, View) and isinstance(given, View) and final.storage is given.storage):
                machine().lint(
                    "GG302",
                    f"{function.name} rebinds its parameter {name}: the caller's variable changes too",
                )
    return result


def _incore(function: KernelFunction, arguments: tuple[Any, ...]) -> Any:
    results: list[Any] = []

    def run(task: Task) -> None:
        unit = machine().new_unit(task.name, task.start, task.number)
        with inside(Region("incore"), unit) as state:
            results.append(function.compiled.run(*arguments))
            task.after = task.start | state.unit.known

    reads, writes = _directed(function, arguments)
    task = submit(function.name, run, reads, writes, None)
    machine().tasks.finish([task])  # its results are values of the caller
    return results[0]


def _directed(function: KernelFunction, arguments: tuple[Any, ...]) -> tuple[list[Any], list[Any]]:
    """The arguments that a separately compiled function reads and writes, by its declared directions."""
    effects = parameter_effects(function)
    pairs = list(zip(function.parameters, arguments, strict=True))
    return [a for p, a in pairs if p.name in effects.reads], [a for p, a in pairs if p.name in effects.writes]


def child(function: KernelFunction, device: Any, *arguments: Any) -> Any:
    """Submit an entry to a rank (4.5). Its results are the arguments that it writes."""
    run = machine()
    world = run.world
    if world is None or run is not world.host:
        raise fault(f"{function.name} is called with device= outside a host program")
    rank = as_int(device, "device=")
    values = [_for_rank(p, a, rank) for p, a in zip(function.parameters, arguments, strict=True)]
    written = []
    for parameter, value, argument in zip(function.parameters, values, arguments, strict=True):
        if isinstance(parameter.type, TensorType) and parameter.type.direction != "in":
            written.append(argument)
        if isinstance(value, Tensor) and isinstance(parameter.type, TensorType) and parameter.type.kind == "tensor":
            world.transfer(value, value.name, rank, parameter.type.direction)
    world.host.count("dispatches")
    world.dispatch(rank, lambda: function.compiled.run(*values))
    return written[0] if len(written) == 1 else tuple(written)


def _for_rank(parameter: Parameter, argument: Any, rank: int) -> Any:
    """An argument as the child sees it: its own copy of a window, a typed runtime scalar, a tensor as it is."""
    if isinstance(argument, Window):
        return argument.on(rank)
    if isinstance(parameter.type, ScalarType):
        if not isinstance(argument, (int, float, Scalar)):
            raise fault(f"{parameter.name} is a scalar, not {describe(argument)}")
        value = argument.value if isinstance(argument, Scalar) else argument
        return value if isinstance(value, bool) else make(value, parameter.type.dtype)
    if isinstance(parameter.type, TensorType) and not isinstance(argument, Tensor):
        raise fault(f"{parameter.name} is a tensor, not {describe(argument)}")
    return argument


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
    "ALIAS", "CONSTRUCTS", "ENUMS", "UNASSIGNED", "Construct", "TaskId", "add", "and_", "at", "call", "cluster", "eq",
    "extent", "floordiv", "ge", "gt", "host_floordiv", "host_mod", "invert", "item", "le", "lshift", "lt", "manual_scope", "mod", "mul", "ne", "neg",
    "not_", "or_", "parallel_", "pipeline_", "range_", "rshift", "scope", "set_item", "shape_item", "slice_", "split_aiv",
    "spmd", "sub", "truediv", "truth", "unroll_",
]  # fmt: skip
