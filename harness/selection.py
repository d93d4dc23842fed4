"""Which runs a command line asks for: names checked with suggestions, ranges expanded, in a fixed order."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError, did_you_mean
from harness.run import Run

ALL = "all"
_LARGEST = 2**63 - 1
_MOST = 100_000


@dataclass(frozen=True)
class Selection:
    """What was asked for. Empty `ops` are all; empty `cases` are all valid ones at tiny, the default one elsewhere.

    `overrides`: (name, value) pairs for `load_op`.
    """

    ops: Sequence[str] = ()
    presets: Sequence[str] = ("tiny",)
    deployments: Sequence[str] = ("decode",)
    cases: Sequence[str] = ()
    seeds: Sequence[int] = (0,)
    schedules: Sequence[int] = (0,)
    overrides: Sequence[tuple[str, int | float]] = ()


def numbers(text: str) -> list[int]:
    """`3`, `1,2`, `0..4` and mixtures of them, as sorted distinct integers. Raises UsageError."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\.\.(\d+))?\s*", part)
        if match is None:
            raise UsageError(f"{text!r} is no list of numbers >= 0, like 3 or 1,2 or 0..49")
        low, high = int(match[1]), int(match[2] or match[1])
        if low > high:
            raise UsageError(f"{part.strip()!r} is an empty range")
        if high > _LARGEST:
            raise UsageError(f"{high} is too large, the largest seed is {_LARGEST}")
        if high - low >= _MOST or len(found) >= _MOST:
            raise UsageError(f"{text!r} is more than {_MOST} numbers")
        found.update(range(low, high + 1))
    return sorted(found)


def override(text: str) -> tuple[str, int | float]:
    """`tokens=16` or `rms_norm_eps=1e-5` as a pair of name and number. Raises UsageError."""
    name, _, value = text.partition("=")
    for kind in (int, float):
        try:
            return name.strip(), kind(value)
        except ValueError:
            continue
    raise UsageError(f"{text!r} is no override, like tokens=16 or rms_norm_eps=1e-5")


def kernel_file(text: str) -> tuple[str, str | None]:
    """File and function of `FILE[:FUNCTION]`. Raises UsageError when there is no such file."""
    path, _, function = text.rpartition(":")
    if not path or not function.isidentifier() or Path(text).is_file():
        path, function = text, ""
    if not Path(path).exists():
        raise UsageError(f"kernel file {path} does not exist")
    if not Path(path).is_file():
        raise UsageError(f"kernel file {path} is not a file")
    return path, function or None


def expand(selection: Selection, left_out: list[str] | None = None, **common: str | None) -> list[Run]:
    """The runs of a selection: op, preset, deployment, case, seed, schedule, the last fastest.

    `common`: further fields of every Run. Raises UsageError for an unknown name, SpecError for sizes that an op
    cannot do; where no op was named and `left_out` is given, such ops are left out and the reasons appended to it.
    """
    from specs.errors import SpecError
    from specs.model import DEPLOYMENTS, PRESETS
    from specs.registry import all_ops, load_op

    ops = list(selection.ops) or all_ops()
    for kind, names, known in (
        ("op", ops, all_ops()),
        ("preset", selection.presets, list(PRESETS)),
        ("deployment", selection.deployments, list(DEPLOYMENTS)),
    ):
        _check(kind, names, known)
    loaded = {}
    for name, preset, deployment in itertools.product(
        *map(dict.fromkeys, (ops, selection.presets, selection.deployments))
    ):
        try:
            loaded[name, preset, deployment] = load_op(name, preset, deployment, **dict(selection.overrides))
        except SpecError as error:
            if selection.ops or left_out is None:
                raise
            left_out.append(f"{name} {preset}/{deployment}: {error}")
    named = [case for case in selection.cases if case != ALL]
    _check("case", named, sorted({case.name for op in loaded.values() for case in op.cases}))
    runs = []
    for (name, preset, deployment), op in loaded.items():
        valid = [case.name for case in op.cases if not case.invalid]
        if ALL in selection.cases or (not named and preset == "tiny"):
            cases = [*valid, *(c for c in named if c not in valid and c in [x.name for x in op.cases])]
        elif named:
            cases = [case.name for case in op.cases if case.name in named]
        else:
            cases = valid[:1]
        runs += [
            Run(name, preset, deployment, case, seed, schedule, overrides=tuple(selection.overrides), **common)  # type: ignore[arg-type]
            for case in cases
            for seed in selection.seeds
            for schedule in selection.schedules
        ]
    return runs


def _check(kind: str, names: Iterable[str], known: list[str]) -> None:
    for name in names:
        if name not in known:
            raise UsageError(f"unknown {kind} {name!r}{did_you_mean(name, known)}")
