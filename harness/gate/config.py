"""`goldengate.toml`: which kernels a repository has, and what the gate runs of them.

    [gate]
    presets = ["tiny"]                  # default
    deployments = ["decode"]            # default
    cases = "all"                       # default; or a list of names
    seeds = [0]                         # fixed seeds of the inputs
    rotating_seeds = 1                  # further ones that change every day
    schedules = [0]
    rotating_schedules = 2

    [ops]
    gate = "kernels/my_gate.py:gate"    # FILE or FILE:FUNCTION, relative to this file

Without an [ops] table the shipped kernels of all ops are judged.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UsageError, did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NAME = "goldengate.toml"


@dataclass(frozen=True)
class GateConfig:
    """What the gate runs. `root`: where relative paths start; `ops`: op -> (file, function), empty for the shipped."""

    root: Path
    presets: tuple[str, ...] = ("tiny",)
    deployments: tuple[str, ...] = ("decode",)
    cases: tuple[str, ...] = ("all",)
    seeds: tuple[int, ...] = (0,)
    rotating_seeds: int = 1
    schedules: tuple[int, ...] = (0,)
    rotating_schedules: int = 2
    ops: tuple[tuple[str, str, str | None], ...] = ()


_LISTS = {"presets": str, "deployments": str, "cases": str, "seeds": int, "schedules": int}
_COUNTS = ("rotating_seeds", "rotating_schedules")


def load_config(directory: Path) -> GateConfig:
    """The configuration of a repository: its goldengate.toml, or the defaults. Raises UsageError, naming the file."""
    path = directory / NAME
    if not path.exists():
        return GateConfig(directory)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: {error}") from error
    for table in document:
        if table not in ("gate", "ops"):
            raise UsageError(f"{path}: unknown table [{table}]{did_you_mean(table, ['gate', 'ops'])}")
    return GateConfig(directory, **_gate(path, document.get("gate", {})), ops=_ops(path, document.get("ops", {})))


def _gate(path: Path, table: Any) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise UsageError(f"{path}: gate is {table!r}, expected a table")
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name in _LISTS:
            values[name] = _list(path, name, value, _LISTS[name])
        elif name in _COUNTS:
            if type(value) is not int or not 0 <= value <= 100:
                raise UsageError(f"{path}: gate.{name} is {value!r}, expected a number from 0 to 100")
            values[name] = value
        else:
            known = [field.name for field in dataclasses.fields(GateConfig) if field.name not in ("root", "ops")]
            raise UsageError(f"{path}: unknown key gate.{name}{did_you_mean(name, known)}")
    return values


def _list(path: Path, name: str, value: Any, kind: type) -> tuple[Any, ...]:
    items = [value] if name == "cases" and value == "all" else value
    right = isinstance(items, list) and items and all(type(item) is kind for item in items)
    if not right or (kind is int and min(items) < 0):
        kinds = "names" if kind is str else "numbers >= 0"
        raise UsageError(f"{path}: gate.{name} is {value!r}, expected a list of {kinds}")
    return tuple(items)


def _ops(path: Path, table: Any) -> tuple[tuple[str, str, str | None], ...]:
    from specs.registry import all_ops

    if not isinstance(table, dict):
        raise UsageError(f"{path}: ops is {table!r}, expected a table")
    found = []
    for op, place in table.items():
        if op not in all_ops():
            raise UsageError(f"{path}: unknown op {op!r} in [ops]{did_you_mean(op, all_ops())}")
        if not isinstance(place, str) or not place:
            raise UsageError(f"{path}: ops.{op} is {place!r}, expected FILE or FILE:FUNCTION")
        file, _, function = place.partition(":")
        if not (path.parent / file).is_file():
            raise UsageError(f"{path}: ops.{op}: there is no file {file}")
        found.append((op, file, function or None))
    return tuple(found)
