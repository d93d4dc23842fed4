"""The real PyPTO toolchain as a `Device` (contracts/pypto_dsl.md, section 5), when the package `pypto` is installed.

Single-chip entries ("L2") are compiled and handed to `execute_compiled`; host entries ("L3") are called, or, when a
tensor is resident, run by a prepared worker. The calls are those of the contract and are tested against a recording
stand-in; Goldengate's own tests never ran them on a device or on the toolchain's simulator.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.devices.base import DeviceRun, KernelFault, KernelRefused
from harness.devices.c_scalars import c_scalar
from harness.devices.kernel_modules import KernelImports, kernel_modules
from harness.devices.process import user_place, user_process
from harness.errors import UsageError
from specs.tensors import TensorSpec

if TYPE_CHECKING:
    from specs.registry import Op

_POISON = 0xFF  # every byte of an output before the run: a NaN that no instruction produces, -1 in integers


@dataclass(frozen=True)
class PyPTOKernel:
    """An entry of a kernel file: an object that the toolchain's `@pl.jit` or `@pl.jit.host` made."""

    path: Path
    function: str
    entry: Any


class PyPTODevice:
    """Runs kernels by the installed toolchain on platform a2a3. Raises UsageError where it cannot be imported."""

    name = "pypto"
    platform = "a2a3"

    def __init__(self) -> None:
        self._runtime = _toolchain("pypto.runtime")
        self._backend = _toolchain("pypto.backend")
        self._distributed = _toolchain("pypto.ir.distributed_compiled_program")

    def load(
        self, path: Path, function: str, sizes: Mapping[str, int | float], tiles: str | None = None
    ) -> PyPTOKernel:
        """Execute the kernel file against the real language and take `function`. Raises KernelRefused."""
        path = path.resolve()
        module = ModuleType(path.stem)
        module.__file__ = str(path)
        with user_process(path, [str(path)], kernel_modules(sizes, tiles), [KernelImports()]):
            try:
                exec(
                    compile(path.read_text(encoding="utf-8"), str(path), "exec", dont_inherit=True),
                    module.__dict__,
                )
            except Exception as error:
                raise KernelRefused(*user_place(error, path), f"{type(error).__name__}: {error}") from error
        entry = module.__dict__.get(function)
        if not hasattr(entry, "compile"):
            raise KernelRefused(path, None, f"no function {function!r} under a pl.jit decorator")
        return PyPTOKernel(path, function, entry)

    def run(self, kernel: PyPTOKernel, op: Op, inputs: dict[str, Tensor | int | float], schedule: int = 0) -> DeviceRun:
        """Compile and run once. The order of tasks is the device's own: raises UsageError for a schedule but 0,
        KernelRefused when the compiler fails, KernelFault when the run does."""
        if schedule != 0:
            raise UsageError(f"device {self.name} runs in its own order: schedule must be 0, not {schedule}")
        values = _host_values(op, inputs)
        config = self._config(op)
        try:
            compiled = kernel.entry.compile(*values.values(), config=config)
        except Exception as error:
            raise KernelRefused(*user_place(error, kernel.path), f"{type(error).__name__}: {error}") from error
        start = time.perf_counter()
        try:
            if isinstance(compiled, self._distributed.DistributedCompiledProgram):
                self._run_ranks(compiled, op, values, config)
            else:
                self._run_chip(compiled, op, values)
        except KernelRefused:
            raise
        except Exception as error:
            raise KernelFault(kernel.path, None, f"{type(error).__name__}: {error}") from error
        seconds = time.perf_counter() - start
        outputs = {spec.name: values[spec.name] for spec in op.outputs}
        return DeviceRun(outputs, {n: _unwritten(t) for n, t in outputs.items()}, seconds=seconds)

    def _config(self, op: Op) -> Any:
        ranks = op.deployment.ep_world_size
        options: dict[str, Any] = {}
        if ranks > 1:
            options["distributed_config"] = self._distributed.DistributedConfig(device_ids=list(range(ranks)))
        return self._runtime.RunConfig(
            platform=self.platform, device_id=0, backend_type=self._backend.BackendType.Ascend910B, **options
        )

    def _run_chip(self, compiled: Any, op: Op, values: dict[str, Any]) -> None:
        """L2: by position, so the names must be the op's; scalars as ctypes; outputs are overwritten in place."""
        _check_names(compiled.param_names, list(values), exact=True)
        arguments = [
            value if isinstance(value, Tensor) else c_scalar(value, spec.dtype)
            for spec, value in zip(op.signature, values.values(), strict=True)
        ]
        self._runtime.execute_compiled(compiled.output_dir, arguments, platform=self.platform, device_id=0)

    def _run_ranks(self, compiled: Any, op: Op, values: dict[str, Any], config: Any) -> None:
        """L3: by name; host tensors in shared memory before any worker is forked."""
        names = [p.name.split("__ssa_")[0] for p in compiled._get_metadata()[0]]
        _check_names(names, list(values), exact=False)
        for value in values.values():
            if isinstance(value, Tensor):
                value.share_memory_()  # type: ignore[no-untyped-call]
        resident: dict[str, int | str] = {
            s.name: s.resident for s in op.signature if isinstance(s, TensorSpec) and s.resident is not None
        }
        if not resident:
            compiled(*(values[name] for name in names), config=config)
            return
        read_back = [spec.name for spec in op.outputs if spec.name in resident]
        with compiled.prepare() as worker:
            handles: dict[str, Any] = {}
            try:
                for name, mode in resident.items():
                    handles[name] = _upload(worker, values[name], mode)
                worker(*(handles.get(name, values[name]) for name in names), config=config)
                for name in read_back:
                    _download(worker, handles[name], values[name], resident[name])
            finally:
                for name, handle in handles.items():
                    _free(worker, handle, resident[name])


