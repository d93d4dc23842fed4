"""`golden.run` and `golden.run_jit` on the emulator (contracts/reference_harness.md, sections 4 to 9).

Stages, messages and verdicts are the reference's: compile, generate inputs, compute golden, runtime, validate. There
is no build directory to run from; `runtime_dir` only receives the data. There is no benchmark: the emulator's time
says nothing about the device's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.devices.base import DeviceRun
from harness.devices.emulator.functions import KernelFunction
from harness.devices.emulator.program import (
    SCHEDULE,
    CompiledProgram,
    compile_program,
    direction,
    write_back,
)
from harness.devices.emulator.toolchain import BackendType, RunConfig, backend_of
from harness.foreign import golden_snapshots as snapshots
from harness.foreign.golden_compare import Comparator
from harness.foreign.golden_specs import ScalarSpec, Spec, TensorSpec, is_residency
from harness.foreign.golden_validate import validate_golden
from harness.foreign.session import RunResult, is_strict, note, record

Golden = Callable[[dict[str, Any]], Any]
_LOG_LEVELS = ("debug", *(f"v{n}" for n in range(10)), "info", "warn", "error", "null")
_DIAGNOSTICS = (
    "enable_l2_swimlane", "enable_dump_tensor", "enable_pmu", "enable_dep_gen", "enable_scope_stats",
    "enable_chip_swimlane", "enable_dump_args",
)  # fmt: skip
_EXECUTOR_OPTIONS = (
    "platform", "device_id", "pto_isa_commit", "level", "block_dim", "aicpu_thread_num",
    "analyze_auto_scopes_for_deps",
)  # fmt: skip
_COMPILE_OPTIONS = (
    "dump_passes", "strategy", "diagnostic_phase", "disabled_diagnostics", "distributed_config",
    "analyze_auto_scopes_for_deps", "memory_planner",
)  # fmt: skip
_JIT_OPTIONS = (*_COMPILE_OPTIONS, "save_kernels_dir", "compile_profiling")
_PROGRAM_OPTIONS = (
    *_COMPILE_OPTIONS, "output_dir", "skip_ptoas", "profiling", "verification_level", "platform", "backend_type",
)  # fmt: skip


class _Failed(Exception):
    """The run ends with a failed result and this text."""


@dataclass(frozen=True)
class _Job:
    """The arguments of one `run` or `run_jit`, and how its compile options are spelled."""

    program: Any
    specs: Sequence[Spec]
    golden_fn: Golden | None
    golden_data: str | Path | None
    compile_cfg: Mapping[str, Any]
    runtime_cfg: Mapping[str, Any]
    rtol: float
    atol: float
    compare_fn: Mapping[str, Comparator]
    compile_only: bool
    runtime_dir: str | Path | None
    save_data: bool
    jit: bool

    @property
    def entry(self) -> KernelFunction:
        """The function to run: the program itself, or the entry of a `pl.program` class. Raises TypeError."""
        entry = getattr(self.program, "entry", self.program)
        if not isinstance(entry, KernelFunction):
            raise TypeError(f"{_name(self.program)} is no kernel of pypto.language: the emulator cannot run it")
        return entry

    @property
    def outputs(self) -> list[TensorSpec]:
        return [s for s in self.specs if isinstance(s, TensorSpec) and s.is_output]


def run_jit(
    fn: Any,
    specs: Sequence[Spec],
    golden_fn: Golden | None = None,
    golden_data: str | Path | None = None,
    compile_cfg: Mapping[str, Any] | None = None,
    runtime_cfg: Mapping[str, Any] | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    compare_fn: Mapping[str, Comparator] | None = None,
    compile_only: bool = False,
    runtime_dir: str | Path | None = None,
    save_data: bool = True,
) -> RunResult:
    """Run a `@pl.jit` function on inputs made by `specs` and compare its outputs with `golden_fn` or a snapshot.

    A mismatch, a missing snapshot file, a missing `runtime_dir` and contradictory arguments are failed results; errors
    of the kernel, the golden and the options propagate (KernelRefused, KernelFault, TypeError, ValueError …). Without
    golden the result is passed, as in the reference, and a note says that nothing was compared.
    """
    return _run(
        _Job(fn, list(specs), golden_fn, golden_data, dict(compile_cfg or {}), dict(runtime_cfg or {}), rtol, atol,
             dict(compare_fn or {}), compile_only, runtime_dir, save_data, jit=True)
    )  # fmt: skip


def run(
    program: Any,
    specs: Sequence[Spec],
    golden_fn: Golden | None = None,
    golden_data: str | Path | None = None,
    compile_cfg: Mapping[str, Any] | None = None,
    runtime_cfg: Mapping[str, Any] | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    compare_fn: Mapping[str, Comparator] | None = None,
    compile_only: bool = False,
    runtime_dir: str | Path | None = None,
    save_data: bool = True,
) -> RunResult:
    """`run_jit` for a program object, with the compile options of the IR compiler."""
    return _run(
        _Job(program, list(specs), golden_fn, golden_data, dict(compile_cfg or {}), dict(runtime_cfg or {}), rtol, atol,
             dict(compare_fn or {}), compile_only, runtime_dir, save_data, jit=False)
    )  # fmt: skip


def _run(job: _Job) -> RunResult:
    start = time.perf_counter()
    directory = _work_dir(job)
    error, suffix = None, ""
    try:
        compared = _stages(job, directory)
        if not compared and not job.compile_only:
            suffix = ", validation skipped: no golden_fn or golden_data"
    except _Failed as failure:
        error = str(failure)
    seconds = time.perf_counter() - start
    if error is None:
        print(f"[RUN] PASS ({seconds:.2f}s{suffix})")
        if suffix:
            note("nothing was compared: goldengate would call this run unverified")
    return record(RunResult(error is None, error, seconds, str(directory)))


def _stages(job: _Job, directory: Path) -> bool:
    """All stages; whether anything was compared. Raises _Failed."""
    if job.compile_only and job.runtime_dir is not None:
        raise _Failed("compile_only and runtime_dir exclude each other")
    config = _config(job)
    compiled = _compile(job, config)
    if job.compile_only:
        return False
    _announce(config)
    data = directory / "data"
    with _stage("generate inputs"):
        values = _inputs(job, data)
    expected = None
    if job.golden_data is not None or job.golden_fn is not None:
        with _stage("compute golden"):
            expected = _expected(job, values, data)
    with _stage("runtime"):
        result = _execute(job, compiled, values)
    _report(result)
    if expected is None:
        return False
    with _stage("validate"):
        _validate(job, values, expected)
    return True


@contextmanager
def _stage(name: str) -> Iterator[None]:
    """The reference's lines around a stage; the second is printed also when the stage raised."""
    start = time.perf_counter()
    print(f"[RUN] {name} ...")
    try:
        yield
    finally:
        print(f"[RUN] {name} done ({time.perf_counter() - start:.2f}s)")


