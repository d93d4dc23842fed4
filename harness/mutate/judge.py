"""What becomes of one mutant: killed, refused, equivalent, survived, or an error of the harness."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness.compare import FAIL
from harness.devices.base import Device, DeviceRun, Kernel, KernelRefused
from harness.errors import UsageError
from harness.judging import Prepared
from harness.mutate import rivals
from harness.run import Run
from harness.tolerances import Tolerances
from harness.verify import Session, Verdict, prepare

if TYPE_CHECKING:
    from specs.registry import Op

KILLED, REFUSED, EQUIVALENT, SURVIVED, ERROR = "killed", "refused", "equivalent", "survived", "error"
OURS = "goldengate"
_LONGEST_REASON = 300


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant. `how`: verdict, fault, finding, input, limit or crash where it was killed, error where
    the harness broke; `where`: the run that decided; `reason`: the words of that run; `default`: per gate, ours among
    them, whether it rejects the outputs of the default case, None where it has no rule."""

    status: str
    how: str = ""
    where: str = ""
    reason: str = ""
    seconds: float = 0.0
    default: Mapping[str, bool | None] = field(default_factory=dict)


def not_judged(error: Exception, seconds: float) -> Outcome:
    """The outcome of a mutant at which the harness itself broke: a bug of ours, and no kill."""
    return Outcome(ERROR, "error", "", _short(f"{type(error).__name__}: {error}"), seconds)


def lost(how: str, reason: str, seconds: float) -> Outcome:
    """The outcome of a mutant that ended its process or outlived its time: everybody notices that."""
    return Outcome(KILLED, how, "", reason, seconds, dict.fromkeys((OURS, *rivals.GATES), True))


@dataclass(frozen=True)
class Slot:
    """A kernel to a session: what was asked for. `Bench` has the kernel that is in it at the moment."""

    path: Path
    function: str
    sizes: Mapping[str, int | float]
    tiles: str | None


class Bench:
    """A device with one kernel file on it at a time, instead of the shipped one, that keeps what its last run left.

    Sessions keep the inputs and golden of a case and load a kernel once; through a bench, they judge many mutants.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.last = DeviceRun({})
        self._path: Path | None = None
        self._kernels: dict[tuple[str | None, tuple[tuple[str, int | float], ...]], Kernel] = {}

    @property
    def name(self) -> str:
        return self.device.name

    @contextmanager
    def holding(self, path: Path | None) -> Iterator[None]:
        """Meanwhile this file is run, the shipped one for None."""
        before = self._path, self._kernels
        self._path, self._kernels = path, {}
        try:
            yield
        finally:
            self._path, self._kernels = before

    def load(self, path: Path, function: str, sizes: Mapping[str, int | float], tiles: str | None) -> Slot:
        return Slot(path, function, dict(sizes), tiles)

    def run(self, kernel: Any, op: Op, inputs: dict[str, Any], schedule: int) -> DeviceRun:
        """Raises KernelRefused and KernelFault."""
        key = kernel.tiles, tuple(sorted(kernel.sizes.items()))
        self.last = DeviceRun({})
        if key not in self._kernels:
            path = self._path or kernel.path
            self._kernels[key] = self.device.load(path, kernel.function, kernel.sizes, kernel.tiles)
        self.last = self.device.run(self._kernels[key], op, inputs, schedule)
        return self.last


@dataclass
class _Stand:
    """A situation with what the shipped kernel leaves there."""

    run: Run
    session: Session
    prepared: Prepared
    original: DeviceRun


class Judge:
    """Judges mutants of one op, in runs of which the first is the default case. Inputs and goldens are made once."""

    def __init__(self, runs: Sequence[Run], device: Device, tolerances: Tolerances) -> None:
        self.runs = runs
        self.tolerances = tolerances
        self.bench = Bench(device)
        self._stands: dict[Run, _Stand] = {}

    def judge(self, path: Path, alive: Callable[[], None] = lambda: None) -> Outcome:
        """The outcome of the kernel file `path`; `alive` is called after every run, and once inputs and goldens of one
        are made. Raises UsageError where the shipped kernel fails itself."""
        with self.bench.holding(path):
            return self._judge(time.perf_counter(), alive)

    def _judge(self, start: float, alive: Callable[[], None]) -> Outcome:
        default: dict[str, bool | None] = {}
        same = True
        for run in self.runs:
            stand = self._stand(run)
            alive()
            try:
                verdict = stand.session.verify(run)
            except KernelRefused as refused:
                return Outcome(REFUSED, "", run.id, _short(str(refused)), time.perf_counter() - start)
            if run is self.runs[0]:
                default = self._default(stand, verdict)
            if verdict.status == FAIL:
                how, reason = _cause(verdict)
                return Outcome(KILLED, how, run.id, reason, time.perf_counter() - start, default)
            same = same and _same(stand, self.bench.last)
        return Outcome(EQUIVALENT if same else SURVIVED, "", "", "", time.perf_counter() - start, default)

    def _stand(self, run: Run) -> _Stand:
        if run not in self._stands:
            session = Session(self.bench, self.tolerances)
            with self.bench.holding(None):
                verdict = session.verify(run)
            self._stands[run] = _Stand(run, session, prepare(run)[0], self.bench.last)
            if verdict.status == FAIL:
                raise UsageError(f"the shipped kernel fails here, so no mutant can be judged: {run.command}")
        return self._stands[run]

    def _default(self, stand: _Stand, verdict: Verdict) -> dict[str, bool | None]:
        if not self.bench.last.outputs:  # a fault: the run is an error to everybody
            return dict.fromkeys((OURS, *rivals.GATES), True)
        rules = {name: entry.provenance["reference"] for name, entry in self.tolerances[stand.run.op].items()}
        result = self.bench.last
        theirs = rivals.rejected(result.outputs, stand.prepared.golden, stand.prepared.valid, result.undefined, rules)
        return {OURS: verdict.status == FAIL, **theirs}


def _cause(verdict: Verdict) -> tuple[str, str]:
    """What kind of failure it was, and its words."""
    if verdict.problems:
        first = verdict.problems[0]
        how = "fault" if first.startswith("kernel fault") else "input" if "was changed" in first else "finding"
        return how, _short(first)
    judged = {**verdict.outputs, **verdict.stages}
    name = next(n for n, judgement in judged.items() if judgement.status == FAIL)
    return "verdict", _short(f"{name}: {judged[name].reason}")


def _same(stand: _Stand, result: DeviceRun) -> bool:
    """Whether all that the contract defines has the bits that the shipped kernel gives it."""
    for name, tensor in stand.original.outputs.items():
        other = result.outputs[name]
        unlike = _bits(tensor) != _bits(other)
        valid = stand.prepared.valid.get(name)
        if bool((unlike if valid is None else unlike & valid).any()):
            return False
    return True


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    sizes = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(sizes[tensor.element_size()])


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"
