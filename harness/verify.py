"""Run one op on a device and judge every output: `Session(device, tolerances).verify(run) -> Verdict`.

Nothing passes by default. An output without a tolerance is unverified, and so is one that was compared in no run;
an output that is missing, of another shape or dtype, or that was never written fails; so does a kernel that changes
its inputs. A session keeps the inputs and golden of the last case, so that many schedules cost one golden.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.compare import EMPTY, FAIL, PASS, Judgement, Output, judge_pool
from harness.devices.base import Device, DeviceRun, Finding, Kernel, KernelFault
from harness.errors import UsageError
from harness.run import Run
from harness.tolerances import Entry, Tolerances
from harness.versions import versions

if TYPE_CHECKING:
    from specs.registry import Op

UNVERIFIED = "unverified"
Values = dict[str, Any]


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


@dataclass
class Prepared:
    """An op's inputs and golden for one case and seed."""

    op: Op
    inputs: Values
    checksums: dict[str, int]
    golden: dict[str, Tensor]
    stages: dict[str, Tensor]
    valid: Mapping[str, Tensor | None]
    mapped: Mapping[str, Tensor | None]
    notes: tuple[str, ...]


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
        timing = replace(timing, device=result.seconds, judge=time.perf_counter() - start)
        if any("was changed" in problem for problem in problems):
            self._key = None  # what this session kept is no longer the case's
        return _verdict(run, prepared, judged, problems, result, timing)

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
    """Draw the inputs of a run and evaluate its golden. Raises SpecError, GoldenInputError."""
    from specs.registry import load_op

    op = load_op(run.op, run.preset, run.deployment, **dict(run.overrides))
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


def judge(op: Op, entries: Mapping[str, Entry], prepared: Prepared, result: DeviceRun) -> dict[str, Judgement]:
    """A judgement per output of the op, in signature order, and then per stage that has an entry and that the device
    handed back, in order of computation. An output without an entry is unverified."""
    outputs = [spec.name for spec in op.outputs]
    stages = [name for name in _stages(op, entries, outputs) if _handed_back(prepared, result, name)]
    judgements: dict[str, Judgement] = {}
    for name in _judging_order([*stages, *outputs], entries):
        entry = entries.get(name)
        if entry is None:
            judgements[name] = Judgement(UNVERIFIED, "no tolerance", None)
        elif name in outputs and name not in result.outputs:
            judgements[name] = Judgement(FAIL, entry.comparator.label, None, "the kernel returned no such output")
        else:
            golden, taps = _continued(op, entry, prepared, result, judgements)
            judgements[name] = _judge_one(entry, prepared, result, golden, taps)
    return {name: judgements[name] for name in (*outputs, *stages)}


def _judge_one(
    entry: Entry, prepared: Prepared, result: DeviceRun, golden: Mapping[str, Tensor], taps: Mapping[str, Tensor]
) -> Judgement:
    """One output or stage by its comparator; of a paged pool the mapped elements, while all others keep their bits."""
    name, valid = entry.output, prepared.valid.get(entry.output)
    expected = golden[name] if name in golden else taps[name]
    actual, undefined = _actual(prepared, result, name), result.undefined.get(name)
    if undefined is not None and name not in prepared.golden:
        undefined = laid_out_as(undefined, expected.shape)
    output = Output(actual, expected, valid, undefined, taps)
    mapped = prepared.mapped.get(name)
    if mapped is None:
        return entry.comparator.judge(output)
    return judge_pool(entry.comparator, output, prepared.inputs[name], mapped)


def _stages(op: Op, entries: Mapping[str, Entry], outputs: Iterable[str]) -> list[str]:
    names = set(entries) - set(outputs)
    return [name for name in op.stages if name in names]


def _handed_back(prepared: Prepared, result: DeviceRun, name: str) -> bool:
    """Whether the device told this stage. What has another dtype or does not fit is something else of its name."""
    stage, golden = result.intermediates.get(name), prepared.stages.get(name)
    if stage is None or golden is None or stage.dtype != golden.dtype:
        return False
    return laid_out_as(stage, golden.shape) is not None


def laid_out_as(stage: Tensor, shape: Sequence[int]) -> Tensor | None:
    """A device's intermediate in the golden's shape, None where it is something else: it may be laid out otherwise,
    and padded at the end of some axes (rows up to a tile)."""
    if stage.numel() == math.prod(shape):
        return stage.reshape(tuple(shape))
    if stage.dim() == len(shape) and all(have >= want for have, want in zip(stage.shape, shape, strict=True)):
        return stage[tuple(slice(want) for want in shape)]
    return None


def _actual(prepared: Prepared, result: DeviceRun, name: str) -> Tensor:
    """An output as it is, a stage in the golden's shape."""
    if name in result.outputs:
        return result.outputs[name]
    stage = laid_out_as(result.intermediates[name], prepared.stages[name].shape)
    assert stage is not None
    return stage


def _judging_order(names: Iterable[str], entries: Mapping[str, Entry]) -> list[str]:
    """The names as they come, but those that others are conditioned on come before them."""
    ordered: list[str] = []
    waiting = list(names)
    while waiting:
        ready = [n for n in waiting if n not in entries or not (set(entries[n].given) - {n}) & set(waiting)]
        ordered.append(ready[0] if ready else waiting[0])
        waiting.remove(ordered[-1])
    return ordered


def _continued(
    op: Op, entry: Entry, prepared: Prepared, result: DeviceRun, judged: Mapping[str, Judgement]
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """The golden and its stages that an entry is judged against.

    Where earlier outputs or stages of the device passed but differ (a legal last bit), everything downstream of them
    is judged against the golden continued from the device's own values, so that one legal flip does not fail what
    follows.
    """
    given = {}
    for name in entry.given:
        before = judged.get(name)
        if before is None or before.status != PASS or before.metrics is None:
            continue
        if before.metrics.bit_equal != before.metrics.compared:
            valid = prepared.valid.get(name)
            expected = prepared.golden[name] if name in prepared.golden else prepared.stages[name]
            actual = _actual(prepared, result, name)
            given[name] = actual if valid is None else torch.where(valid, actual, expected)
    if not given:
        return prepared.golden, prepared.stages
    stages: dict[str, Tensor] = {}
    return op.golden(prepared.inputs, stages, given=given), stages


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
        diverged=first_diverged(op, judged),
        stages=stages,
        config={"model": asdict(op.config), "deployment": asdict(op.deployment), "sizes": dict(op.sizes)},
    )


def first_diverged(op: Op, judged: Mapping[str, Judgement]) -> str | None:
    """The failed stage or output that is computed first."""
    failed = [name for name, judgement in judged.items() if judgement.status == FAIL]
    order = {name: position for position, name in enumerate(op.stages)}
    return min(failed, key=lambda name: order.get(name, len(order)), default=None)
