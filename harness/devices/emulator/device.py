"""The emulator as a `Device`: binds an op's inputs to a kernel's parameters, runs the entry, collects outputs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness.devices.base import DeviceRun, KernelFault, KernelRefused
from harness.devices.emulator import scalars
from harness.devices.emulator.annotations import DynVar, ScalarType, TensorType
from harness.devices.emulator.dtypes import from_torch
from harness.devices.emulator.functions import KernelFunction, Parameter, reachable
from harness.devices.emulator.loader import load_functions
from harness.devices.emulator.machine import Machine, running
from harness.devices.emulator.order import Order
from harness.devices.emulator.values import Tensor
from harness.devices.emulator.variance import Schedule

if TYPE_CHECKING:
    from specs.registry import Op


@dataclass(frozen=True)
class EmulatorKernel:
    """A loaded entry and the files of every kernel function that it reaches."""

    path: Path
    function: str
    entry: KernelFunction
    files: frozenset[str]


class EmulatorDevice:
    """PyPTO kernels executed on the CPU from their source, with device semantics. See the package docstring.

    `checks=False` leaves out the race detector and the warnings; errors and undefined memory are still reported.
    """

    name = "emulator"

    def __init__(self, *, checks: bool = True) -> None:
        self.checks = checks

    def load(
        self, path: Path, function: str, sizes: Mapping[str, int | float], tiles: str | None = None
    ) -> EmulatorKernel:
        """Load `function` of `path`. Raises KernelRefused (file, line, reason); lists the entries of the file when
        the function is not one of them."""
        functions = load_functions(path, sizes, tiles)
        entries = [n for n, f in functions.items() if f.kind in ("entry", "host")]
        chosen = functions.get(function)
        if chosen is None and len(entries) == 1:
            chosen = functions[entries[0]]
        if chosen is None:
            raise KernelRefused(
                path, None, f"no entry {function!r}; @pl.jit functions here: {', '.join(entries) or 'none'}"
            )
        if chosen.kind not in ("entry", "host"):
            raise KernelRefused(
                path, chosen.line, f"{function} is a pl.jit.{chosen.kind} function, not an entry (@pl.jit)"
            )
        return EmulatorKernel(path, chosen.name, chosen, frozenset(f.file for f in reachable(chosen)))

    def run(
        self,
        kernel: EmulatorKernel,
        op: Op,
        inputs: Mapping[str, torch.Tensor | int | float],
        schedule: int = 0,
    ) -> DeviceRun:
        """Run once. Raises KernelRefused when the parameters are not the op's, KernelFault when the run fails."""
        _check_parameters(kernel.entry, op)
        if kernel.entry.kind == "host":
            from harness.devices.emulator.host import execute_host  # it stands on this module

            modes = {s.name: getattr(s, "resident", None) for s in op.signature}
            resident = {name: mode for name, mode in modes.items() if mode is not None}
            return execute_host(
                kernel.entry,
                inputs,
                schedule,
                kernel.files,
                world=op.world,
                residency=resident,
                checks=self.checks,
                wanted=frozenset(op.stages),
            )
        return execute(
            kernel.entry,
            dict(inputs),
            schedule,
            files=kernel.files,
            checks=self.checks,
            wanted=frozenset(op.stages),
        )


def execute(
    entry: KernelFunction,
    inputs: Mapping[str, torch.Tensor | int | float],
    schedule: int,
    files: frozenset[str],
    *,
    checks: bool = True,
    wanted: frozenset[str] = frozenset(),
) -> DeviceRun:
    """Run an entry with inputs by parameter name. Out tensors take their shape from the annotation and the dynamic
    dimensions of the tensors given, and start undefined; inout tensors start as copies.

    Without `checks` accesses are not compared for races (GG401 to GG404) and warnings are not collected; the results of
    a kernel are the same. `wanted`: names of GM tensors that orchestration creates, to be handed back.
    """
    order = Order() if checks else None
    machine = Machine(schedule=Schedule(schedule), files=set(files), order=order, warnings=checks, wanted=wanted)
    start = time.perf_counter()
    with running(machine), one_thread(), faults_at_their_line(machine):
        arguments = bind(entry, inputs)
        entry.compiled.run(*arguments.values())
        machine.tasks.drain()
        _count_transfers(entry, arguments, machine)
        return outcome(entry, arguments, [machine], machine, time.perf_counter() - start)