# -- options ------------------------------------------------------------------------------------------


def _name(program: Any) -> str:
    return str(getattr(program, "name", getattr(program, "__name__", type(program).__name__)))


def _work_dir(job: _Job) -> Path:
    given = job.runtime_dir or job.compile_cfg.get("save_kernels_dir") or job.compile_cfg.get("output_dir")
    if given:
        return Path(given)
    return Path("build_output") / f"{_name(job.program)}_{datetime.now():%Y%m%d_%H%M%S}"


def _config(job: _Job) -> RunConfig:
    """The RunConfig of a job. Raises ValueError for a platform or log level, TypeError for an option unknown."""
    options = dict(job.runtime_cfg)
    level = options.pop("log_level", None)
    if level is not None and level not in _LOG_LEVELS:
        raise ValueError(f"unknown log_level {level!r}; expected one of {', '.join(_LOG_LEVELS)}")
    wanted = [name for name in _DIAGNOSTICS if options.pop(name, False)]
    if wanted:
        note(f"the emulator writes no diagnostics for {', '.join(wanted)}")
    platform = options.get("platform", job.compile_cfg.get("platform", "a2a3"))
    backend = backend_of(platform)
    if job.entry.kind == "host":
        known = {f.name for f in fields(RunConfig)}
        for name in sorted(set(options) - known):
            note(f"the run option {name!r} is unknown and has no effect")
    else:
        _refuse_unknown("run", options, _EXECUTOR_OPTIONS)
    _refuse_unknown("compile", job.compile_cfg, _JIT_OPTIONS if job.jit else _PROGRAM_OPTIONS)
    known = {f.name for f in fields(RunConfig)} - {"platform", "backend_type"}
    compile_options = {n: v for n, v in job.compile_cfg.items() if n in known}
    return RunConfig(platform=platform, backend_type=backend, device_id=options.get("device_id", 0), **compile_options)


