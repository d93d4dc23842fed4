"""Run one op on a device and judge every output: `Session(device, tolerances).verify(run) -> Verdict`.

Nothing passes by default. An output without a tolerance is unverified, and so is one that was compared in no run;
an output that is missing, of another shape or dtype, or that was never written fails; so does a kernel that changes
its inputs. A session keeps the inputs and golden of the last case, so that many schedules cost one golden.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.compare import EMPTY, FAIL, PASS, Judgement
from harness.devices.base import Device, DeviceRun, Finding, Kernel, KernelFault
from harness.errors import UsageError
from harness.judging import UNVERIFIED, Prepared, Values, judge
from harness.localise import first_diverging, walk
from harness.room import available, refuse_without_room
from harness.run import Run
from harness.tolerances import Tolerances
from harness.versions import versions

if TYPE_CHECKING:
    from specs.registry import Op


@dataclass(frozen=True)
class Timing:
    """Seconds spent on the inputs, the golden, the device and the judge; 0 where a session had kept the result."""

    inputs: float = 0.0
    golden: float = 0.0
    device: float = 0.0
    judge: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """What one run came to. `status`: pass, fail, unverified, or empty where the contract defines no element.

    `outputs`: a judgement per output, in signature order; `stages`: one per intermediate that has a tolerance and that
    the device handed back, in order of computation; `problems`: what failed besides outputs (a fault with
    file and line, a changed input, a missing output, findings that count as errors); `notes`: what the user should
    know although it fails nothing; `diverged`: the first stage or output in order of computation that failed.
    """

    run: Run
    status: str
    outputs: Mapping[str, Judgement]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    counters: Mapping[str, int | float] = field(default_factory=dict)
    timing: Timing = Timing()
    diverged: str | None = None
    stages: Mapping[str, Judgement] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=versions)

    @property
    def command(self) -> str:
        return self.run.command


class Session:
    """Verifies runs on one device under one set of tolerances."""

    def __init__(self, device: Device, tolerances: Tolerances) -> None:
        self.device = device
        self.tolerances = tolerances
        self._key: tuple[object, ...] | None = None
        self._prepared: Prepared | None = None
        self._kernels: dict[tuple[object, ...], Kernel] = {}

    def verify(self, run: Run) -> Verdict:
        """One verdict. Raises SpecError or GoldenInputError for names and inputs that are out of contract, and
        KernelRefused for a kernel that the front end would refuse."""
        prepared, timing = self._prepare(run)
        kernel = self._load(run, prepared.op)
        try:
            result = self.device.run(kernel, prepared.op, handed_out(prepared), run.schedule)
        except KernelFault as fault:
            return _verdict(run, prepared, {}, (f"kernel fault: {fault}",), DeviceRun({}), timing)
        start = time.perf_counter()
        judged = judge(prepared.op, self.tolerances.get(run.op, {}), prepared, result)
        problems = (
            *(f"input {name} was changed by the kernel" for name in _changed(prepared)),
            *(f"the kernel wrote {name!r}, which is no output" for name in result.outputs if name not in judged),
            *(f"{finding}" for finding in result.findings if run.lint == "error" and finding.severity == "error"),
        )
        diverged = None
        if any(judgement.status == FAIL for judgement in judged.values()):
            step = first_diverging(walk(prepared, self.tolerances.get(run.op, {}), result, to_the_first=True))
            diverged = step.name if step is not None else first_failed(prepared.op, judged)
        timing = replace(timing, device=result.seconds, judge=time.perf_counter() - start)
        if any("was changed" in problem for problem in problems):
            self._key = None  # what this session kept is no longer the case's
        return _verdict(run, prepared, judged, problems, result, timing, diverged)

    def _load(self, run: Run, op: Op) -> Kernel:
        key = (run.op, run.preset, run.deployment, run.overrides, run.kernel, run.function, run.tiles)
        if key not in self._kernels:
            self._kernels[key] = load_kernel(self.device, run, op)
        return self._kernels[key]

    def _prepare(self, run: Run) -> tuple[Prepared, Timing]:
        if self._key == run.inputs_key and self._prepared is not None:
            return self._prepared, Timing()
        self._key, self._prepared = None, None  # free the old ones first
        self._prepared, timing = prepare(run)
        self._key = run.inputs_key
        return self._prepared, timing


def prepare(run: Run) -> tuple[Prepared, Timing]:
    """Draw the inputs of a run and evaluate its golden, or take both from its snapshot. Raises SpecError,
    GoldenInputError, and UsageError for a snapshot that is refused or tensors that the memory cannot hold."""
    from specs.registry import load_op

    if run.snapshot is not None:
        from harness.snapshots.load import prepared_from  # which takes names from here

        return prepared_from(run)
    op = load_op(run.op, run.preset, run.deployment, **dict(run.overrides))
    refuse_without_room(op, available())
    start = time.perf_counter()
    inputs = op.inputs(run.case, run.seed)
    drawn = time.perf_counter()
    stages: dict[str, Tensor] = {}
    golden = op.golden(inputs, stages)
    done = time.perf_counter()
    prepared = Prepared(
        op, inputs, checksums(inputs), golden, stages, op.valid(inputs), op.mapped(inputs), tuple(nan_notes(inputs))
    )
    return prepared, Timing(inputs=drawn - start, golden=done - drawn)


def load_kernel(device: Device, run: Run, op: Op) -> Kernel:
    """The kernel under test. Raises KernelRefused, and UsageError for a tile set or function that there is not."""
    try:
        kernel = device.load(*kernel_source(run, op), op.sizes, run.tiles)
    except ValueError as error:  # a tile set that there is not, or that does not fit the sizes
        raise UsageError(f"{run.op} {run.preset}/{run.deployment}: {error}") from error
    if run.function is not None and kernel.function != run.function:  # a device may fall back on the only entry
        raise UsageError(f"{run.kernel} has no function {run.function!r}; its entry is {kernel.function}")
    return kernel


def kernel_source(run: Run, op: Op) -> tuple[Path, str]:
    """File and function of the kernel under test."""
    return (op.kernel if run.kernel is None else Path(run.kernel)), run.function or op.name


def handed_out(prepared: Prepared) -> Values:
    """The inputs for the device: inout tensors are copies, since it may write to them."""
    written = {spec.name for spec in prepared.op.outputs}
    return {
        name: value.clone() if name in written and isinstance(value, Tensor) else value
        for name, value in prepared.inputs.items()
    }


def nan_notes(inputs: Mapping[str, Any]) -> Iterable[str]:
    """A note per input tensor that holds NaN."""
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            count = int(torch.isnan(value).sum())
            if count:
                yield f"input {name} holds {count} NaN"


def checksums(inputs: Mapping[str, Any]) -> dict[str, int]:
    """CRC-32 of the bytes of every input tensor."""
    return {name: _crc(value) for name, value in inputs.items() if isinstance(value, Tensor)}


def _crc(tensor: Tensor) -> int:
    return zlib.crc32(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data) if tensor.numel() else 0


def _changed(prepared: Prepared) -> list[str]:
    now = checksums(prepared.inputs)
    return [name for name, crc in prepared.checksums.items() if now[name] != crc]


def _verdict(
    run: Run,
    prepared: Prepared,
    judged: Mapping[str, Judgement],
    problems: tuple[str, ...],
    result: DeviceRun,
    timing: Timing,
    diverged: str | None = None,
) -> Verdict:
    op = prepared.op
    names = [spec.name for spec in op.outputs]
    stages = {name: judgement for name, judgement in judged.items() if name not in names}
    outputs = {name: judgement for name, judgement in judged.items() if name in names}
    statuses = [judgement.status for judgement in outputs.values()]
    if problems or any(judgement.status == FAIL for judgement in judged.values()):
        status = FAIL
    elif UNVERIFIED in statuses:
        status = UNVERIFIED
    elif all(s == EMPTY for s in statuses):
        status = EMPTY
    else:
        status = PASS
    return Verdict(
        run=run,
        status=status,
        outputs=outputs,
        problems=problems,
        notes=prepared.notes,
        findings=tuple(result.findings),
        counters=dict(result.counters),
        timing=timing,
        diverged=diverged,
        stages=stages,
        config={"model": asdict(op.config), "deployment": asdict(op.deployment), "sizes": dict(op.sizes)},
    )


def first_failed(op: Op, judged: Mapping[str, Judgement]) -> str | None:
    """The failed stage or output that is computed first."""
    failed = [name for name, judgement in judged.items() if judgement.status == FAIL]
    order = {name: position for position, name in enumerate(op.stages)}
    return min(failed, key=lambda name: order.get(name, len(order)), default=None)
