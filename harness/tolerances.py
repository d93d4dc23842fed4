"""The strict reader of `tolerances.yaml`: one entry per op and output, each with its provenance. An entry may also name
a stage of the golden: it is judged where the device hands the intermediate of that name back.

Nothing is optional that would loosen a check, and nothing unknown is ignored: an unknown op, output or key, a missing
output, a NaN, a negative number or a wrong type is a UsageError that names file and line.

    gate:
      x_norm:
        compare: ulp
        max_ulp: 1
        ...                       # the parameters of the comparator, all of them
        given: [x_norm]           # optional: judged against the golden continued from these outputs or stages
        alone: {compare: …}       # optional, with given: the rule where the device hands back not all of those
        provenance:
          contract: hc_gate_experts.md 3.5
          honest: at most 0.01 % not bit-equal, each within one ULP
          reference: ratio_allclose(atol 1e-3, rtol 1/128, ratio 0.005)
          date: 2026-11-21
"""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from harness.compare import COMPARATORS, Comparator
from harness.errors import UsageError, did_you_mean

DEFAULT_PATH = Path(__file__).resolve().parent.parent / "tolerances.yaml"
PROVENANCE = ("contract", "honest", "reference", "date")
DERIVED = ("calibrated", "looser")
"""Provenance that `goldengate calibrate` adds: the ensemble, and why a tolerance was made looser."""
_SEQUENCE_KEYS = ("given",)


@dataclass(frozen=True)
class OpNames:
    """The names of one op that its entries may use."""

    outputs: tuple[str, ...]
    stages: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """How one output or stage is judged. `given`: outputs and stages of the device that the golden goes on from;
    `alone`: the rule where it hands back not all of them, against the golden from the inputs on."""

    output: str
    comparator: Comparator
    given: tuple[str, ...]
    provenance: Mapping[str, str]
    line: int
    alone: Comparator | None = None


Tolerances = Mapping[str, Mapping[str, Entry]]
"""Op name -> output or stage name -> entry. An op without entries is unverified."""


def load_tolerances(path: Path = DEFAULT_PATH, known: Mapping[str, OpNames] | None = None) -> Tolerances:
    """Read and check a tolerances file; an unchanged one is read once per process.

    `known`: the ops that may occur and their names, by default those of `specs`. Raises UsageError.
    """
    if known is not None:
        return _load(path, known)
    try:
        state = path.stat()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    return _load_once(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=4)
def _load_once(path: Path, _changed: int, _size: int) -> Tolerances:
    return MappingProxyType(dict(_load(path, _KnownOps())))


def _load(path: Path, known: Mapping[str, OpNames]) -> Tolerances:
    document = _parse(path)
    return {
        str(op): _op_entries(path, str(op), body, line, known)
        for op, body, line in _items(path, document, "the file", 1)
    }


class _KnownOps(Mapping[str, OpNames]):
    """The ops of `specs`, each loaded when the file names it."""

    def __iter__(self) -> Iterator[str]:
        from specs.registry import all_ops

        return iter(all_ops())

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in list(iter(self))

    def __getitem__(self, name: str) -> OpNames:
        from specs.registry import load_op

        op = load_op(name)
        return OpNames(tuple(output.name for output in op.outputs), tuple(op.stages))


def _parse(path: Path) -> Any:
    try:
        return YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not a UTF-8 text file") from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        problem = (error.problem or error.context or "not YAML").splitlines()[0]
        raise UsageError(f"{path}:{line}: malformed YAML: {problem}") from error
    except YAMLError as error:
        raise UsageError(f"{path}: malformed YAML: {str(error).splitlines()[0]}") from error


def _items(path: Path, node: Any, what: str, line: int) -> list[tuple[Any, Any, int]]:
    """Keys, values and line numbers of a mapping."""
    if not isinstance(node, CommentedMap) or not node:
        raise UsageError(f"{path}:{line}: {what} must be a mapping, got {_shown(node)}")
    return [(key, value, node.lc.key(key)[0] + 1) for key, value in node.items()]


def _op_entries(path: Path, op: str, body: Any, line: int, known: Mapping[str, OpNames]) -> Mapping[str, Entry]:
    if op not in known:
        raise UsageError(f"{path}:{line}: unknown op {op!r}{did_you_mean(op, list(known))}")
    names = known[op]
    entries: dict[str, Entry] = {}
    for output, fields, at in _items(path, body, f"op {op}", line):
        if output not in names.outputs and output not in names.stages:
            near = did_you_mean(str(output), [*names.outputs, *names.stages])
            raise UsageError(f"{path}:{at}: {op} has no output or stage {output!r}{near}")
        entries[output] = _entry(path, f"{op}.{output}", output, fields, at, names)
    missing = [name for name in names.outputs if name not in entries]
    if missing:
        raise UsageError(f"{path}:{line}: op {op} has no tolerance for {', '.join(missing)}")
    return entries