def _refuse_unknown(kind: str, options: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in options:
        if name not in known:
            raise TypeError(f"unknown {kind} option {name!r}; known: {', '.join(known)}")


def _announce(config: RunConfig) -> None:
    """Say who answers for the platform."""
    print(f"[RUN] platform {config.platform}: answered by the goldengate emulator, schedule {SCHEDULE.get()}")
    if config.backend_type is BackendType.Ascend950:
        note("the emulator models A2/A3: capacities, dtypes and rounding of A5 differ")


# -- stages -------------------------------------------------------------------------------------------


def _compile(job: _Job, config: RunConfig) -> CompiledProgram:
    label = "JIT compile" if job.jit else "compile"
    placeholders = [
        s.python_value if isinstance(s, ScalarSpec) else torch.empty(s.shape, dtype=s.dtype, device="meta")
        for s in job.specs
    ]
    if job.runtime_dir is not None:
        if not Path(job.runtime_dir).is_dir():
            raise _Failed(f"runtime_dir does not exist: {job.runtime_dir}")
        print(f"[RUN] runtime_only: skipping {label}, using {job.runtime_dir}")
        note("the emulator runs the source of the kernel, not the binaries of runtime_dir")
        return _compiled(job, placeholders, config)
    with _stage("compile"):
        return _compiled(job, placeholders, config)


def _compiled(job: _Job, placeholders: list[Any], config: RunConfig) -> CompiledProgram:
    entry = job.entry
    if entry.kind == "host":  # bound by name: surplus specs are ignored
        by_name = dict(zip((s.name for s in job.specs), placeholders, strict=True))
        placeholders = [by_name[p.name] for p in entry.parameters]
    elif len(placeholders) != len(entry.parameters):
        raise entry.refuse(f"{entry.name} takes {len(entry.parameters)} arguments, there are {len(placeholders)} specs")
    return compile_program(entry, placeholders, config)


def _inputs(job: _Job, data: Path) -> dict[str, Tensor | ScalarSpec]:
    """Values by name: snapshot or fresh; fresh ones are saved if asked."""
    if job.golden_data is not None:
        try:
            values = snapshots.read_inputs(Path(job.golden_data), job.specs)
        except ValueError as error:
            raise _Failed(str(error)) from error
        print(f"[RUN]   cache hit: {Path(job.golden_data) / 'in'}")
        return values
    values = {s.name: s if isinstance(s, ScalarSpec) else s.create_tensor() for s in job.specs}
    if job.save_data:
        pure_outputs = {s.name for s in job.outputs if not s.is_inout}
        tensors = {n: v.value if isinstance(v, ScalarSpec) else v for n, v in values.items() if n not in pure_outputs}
        snapshots.write(data / "in", tensors)
    return values


def _expected(job: _Job, values: Mapping[str, Tensor | ScalarSpec], data: Path) -> dict[str, Tensor]:
    """Expected outputs, from the snapshot or from the golden run on clones of the inputs and on zeros (section 5)."""
    if job.golden_data is not None:
        try:
            expected = snapshots.read_outputs(Path(job.golden_data), job.specs)
        except ValueError as error:
            raise _Failed(str(error)) from error
        print(f"[RUN]   cache hit: {Path(job.golden_data) / 'out'}")
        return expected
    assert job.golden_fn is not None
    scratch: dict[str, Any] = {}
    for spec in job.specs:
        value = values[spec.name]
        if isinstance(value, ScalarSpec):
            scratch[spec.name] = value.python_value
        elif isinstance(spec, TensorSpec) and spec.is_output and not spec.is_inout:
            scratch[spec.name] = torch.zeros(spec.shape, dtype=spec.dtype)
        else:
            scratch[spec.name] = value.clone()
    untouched = {s.name: (scratch[s.name], scratch[s.name]._version) for s in job.outputs}
    job.golden_fn(scratch)
    for name, (tensor, version) in untouched.items():
        if scratch[name] is tensor and tensor._version == version:
            note(f"the golden never writes {name}")
    expected = {s.name: scratch[s.name] for s in job.outputs}
    if job.save_data:
        snapshots.write(data / "out", expected)
    return expected


def _execute(job: _Job, compiled: CompiledProgram, values: Mapping[str, Tensor | ScalarSpec]) -> DeviceRun:
    """Run, and copy what comes back into the host tensors. Raises _Failed for resident specs of an L2 program."""
    resident = _resident(job, compiled)
    numbers = {n: v.python_value if isinstance(v, ScalarSpec) else v for n, v in values.items()}
    parameters = compiled.program.parameters
    if compiled.distributed:
        names = {name: name for name in compiled.param_names}
    else:
        names = dict(zip(compiled.param_names, (s.name for s in job.specs), strict=True))
        for parameter, spec in names.items():
            if parameter != spec:
                note(f"the parameter {parameter} of {compiled.program.name} is bound to the spec {spec}, by position")
    outputs = {s.name for s in job.outputs}
    for p in parameters:
        if direction(p) == "in" and names[p.name] in outputs:
            note(f"{names[p.name]} is an output, but {compiled.program.name} declares it as input: it is not read back")
    result = compiled.run({p: numbers[spec] for p, spec in names.items()}, resident)
    for parameter, output in result.outputs.items():
        host = values[names[parameter]]
        assert isinstance(host, Tensor)
        left = write_back(host, output, result.undefined.get(parameter))
        if left:
            note(
                f"{left} of {output.numel()} elements of {parameter} were never written or are undefined: "
                "they keep the host's contents, on a device they may be anything"
            )
    return result


def _resident(job: _Job, compiled: CompiledProgram) -> dict[str, int | str]:
    resident = {s.name: s.resident for s in job.specs if isinstance(s, TensorSpec) and s.is_resident}
    if resident and not compiled.distributed:
        raise _Failed(f"resident specs ({', '.join(resident)}) need a host entry (@pl.jit.host)")
    for name in [n for n, mode in resident.items() if not is_residency(mode)]:
        note(f"{name} has the unknown residency {resident.pop(name)!r}: it is uploaded like any other")
    return resident


def _report(result: DeviceRun) -> None:
    """Print the findings; those of severity error fail the run unless the session lets them pass."""
    errors = [str(f) for f in result.findings if f.severity == "error"]
    for finding in result.findings:
        if finding.severity != "error" or not is_strict():
            note(str(finding))
    if errors and is_strict():
        raise _Failed("\n".join(errors))


def _validate(job: _Job, values: Mapping[str, Tensor | ScalarSpec], expected: Mapping[str, Tensor]) -> None:
    outputs: dict[str, Tensor] = {}
    inputs: dict[str, Tensor] = {}
    for spec in job.specs:
        value = values[spec.name]
        kept = value.value if isinstance(value, ScalarSpec) else value
        (outputs if isinstance(spec, TensorSpec) and spec.is_output else inputs)[spec.name] = kept
    if not outputs:
        note("no spec is an output: nothing was compared")
    try:
        validate_golden(outputs, expected, job.rtol, job.atol, job.compare_fn, inputs)
    except AssertionError as error:
        raise _Failed(str(error)) from error