class PyPTOSimulator(PyPTODevice):
    """The toolchain's own CPU build of the kernels, platform a2a3sim."""

    name = "pypto-sim"
    platform = "a2a3sim"


def _toolchain(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise UsageError(f"the PyPTO toolchain is not importable here ({error}); use --device emulator") from error


def _host_values(op: Op, inputs: Mapping[str, Tensor | int | float]) -> dict[str, Any]:
    """Values in parameter order: copies of the inputs, outputs filled with poison."""
    values: dict[str, Any] = {}
    outputs = {spec.name: spec for spec in op.outputs}
    for spec in op.signature:
        if spec.name in inputs:
            value = inputs[spec.name]
            values[spec.name] = value.contiguous().clone() if isinstance(value, Tensor) else value
        else:
            out = outputs[spec.name]
            values[spec.name] = torch.empty(out.shape, dtype=out.dtype)
            values[spec.name].view(torch.uint8).fill_(_POISON)
    return values


def _unwritten(output: Tensor) -> Tensor | None:
    """Elements of a float tensor that still hold the poison; None when there are none, or for other dtypes."""
    if not output.is_floating_point():
        return None
    mask = (output.contiguous().view(torch.uint8) == _POISON).reshape(*output.shape, -1).all(dim=-1)
    return mask if bool(mask.any()) else None


def _check_names(compiled: list[str], given: list[str], *, exact: bool) -> None:
    missing = [name for name in compiled if name not in given]
    if missing or (exact and compiled != given):
        raise ValueError(f"the compiled program takes {', '.join(compiled)}; the op gives {', '.join(given)}")


def _upload(worker: Any, host: Tensor, mode: int | str) -> Any:
    if mode == "stacked":
        return worker.alloc_stacked_tensor(host)
    return worker.alloc_tensor(tuple(host.shape), host.dtype, init=host, worker_id=mode)


def _download(worker: Any, handle: Any, host: Tensor, mode: int | str) -> None:
    if mode == "stacked":
        worker.copy_stacked_from(handle, host)
    else:
        worker.copy_from(host.data_ptr(), handle.data_ptr, handle.nbytes, worker_id=mode)


def _free(worker: Any, handle: Any, mode: int | str) -> None:
    if mode == "stacked":
        worker.free_stacked_tensor(handle)
    else:
        worker.free_tensor(handle, worker_id=mode)