def _count_transfers(entry: KernelFunction, arguments: Mapping[str, Any], machine: Machine) -> None:
    """One dispatch of a single-chip entry uploads its in and inout tensors and downloads its out and inout ones
    (1.2).
    """
    machine.count("dispatches")
    for parameter in entry.parameters:
        if isinstance(parameter.type, TensorType):
            value = arguments[parameter.name]
            nbytes = math.prod(value.shape) * value.dtype.nbytes
            if parameter.type.direction != "out":
                machine.count(f"uploads.{parameter.name}")
                machine.count("upload_bytes", nbytes)
            if parameter.type.direction != "in":
                machine.count(f"downloads.{parameter.name}")
                machine.count("download_bytes", nbytes)


def outcome(
    entry: KernelFunction,
    arguments: Mapping[str, Any],
    ranks: Sequence[Machine],
    machine: Machine,
    seconds: float,
) -> DeviceRun:
    """What the entry left in its out and inout tensors and in the wanted intermediates of `ranks`, and what was found
    on the way. Intermediates of several ranks are stacked."""
    outputs: dict[str, torch.Tensor] = {}
    undefined: dict[str, torch.Tensor | None] = {}
    for parameter in entry.parameters:
        if isinstance(parameter.type, TensorType) and parameter.type.direction != "in":
            value = arguments[parameter.name]
            outputs[parameter.name] = value.data
            undefined[parameter.name] = _undefined(value)
    intermediates: dict[str, torch.Tensor] = {}
    for name in ranks[0].kept.keys() - outputs.keys():
        kept = [rank.kept[name][1] for rank in ranks if name in rank.kept]
        if len(kept) == len(ranks) and len({(t.shape, t.dtype) for t in kept}) == 1:
            intermediates[name] = kept[0].data if len(kept) == 1 else torch.stack([t.data for t in kept])
            masks = [_undefined(t) for t in kept]
            if any(mask is not None for mask in masks):
                parts = [
                    torch.zeros(t.shape, dtype=torch.bool) if m is None else m for t, m in zip(kept, masks, strict=True)
                ]
                undefined[name] = parts[0] if len(kept) == 1 else torch.stack(parts)
    return DeviceRun(outputs, undefined, machine.findings, dict(machine.counters), seconds, intermediates)


def _undefined(value: Tensor) -> torch.Tensor | None:
    taint = value.taint
    return None if taint is None or not bool(taint.any()) else taint != 0


@contextmanager
def faults_at_their_line(machine: Machine) -> Iterator[None]:
    """An error of an op (a wrong argument, an unsupported form) becomes a fault at the kernel line that called it."""
    try:
        yield
    except (KernelFault, KernelRefused):
        raise
    except Exception as error:
        raise _as_fault(error, machine) from error


@contextmanager
def one_thread() -> Iterator[None]:
    """Tiles are small: waking a second thread for each of them costs more than it computes (measured: 1 s against 4 s
    for a prefill hc_pre on two busy cores). Several runs side by side use the other cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def check_tensors(entry: KernelFunction, inputs: Mapping[str, Any]) -> dict[str, int]:
    """Compare every tensor given with its declaration; the dynamic dimensions found. Raises KernelRefused.

    Inputs must be there; an out tensor may be, and then lends its shape (its contents are not read).
    """
    dims: dict[str, int] = {}
    for parameter in entry.parameters:
        if isinstance(parameter.type, TensorType) and parameter.name in inputs:
            _check_tensor(entry, parameter, inputs[parameter.name], dims)
    return dims


def bind(entry: KernelFunction, inputs: Mapping[str, torch.Tensor | int | float]) -> dict[str, Any]:
    """The values of an entry's parameters, by name, inside a run. Raises KernelRefused for what does not fit."""
    dims = check_tensors(entry, inputs)
    arguments: dict[str, Any] = {}
    for parameter in entry.parameters:
        name, kind = parameter.name, parameter.type
        if isinstance(kind, TensorType) and kind.direction == "out":
            shape = [_extent(entry, parameter, d, dims) for d in kind.shape]
            arguments[name] = Tensor.undefined(shape, kind.dtype, name)
        elif name not in inputs:
            raise entry.refuse(f"no value for the parameter {name}")
        elif isinstance(kind, TensorType):
            arguments[name] = _tensor_in(parameter, kind, inputs[name])
        elif isinstance(kind, ScalarType):
            arguments[name] = _scalar_in(entry, name, kind, inputs[name])
        else:
            raise entry.refuse(f"{name}: an entry takes tensors and scalars, no {type(kind).__name__}")
    return arguments


