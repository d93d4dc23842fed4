"""A kernel function that is called from Python: `fn.compile(*args)`, `fn(*args, config=…)` (pypto_dsl.md 5.2 to 5.4).

Arguments are bound by position, as the toolchain does. Out and inout tensors are overwritten in place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch

from harness.devices.base import DeviceRun
from harness.devices.emulator import device
from harness.devices.emulator.annotations import TensorType
from harness.devices.emulator.functions import KernelFunction, Parameter, reachable
from harness.devices.emulator.host import execute_host
from harness.devices.emulator.toolchain import BackendType, RunConfig, backend_of

# The seed of the legal device that runs a script's kernels; 0 is program order.
SCHEDULE: ContextVar[int] = ContextVar("schedule", default=0)


class CompiledProgram:
    """A kernel function whose every reachable part the front end accepts."""

    def __init__(self, entry: KernelFunction, config: RunConfig, output_dir: Path) -> None:
        self.program = entry
        self.config = config
        self.platform = config.platform
        self.backend_type: BackendType = backend_of(config.platform)
        self.output_dir = str(output_dir)
        self.param_names = [p.name for p in entry.parameters]
        self.output_indices = [i for i, p in enumerate(entry.parameters) if direction(p) != "in"]
        self.has_return = entry.compiled.returns

    @property
    def distributed(self) -> bool:
        """Whether this is a host entry ("L3") and not a single-chip one ("L2")."""
        return self.program.kind == "host"

    def bind(self, arguments: Sequence[Any]) -> dict[str, Any]:
        """Arguments by parameter name: all of them, or all but the pure outputs, in order.

        Raises KernelRefused for another number of arguments.
        """
        parameters = self.program.parameters
        if len(arguments) == len(parameters):
            taken: Sequence[Parameter] = parameters
        else:
            taken = [p for p in parameters if direction(p) != "out"]
        if len(arguments) != len(taken):
            raise self.program.refuse(
                f"{self.program.name} takes {len(parameters)} arguments ({', '.join(self.param_names)}), "
                f"{len(arguments)} were given"
            )
        return {p.name: value for p, value in zip(taken, arguments, strict=True)}

    def run(self, values: Mapping[str, Any], resident: Mapping[str, int | str] | None = None) -> DeviceRun:
        """Run with values by parameter name; no tensor of `values` changes. Raises KernelRefused, KernelFault."""
        files = frozenset(f.file for f in reachable(self.program))
        if not self.distributed:
            return device.execute(self.program, dict(values), SCHEDULE.get(), files)
        world = 1 if self.config.distributed_config is None else self.config.distributed_config.world_size
        return execute_host(
            self.program, dict(values), SCHEDULE.get(), files, world=world, residency=dict(resident or {})
        )

    def __call__(self, *arguments: Any, config: RunConfig | None = None) -> Any:
        """Run. Tensors of out and inout parameters are overwritten in place; omitted ones are returned."""
        values = self.bind(arguments)
        result = self.run(values)
        for name, output in result.outputs.items():
            if name in values:
                write_back(values[name], output, result.undefined.get(name))
        fresh = [output for name, output in result.outputs.items() if name not in values]
        if len(fresh) > 1:
            return tuple(fresh)
        return fresh[0] if fresh else None


def direction(parameter: Parameter) -> str:
    """ "in", "out" or "inout"; scalars are "in"."""
    return parameter.type.direction if isinstance(parameter.type, TensorType) else "in"


def write_back(host: torch.Tensor, output: torch.Tensor, undefined: torch.Tensor | None) -> int:
    """Copy the defined elements of a device output into the host tensor; the number of elements left as they were."""
    if undefined is None:
        host.copy_(output)
        return 0
    host.copy_(torch.where(undefined, host, output))
    return int(undefined.sum())


def compile_program(
    entry: KernelFunction, arguments: Sequence[Any], config: RunConfig | None = None
) -> CompiledProgram:
    """Check `entry` and all it reaches, and the arguments against the declaration. Raises KernelRefused.

    Shapes and dtypes of tensors matter, their contents do not.
    """
    if entry.kind not in ("entry", "host"):
        raise entry.refuse(f"{entry.name} is a pl.jit.{entry.kind} function: only an entry can be called from Python")
    for function in reachable(entry):
        function.compiled  # noqa: B018  refusals of every function, before anything runs
    config = RunConfig() if config is None else config
    compiled = CompiledProgram(entry, config, Path(config.save_kernels_dir or Path("build_output") / entry.name))
    device.check_tensors(entry, compiled.bind(arguments))
    return compiled


def call(entry: KernelFunction, arguments: Sequence[Any], config: RunConfig | None = None) -> Any:
    """`fn(*args, config=…)`: compile and run."""
    return compile_program(entry, arguments, config)(*arguments)
