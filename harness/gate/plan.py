"""Which ops a change affects, and their runs in the order in which they tell most per second."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.errors import UsageError
from harness.gate.config import GateConfig
from harness.gate.fingerprint import kernel_fingerprint, op_fingerprint
from harness.gate.trees import Tree, WorkTree, git, revision_tree
from harness.run import Run
from harness.selection import Selection, expand

RANKS = 2
"""The fewest that a host program takes."""

PARTS = 3
"""What is not run of all cases is run of one part of them, another each day."""

_UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Affected:
    """An op that the gate judges. `spliced`: only kernels of other ops, which its own splices in, differ."""

    op: str
    spliced: bool = False


@dataclass(frozen=True)
class Plan:
    """`runs` in order. `unaffected`: ops that are not judged; `left_out`: configurations that an op cannot do."""

    runs: tuple[Run, ...]
    affected: tuple[Affected, ...]
    unaffected: tuple[str, ...]
    left_out: tuple[str, ...]


def seconds(text: str) -> float:
    """`10m`, `90s`, `1.5h` or `600` in seconds. Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    value = float(match[1]) * _UNITS[match[2] or "s"] if match else 0.0
    if not 0 < value <= 7 * 24 * 3600:
        raise UsageError(f"{text!r} is no time above 0, like 90s, 10m or 1h")
    return value


def plan(
    config: GateConfig, ops: Sequence[str], base: str | None, today: datetime.date, device: str = "emulator"
) -> Plan:
    """The runs of the ops named (default: all of the configuration) that differ from revision `base` (None: all).

    Order: the default case of every op; all cases of the ops that changed; the day's part of the cases of those that a
    change reaches only through a kernel that they splice in; the day's part of the cases of the ops that changed with
    rotating seeds, each under a rotating schedule, and their default case under the other rotating schedules. The first
    run of a shipped host program is on the ranks of its deployment, all others are on RANKS: a case says the same of
    each rank, and eight ranks cost what four runs of two do. Raises UsageError for an unknown name.
    """
    from specs.registry import all_ops

    kernels = {op: (file, function) for op, file, function in config.ops}
    names = list(ops) or list(kernels) or all_ops()
    for name in names:
        if kernels and name not in kernels:
            raise UsageError(f"{name} is not in the [ops] of {config.root / 'goldengate.toml'}")
    affected = _affected(config, names, base)
    left_out: list[str] = []
    found = [_runs(wave, config, kernels, left_out, device) for wave in _waves(affected, config, today)]
    runs = tuple(dict.fromkeys(run for wave in found for run in wave))
    chosen = {a.op for a in affected}
    unaffected = tuple(name for name in names if name not in chosen)
    return Plan(runs, tuple(affected), unaffected, tuple(dict.fromkeys(left_out)))


def _waves(affected: Sequence[Affected], config: GateConfig, today: datetime.date) -> Iterator[Selection]:
    """Selections of one op each, in the order of `plan`."""
    fixed, turning = _seeds(config, today)
    one = fixed.seeds[:1], fixed.schedules[:1]
    changed = [a.op for a in affected if not a.spliced]
    splicing = [a.op for a in affected if a.spliced]
    number = today.toordinal() % PARTS

    def wave(
        ops: Sequence[str], cases: Sequence[str] | None, seeds: Sequence[int], schedules: Sequence[int]
    ) -> Iterator[Selection]:
        """`cases` None: the day's part."""
        for op in ops if seeds and schedules else ():
            chosen = _part(op, config, number) if cases is None else cases
            if chosen:
                yield Selection((op,), config.presets, config.deployments, chosen, seeds, schedules)

    yield from wave([*changed, *splicing], ("default",), *one)
    yield from wave(changed, config.cases, fixed.seeds, fixed.schedules)
    yield from wave(splicing, None, *one)
    for seed, schedule in _pairs(fixed, turning):
        yield from wave(changed, None, (seed,), (schedule,))
    yield from wave(changed, ("default",), fixed.seeds[:1], turning.schedules)


