"""Calls of sub-functions at run time: inline, in-core, on a rank (pypto_dsl.md 1.3, 1.4, 2.4, 2.6, 4.5)."""

from __future__ import annotations

from typing import Any

from harness.devices.emulator.annotations import ScalarType, TensorType
from harness.devices.emulator.effects import parameter_effects, returned_parameters
from harness.devices.emulator.functions import KernelFunction, Parameter
from harness.devices.emulator.machine import Region, fault, machine
from harness.devices.emulator.regions import TaskId, dispatch, inside
from harness.devices.emulator.regions import submit as submit_task
from harness.devices.emulator.scalars import make
from harness.devices.emulator.tasks import Task
from harness.devices.emulator.values import Scalar, Tensor, View, as_int, describe
from harness.devices.emulator.world import Window


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