def _extent(entry: KernelFunction, parameter: Parameter, dim: int | DynVar, dims: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    if dim.name not in dims:
        raise entry.refuse(f"no input gives the dynamic dimension {dim.name} of {parameter.name}")
    return dims[dim.name]


def _check_tensor(entry: KernelFunction, parameter: Parameter, value: Any, dims: dict[str, int]) -> None:
    assert isinstance(parameter.type, TensorType)
    if not isinstance(value, torch.Tensor):
        raise entry.refuse(f"{parameter.name} must be a tensor, got {value!r}")
    if from_torch(value.dtype) is not parameter.type.dtype:
        raise entry.refuse(f"{parameter.name} is declared {parameter.type.dtype}, the input is {value.dtype}")
    shape = tuple(value.shape)
    declared = parameter.type.shape
    if len(shape) != len(declared):
        raise entry.refuse(
            f"{parameter.name} is declared with {len(declared)} dimensions, the input has shape {list(shape)}"
        )
    for axis, (actual, dim) in enumerate(zip(shape, declared, strict=True)):
        expected = dims.setdefault(dim.name, actual) if isinstance(dim, DynVar) else dim
        if actual != expected:
            words = f"{dim.name} = {expected}" if isinstance(dim, DynVar) else str(expected)
            raise entry.refuse(f"{parameter.name}: axis {axis} is declared {words}, the input has shape {list(shape)}")


def _tensor_in(parameter: Parameter, kind: TensorType, value: Any) -> Tensor:
    writable = kind.direction == "inout"
    data = value.contiguous().clone() if writable else value.contiguous()
    tensor = Tensor.of(data, kind.dtype, parameter.name)
    tensor.storage.readonly = not writable
    return tensor


def _scalar_in(entry: KernelFunction, name: str, kind: ScalarType, value: Any) -> Any:
    """Entry scalars are compile-time constants: plain numbers in the body; `pl.RUNTIME` ones are typed (1.2)."""
    if isinstance(value, torch.Tensor):
        value = value.item()
    if not isinstance(value, (int, float)):
        raise entry.refuse(f"{name} must be a number, got {value!r}")
    if kind.runtime and not isinstance(value, bool):
        return scalars.make(value, kind.dtype)
    return float(value) if kind.dtype.is_float else value


def _check_parameters(entry: KernelFunction, op: Op) -> None:
    """The parameters must be the op's, by name, order, kind and direction."""
    expected = [s.name for s in op.signature]
    actual = [p.name for p in entry.parameters]
    for position, (want, have) in enumerate(zip(expected, actual, strict=False)):
        if want != have:
            raise entry.refuse(f"parameter {position + 1} of {entry.name} is {have!r}, {op.name} expects {want!r}")
    if len(expected) != len(actual):
        raise entry.refuse(
            f"{entry.name} has {len(actual)} parameters, {op.name} expects {len(expected)}: {', '.join(expected)}"
        )
    roles = {o.name: o.role for o in op.outputs}
    for parameter in entry.parameters:
        direction = parameter.type.direction if isinstance(parameter.type, TensorType) else "in"
        role = roles.get(parameter.name, "in")
        if (role == "in") != (direction == "in"):
            raise entry.refuse(f"{parameter.name} is {direction!r} in {entry.name}, {op.name} declares it {role!r}")


def _as_fault(error: Exception, machine: Machine) -> KernelFault:
    """An error of an op (a wrong argument, an unsupported form) at the line of the kernel that called it."""
    file, line = next(iter(machine.files), "<kernel>"), None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename in machine.files:
            file, line = trace.tb_frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next
    text = str(error) or type(error).__name__
    return KernelFault(file, line, text if isinstance(error, TypeError) else f"{type(error).__name__}: {text}")