def _runs(
    selection: Selection,
    config: GateConfig,
    kernels: dict[str, tuple[str, str | None]],
    left_out: list[str],
    device: str,
) -> list[Run]:
    """The runs of one op; a preset or deployment that it cannot do is left out, unless none is left."""
    from specs.errors import SpecError

    op = selection.ops[0]
    file, function = kernels.get(op, (None, None))
    path = None if file is None else str(Path(config.root) / file)
    runs: list[Run] = []
    for preset in selection.presets:
        for deployment in selection.deployments:
            one = Selection((op,), (preset,), (deployment,), selection.cases, selection.seeds, selection.schedules)
            try:
                found = expand(one, kernel=path, function=function, device=device)
            except SpecError as error:
                left_out.append(f"{op} {preset}/{deployment}: {error}")
                continue
            runs += found if path is not None else [_on_few_ranks(run, config) for run in found]
    return runs


def _on_few_ranks(run: Run, config: GateConfig) -> Run:
    """The run on RANKS where it has more, unless it is the first of its op."""
    from specs.registry import load_op

    first = run.case == "default" and (run.seed, run.schedule) == (config.seeds[0], config.schedules[0])
    if first or load_op(run.op, run.preset, run.deployment).world <= RANKS:
        return run
    return replace(run, overrides=(("ep_world_size", RANKS),))


def _part(op: str, config: GateConfig, number: int) -> tuple[str, ...]:
    """One of PARTS parts of the cases that the configuration names and the op has."""
    from specs.registry import load_op

    valid = [case.name for case in load_op(op).cases if not case.invalid]
    return tuple(name for name in valid if "all" in config.cases or name in config.cases)[number::PARTS]


@dataclass(frozen=True)
class _Numbers:
    seeds: tuple[int, ...]
    schedules: tuple[int, ...]


def _seeds(config: GateConfig, today: datetime.date) -> tuple[_Numbers, _Numbers]:
    """The fixed numbers, and those of the day: no two days of a century share one."""
    day = today.toordinal()
    turning = _Numbers(
        tuple(1000 + 100 * day + i for i in range(config.rotating_seeds)),
        tuple(1000 + 100 * day + i for i in range(config.rotating_schedules)),
    )
    return _Numbers(config.seeds, config.schedules), turning


def _pairs(fixed: _Numbers, turning: _Numbers) -> list[tuple[int, int]]:
    """Every rotating seed with one schedule: the rotating ones in turn, a fixed one where there are none."""
    schedules = turning.schedules or fixed.schedules
    return [(seed, schedules[i % len(schedules)]) for i, seed in enumerate(turning.seeds)]


def _affected(config: GateConfig, names: Sequence[str], base: str | None) -> list[Affected]:
    if base is None:
        return [Affected(name) for name in names]
    root = config.root
    top = Path(git(root, "rev-parse", "--show-toplevel").decode().strip())
    before, now = revision_tree(root, base), WorkTree(root)
    if not config.ops:
        _require_checkout(now, top)
    kernels = {op: file for op, file, _ in config.ops}
    found = []
    for name in names:
        if _differs(before, now, name, kernels, whole=True):
            found.append(Affected(name, spliced=not _differs(before, now, name, kernels, whole=False)))
    return found


def _differs(before: Tree, now: Tree, op: str, kernels: dict[str, str], *, whole: bool) -> bool:
    """Whether what a verdict on an op depends on differs between two trees; not `whole`: kernels of other ops aside."""
    from specs.registry import all_ops

    if op in kernels:
        return kernel_fingerprint(before, kernels[op]) != kernel_fingerprint(now, kernels[op])
    others = () if whole else [f"kernels/{name}.py" for name in all_ops()]
    return op_fingerprint(before, op, others) != op_fingerprint(now, op, others)


def _require_checkout(tree: Tree, top: Path) -> None:
    if tree.read("goldens/__init__.py") is None and tree.read("goldens/errors.py") is None:
        raise UsageError(f"{top} is no checkout of goldengate and has no goldengate.toml with an [ops] table")