def _entry(path: Path, where: str, output: str, body: Any, line: int, names: OpNames) -> Entry:
    fields = {str(key): (value, at) for key, value, at in _items(path, body, where, line)}
    provenance = _provenance(path, where, fields.pop("provenance", (None, line)))
    given = _given(path, where, fields.pop("given", ([], line)), names)
    alone, at = fields.pop("alone", (None, line))
    if alone is not None and not given:
        raise UsageError(f"{path}:{at}: {where}.alone stands with given only")
    other = None
    if alone is not None:
        other = _rule(path, f"{where}.alone", {str(k): (v, n) for k, v, n in _items(path, alone, where, at)}, at, names)
    return Entry(output, _rule(path, where, fields, line, names), given, provenance, line, other)


def _rule(path: Path, where: str, fields: dict[str, tuple[Any, int]], line: int, names: OpNames) -> Comparator:
    kind, at = fields.pop("compare", (None, line))
    if kind is None:
        raise UsageError(f"{path}:{line}: {where} has no comparator: add `compare: {'|'.join(COMPARATORS)}`")
    if kind not in COMPARATORS:
        raise UsageError(f"{path}:{at}: unknown comparator {kind!r}{did_you_mean(str(kind), list(COMPARATORS))}")
    comparator = _comparator(path, where, COMPARATORS[kind], fields, line)
    for stage in comparator.stages:
        if stage not in names.stages:
            raise UsageError(f"{path}:{line}: {where} needs stage {stage!r}{did_you_mean(stage, list(names.stages))}")
    return comparator


def _comparator(
    path: Path, where: str, kind: type[Comparator], fields: Mapping[str, tuple[Any, int]], line: int
) -> Comparator:
    declared = {field.name: field for field in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for name, (value, at) in fields.items():
        if name not in declared:
            known = [*declared, "given", "alone", "provenance"]
            raise UsageError(f"{path}:{at}: {where}: unknown key {name!r}{did_you_mean(name, known)}")
        values[name] = _typed(path, f"{where}.{name}", value, str(declared[name].type), at)
    required = [name for name, field in declared.items() if field.default is dataclasses.MISSING]
    missing = [name for name in required if name not in values]
    if missing:
        raise UsageError(f"{path}:{line}: {where}: {kind.kind} needs {', '.join(missing)}")
    try:
        return kind(**values)
    except ValueError as error:
        raise UsageError(f"{path}:{line}: {where}: {error}") from error


def _typed(path: Path, where: str, value: Any, annotation: str, line: int) -> Any:
    """`value` as the plain Python type that the comparator's field declares."""
    expected = annotation.removesuffix(" | None")
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if expected == "str":
        fits = isinstance(value, str)
    elif expected == "int":
        fits = number and isinstance(value, int)
    else:
        fits = number
    if not fits:
        raise UsageError(f"{path}:{line}: {where} is {_shown(value)}, expected {_WORDS[expected]}")
    if expected == "str":
        return str(value)
    if not math.isfinite(value) or value < 0:
        raise UsageError(f"{path}:{line}: {where} is {value}, expected a finite number >= 0")
    return int(value) if expected == "int" else float(value)


_WORDS = {"str": "a word", "int": "a whole number", "float": "a number"}


def _given(path: Path, where: str, field: tuple[Any, int], names: OpNames) -> tuple[str, ...]:
    value, line = field
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise UsageError(f"{path}:{line}: {where}.given is {_shown(value)}, expected a list of outputs and stages")
    known = [*names.outputs, *names.stages]
    for name in value:
        if name not in known:
            near = did_you_mean(name, known)
            raise UsageError(f"{path}:{line}: {where}.given names no output or stage: {name!r}{near}")
    return tuple(str(name) for name in value)


def _provenance(path: Path, where: str, field: tuple[Any, int]) -> Mapping[str, str]:
    body, line = field
    if body is None:
        raise UsageError(f"{path}:{line}: {where} has no provenance ({', '.join(PROVENANCE)})")
    values: dict[str, str] = {}
    for key, value, at in _items(path, body, f"{where}.provenance", line):
        if key not in (*PROVENANCE, *DERIVED):
            raise UsageError(
                f"{path}:{at}: {where}.provenance: unknown key {key!r}{did_you_mean(key, [*PROVENANCE, *DERIVED])}"
            )
        wanted = datetime.date if key == "date" else str
        if not isinstance(value, wanted) or not str(value).strip():
            raise UsageError(f"{path}:{at}: {where}.provenance.{key} is {_shown(value)}, expected {_KINDS[wanted]}")
        values[key] = str(value)
    missing = [key for key in PROVENANCE if key not in values]
    if missing:
        raise UsageError(f"{path}:{line}: {where}.provenance lacks {', '.join(missing)}")
    return values


_KINDS: dict[type, str] = {datetime.date: "a date like 2026-11-21", str: "a text"}


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value) if isinstance(value, (str, int, float)) else type(value).__name__
