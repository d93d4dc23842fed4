"""What rewritten kernel code calls: loops, regions, blocks, scopes, sub-functions, subscripts (pypto_dsl.md 1.3, 2).

Scalar operators are in `scalars` and are reached through this module too, so that rewritten code needs one name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from harness.devices.emulator import enums
from harness.devices.emulator.annotations import ScalarType, TensorType
from harness.devices.emulator.effects import parameter_effects, returned_parameters
from harness.devices.emulator.functions import KernelFunction, Parameter
from harness.devices.emulator.machine import Machine, Region, fault, machine
from harness.devices.emulator.ops.subscript import subscript_load, subscript_store
from harness.devices.emulator.regions import (
    TaskId,
    TaskIds,
    at,
    dispatch,
    inside,
    on_cube,
    split_aiv,
    spmd,
)  # fmt: skip
from harness.devices.emulator.regions import (
    submit as submit_task,
)
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
    make,
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
from harness.devices.emulator.tasks import Task
from harness.devices.emulator.values import Array, Scalar, Tensor, Tile, View, as_int, describe, scalar_dtype
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
    Construct("submit", "write `out, tid = pl.submit(kernel, …)`"),
    Construct("spmd_submit", "write `out, tid = pl.spmd_submit(kernel, …, core_num=n)`"),
    Construct("func_attr", "it is the first statement of a function"),
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


class ParallelIds:
    """Task ids that a pl.parallel loop carries: every iteration starts with the one from before the loop, and after the
    loop the name stands for the ids of all iterations (2.6). Other values pass through."""

    def __init__(self) -> None:
        self._before: dict[str, Any] = {}
        self._found: dict[str, list[Any]] = {}

    def enter(self, name: str, value: Any) -> Any:
        """The name at the start of an iteration."""
        before = self._before.setdefault(name, value)
        return before if isinstance(value, (TaskId, TaskIds)) else value

    def leave(self, name: str, value: Any) -> Any:
        """The name at the end of an iteration."""
        if isinstance(value, TaskId):
            self._found.setdefault(name, []).append(value.task)
        return value

    def all(self, name: str, value: Any) -> Any:
        """The name after the loop."""
        return TaskIds(tuple(self._found[name])) if name in self._found and isinstance(value, TaskId) else value


class Released:
    """What a name stands for after its last use: the tile is gone, its type is known."""

    __slots__ = ("type",)

    def __init__(self, of: View) -> None:
        self.type = of.dtype, of.shape


def release(value: Any) -> Any:
    """A name after its last use: a tile is let go."""
    return Released(value) if isinstance(value, Tile) else value


def carried(name: str, old: Any, new: Any) -> Any:
    """A name of an outer level that a loop or branch assigns: it keeps its kind, dtype and shape (1.5)."""
    if old is new or old is UNASSIGNED:
        return new
    before, now = _type_of(old), _type_of(new)
    if before != now:
        raise fault(f"{name} is {_words(old)} and becomes {describe(new)} in a loop or branch", "GG310")
    return new


def _words(value: Any) -> str:
    return f"a tile {list(value.type[1])} {value.type[0]}" if isinstance(value, Released) else describe(value)


def _type_of(value: Any) -> tuple[Any, ...]:
    if isinstance(value, View):
        return value.dtype, value.shape
    if isinstance(value, Released):
        return value.type
    if isinstance(value, (int, float, Scalar)):
        return (scalar_dtype(value),)
    return ("task id",) if value is None or isinstance(value, (TaskId, TaskIds)) else (type(value),)


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


# -- sub-functions ----------------------------------------------------------------------------------


def call(function: KernelFunction, *arguments: Any) -> Any:
    """A call of an inline (spliced: same region, same storage) or of an in-core function (a task of its own)."""
    compiled = function.compiled
    if function.kind == "incore":
        region = machine().region
        if region is not None and region.kind in ("spmd", "incore"):  # the block is the task
            return compiled.run(*arguments)
        return submit(function, *arguments, gg_id=False)
    region = machine().region
    if region is None:
        result = compiled.run(*arguments)
    else:
        region.ledger.spliced += 1
        result = compiled.run(*arguments)
        region.ledger.spliced -= 1
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


def submit(
    function: KernelFunction,
    *arguments: Any,
    deps: Any = None,
    allow_early_resolve: bool = False,
    name_hint: str = "",
    gg_id: bool = True,
) -> Any:
    """A call of an in-core function as a task: its results, and with `gg_id` the task id last (2.6)."""
    results: list[Any] = []

    def run(task: Task) -> None:
        unit = machine().new_unit(task.name, task.start, task.number)
        with inside(Region("incore"), unit) as state:
            results.append(function.compiled.run(*arguments))
            task.after = task.start | state.unit.known | state.joint_readers(task.number)

    reads, writes = _directed(function, arguments)
    task = submit_task(name_hint or function.name, run, reads, writes, deps)
    value = _results(function, arguments)
    if value is None and function.compiled.returns:
        machine().tasks.finish([task])
        value = results[0] if isinstance(results[0], tuple) else (results[0],)
    return _flat(value or (), TaskId(task) if gg_id else None)


def spmd_submit(
    function: KernelFunction,
    *arguments: Any,
    core_num: Any,
    sync_start: bool = False,
    deps: Any = None,
    allow_early_resolve: bool = False,
    name_hint: str = "",
) -> Any:
    """An in-core function as a dispatch of `core_num` blocks: its results, then the task id (2.4)."""
    value = _results(function, arguments)
    if value is None and function.compiled.returns:
        raise fault(f"pl.spmd_submit: {function.name} must return its pl.Out parameters")
    reads, writes = _directed(function, arguments)

    def body(_: int) -> None:
        function.compiled.run(*arguments)

    tid = dispatch(name_hint or function.name, body, core_num, reads, writes, deps, sync_start)
    return _flat(value or (), tid)


def _results(function: KernelFunction, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """What a separately compiled function returns, known before it runs: the arguments that it writes (1.3)."""
    names = returned_parameters(function)
    if not names:
        return None
    given = dict(zip((p.name for p in function.parameters), arguments, strict=True))
    return tuple(given[name] for name in names)


def _flat(values: tuple[Any, ...], tid: TaskId | None) -> Any:
    parts = values if tid is None else (*values, tid)
    return parts[0] if len(parts) == 1 else parts or None


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
    "ALIAS", "CONSTRUCTS", "ENUMS", "UNASSIGNED", "Construct", "ParallelIds", "TaskId", "add", "and_", "at", "call",
    "carried", "cluster", "created", "dynamic_extent", "dynamic_slice", "eq", "extent", "floordiv", "fold_add",
    "fold_floordiv", "fold_mod", "fold_mul", "fold_sub", "fold_truediv", "ge", "gt", "host_floordiv", "host_mod",
    "invert", "item", "le", "lshift", "lt", "manual_scope", "mod", "mul", "ne", "neg", "not_", "on_cube", "or_",
    "parallel_", "pipeline_", "range_", "release", "rshift", "scope", "set_item", "shape_item", "slice_", "split_aiv",
    "spmd", "spmd_submit", "sub", "submit", "truediv", "truth", "unroll_",
]  # fmt: skip
