"""Two kernels of one op against each other: what a retiling, a refactoring or another schedule must not change.

No golden and no tolerance is involved. Both kernels get the same inputs under the same schedule; every element that
the contract defines must have been written by both and have the same bits, or lie within a stated number of units in
the last place (moe_and_layers.md 15.2). An element that neither kernel writes is no agreement, it fails.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from tabulate import tabulate
from torch import Tensor

from harness.compare import EMPTY, FAIL, PASS, Comparator, Exact, Judgement, Output, Ulp
from harness.devices.base import Device, DeviceRun, Kernel, KernelFault
from harness.errors import UsageError, did_you_mean
from harness.judging import UNVERIFIED, Values
from harness.locate import describe
from harness.report import point_text
from harness.run import Run
from harness.verify import checksums, load_kernel

if TYPE_CHECKING:
    from specs.registry import Op

NAMES = ("A", "B")


@dataclass(frozen=True)
class Side:
    """One of the two kernels. `kernel`: None for the shipped file; `function`: None for the op's name; `tiles`: None
    for the shipped tile set."""

    kernel: str | None = None
    function: str | None = None
    tiles: str | None = None

    @property
    def label(self) -> str:
        """`kernels/gate.py, tiles pr672` in short."""
        return f"{self.kernel or 'shipped'}{f', tiles {self.tiles}' if self.tiles else ''}"

    def run(self, run: Run) -> Run:
        """The same run with this kernel."""
        return replace(run, kernel=self.kernel, function=self.function, tiles=self.tiles)


@dataclass(frozen=True)
class Comparison:
    """What one pair of runs came to. `problems`: what failed besides outputs. `outputs`: one judgement per output; its
    `actual` is side B, its `expected` side A."""

    run: Run
    sides: tuple[Side, Side]
    ulp: Mapping[str, int]
    outputs: Mapping[str, Judgement]
    problems: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        """pass, fail, or empty where the contract defines no element of any output."""
        statuses = {judgement.status for judgement in self.outputs.values()}
        if self.problems or FAIL in statuses:
            return FAIL
        return PASS if PASS in statuses else EMPTY

    @property
    def command(self) -> str:
        """The command that repeats this comparison."""
        words = ["goldengate", "equiv", self.run.op, *_side_words(self.sides), *self.run.situation_words]
        words += ["--schedule", str(self.run.schedule)]
        if self.run.device != "emulator":
            words += ["--device", self.run.device]
        for output, steps in self.ulp.items():
            words += ["--ulp", f"{output}={steps}"]
        return shlex.join(words)


def sides_of(
    kernels: Sequence[str], tiles: Sequence[str], kernel_file: Callable[[str], tuple[str, str | None]]
) -> tuple[Side, Side]:
    """The two sides that a command line names: two tile sets of one kernel, two kernels, or one and the shipped one.

    `kernel_file` splits `FILE[:FUNCTION]` and checks that there is one. Raises UsageError for anything else.
    """
    if len(kernels) > 2 or len(tiles) > 2 or (not kernels and len(tiles) < 2):
        raise UsageError(
            f"equiv compares two kernels, got {len(kernels)} --kernel and {len(tiles)} --tiles; give --tiles A "
            "--tiles B, --kernel A --kernel B, or one --kernel to compare it with the shipped one"
        )
    files: list[tuple[str | None, str | None]] = [kernel_file(text) for text in kernels]
    if len(files) == 1:
        files = [*files, *files] if len(tiles) == 2 else [(None, None), *files]
    files = files or [(None, None), (None, None)]
    sets: list[str | None] = [*tiles] if len(tiles) == 2 else [*tiles, *tiles] or [None, None]
    first, second = (Side(path, function, chosen) for (path, function), chosen in zip(files, sets, strict=True))
    if first == second:
        raise UsageError(f"both sides are the same kernel: {first.label}")
    return first, second


def _side_words(sides: tuple[Side, Side]) -> Iterator[str]:
    same_kernel = sides[0].kernel == sides[1].kernel and sides[0].function == sides[1].function
    for side in sides[:1] if same_kernel else sides:
        if side.kernel is not None:
            yield from ("--kernel", side.kernel if side.function is None else f"{side.kernel}:{side.function}")
    for side in sides[:1] if sides[0].tiles == sides[1].tiles else sides:
        if side.tiles is not None:
            yield from ("--tiles", side.tiles)


def bounds(op: Op, texts: Sequence[str]) -> dict[str, int]:
    """`OUTPUT=N` words as steps by output name. Raises UsageError for a name that is no output or no number."""
    known = [spec.name for spec in op.outputs]
    found: dict[str, int] = {}
    for text in texts:
        name, _, steps = text.partition("=")
        if not steps.isdecimal():
            raise UsageError(f"{text!r} is no bound, like {known[0]}=1")
        if name not in known:
            raise UsageError(f"unknown output of {op.name} {name!r}{did_you_mean(name, known)}")
        found[name] = int(steps)
    return found


def comparator(steps: int) -> Comparator:
    """Bit equality (NaN equals NaN), or at most `steps` units of the last place; any number of elements may differ."""
    if steps == 0:
        return Exact(nonfinite="same")
    return Ulp(max_ulp=steps, atol_rms=0.0, differing_fraction=1.0, differing_points=0, nonfinite="same")


def compare_all(
    device: Device, runs: Sequence[Run], sides: tuple[Side, Side], ulp: Sequence[str]
) -> Iterator[Comparison]:
    """Both kernels on every run, in order; each kernel is loaded once per configuration.

    `ulp`: `OUTPUT=N` words. Raises UsageError, SpecError for inputs that cannot be drawn, and KernelRefused.
    """
    from specs.registry import load_op

    for _, same in groupby(runs, key=lambda run: (run.op, run.preset, run.deployment, run.overrides)):
        group = list(same)
        run = group[0]
        op = load_op(run.op, run.preset, run.deployment, **dict(run.overrides))
        steps = bounds(op, ulp)
        kernels = tuple(load_kernel(device, side.run(run), op) for side in sides)
        for run in group:
            if op.case(run.case).invalid:
                raise UsageError(f"case {run.case} of {op.name} is out of contract: no two kernels need agree on it")
            yield compare(device, op, run, sides, kernels, steps)


def compare(
    device: Device,
    op: Op,
    run: Run,
    sides: tuple[Side, Side],
    kernels: Sequence[Kernel],
    ulp: Mapping[str, int],
) -> Comparison:
    """Run the two loaded kernels on the inputs of `run` and compare every output. Raises SpecError."""
    inputs = op.inputs(run.case, run.seed)
    before = checksums(inputs)
    results: list[DeviceRun] = []
    problems: list[str] = []
    for name, side, kernel in zip(NAMES, sides, kernels, strict=True):
        try:
            results.append(device.run(kernel, op, _copies(op, inputs), run.schedule))
        except KernelFault as fault:
            problems.append(f"{name} ({side.label}): kernel fault: {fault}")
        changed = [tensor for tensor, crc in checksums(inputs).items() if crc != before[tensor]]
        if changed:
            problems.append(f"{name} ({side.label}) changed input {', '.join(changed)}")
            break
    outputs: dict[str, Judgement] = {}
    if not problems:
        valid = op.valid(inputs)
        for spec in op.outputs:
            outputs[spec.name] = _judge(spec.name, comparator(ulp.get(spec.name, 0)), results, valid[spec.name])
    return Comparison(run, sides, dict(ulp), outputs, tuple(problems))


def _copies(op: Op, inputs: Values) -> Values:
    written = {spec.name for spec in op.outputs}
    return {n: v.clone() if n in written and isinstance(v, Tensor) else v for n, v in inputs.items()}


def _judge(name: str, rule: Comparator, results: Sequence[DeviceRun], valid: Tensor | None) -> Judgement:
    missing = [side for side, result in zip(NAMES, results, strict=True) if name not in result.outputs]
    if missing:
        return Judgement(FAIL, rule.label, None, f"{' and '.join(missing)} returned no such output")
    first, second = (result.outputs[name] for result in results)
    unwritten = [result.undefined.get(name) for result in results]
    both = [mask for mask in unwritten if mask is not None]
    undefined = None if not both else torch.stack(both).any(dim=0)
    judgement = rule.judge(Output(actual=second, expected=first, valid=valid, undefined=undefined))
    if judgement.metrics is None or not judgement.metrics.undefined:
        return judgement
    sides = [
        side
        for side, mask in zip(NAMES, unwritten, strict=True)
        if mask is not None and bool((mask if valid is None else mask & valid).any())
    ]
    return replace(judgement, reason=f"{judgement.reason} by {' and '.join(sides)}")


def table(comparisons: Sequence[Comparison]) -> str:
    """One row per output: the worst over all comparisons."""
    rows = []
    for name, status in output_statuses(comparisons).items():
        judged = [c.outputs[name] for c in comparisons if name in c.outputs]
        metrics = [j.metrics for j in judged if j.metrics is not None]
        failed = sum(c.outputs[name].status == FAIL if name in c.outputs else True for c in comparisons)
        rows.append(
            (
                name,
                f"{status} ({failed} of {len(comparisons)})" if failed and len(comparisons) > 1 else status,
                sum(m.compared for m in metrics),
                sum(m.differing for m in metrics),
                max((m.ulp_max for m in metrics), default=0),
                judged[0].label if judged else "-",
            )
        )
    headers = ("output", "verdict", "compared", "differing", "worst ULP", "rule")
    return tabulate(rows, headers=headers, colalign=("left", "left", "right", "right", "right", "left"))


def output_statuses(comparisons: Sequence[Comparison]) -> dict[str, str]:
    """Per output: fail if any comparison failed, else pass if any compared an element, else unverified."""
    names = dict.fromkeys(name for comparison in comparisons for name in comparison.outputs)
    if any(comparison.problems for comparison in comparisons):
        names.setdefault("-")
    statuses = {}
    for name in names:
        found = {FAIL if c.problems else c.outputs[name].status for c in comparisons if c.problems or name in c.outputs}
        statuses[name] = FAIL if FAIL in found else PASS if PASS in found else UNVERIFIED
    return statuses


def failure_text(comparison: Comparison) -> str:
    """What differs, where (index, both values with their bits), and how to repeat it; "" when nothing does."""
    run, sides = comparison.run, comparison.sides
    head = f"{run.op} {run.preset}/{run.deployment} {run.case} seed {run.seed} schedule {run.schedule}"
    lines = [f"FAIL {head}: {problem}" for problem in comparison.problems]
    for name, judgement in comparison.outputs.items():
        if judgement.status == FAIL:
            lines.append(f"FAIL {head}: {name}: {judgement.reason} [{judgement.label}]")
            if judgement.worst is not None:
                point = point_text(judgement.worst, ("B", "A"))
                lines.append(f"  worst {point}; differing elements: {describe(judgement.where)}")
    if lines:
        lines.append(f"  A: {sides[0].label}; B: {sides[1].label}")
        lines.append(f"  repeat: {comparison.command}")
    return "\n".join(lines)
