"""The operators by name, and all mutants that they make of one op's kernel."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UsageError, did_you_mean
from harness.mutate import control, memory, values
from harness.mutate.source import Edits, Source, diff

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Operator:
    """One way to be wrong. `kind` is the class that it is counted in."""

    name: str
    kind: str
    edits: Callable[[Source, ast.AST], Iterator[Edits]]

    @property
    def meaning(self) -> str:
        """What it does, in one sentence."""
        return " ".join((self.edits.__doc__ or "").split())


OPERATORS: Mapping[str, Operator] = {
    operator.name: operator
    for operator in (
        # The specific ones first: of two mutants with one text the first is kept.
        Operator("int8_range", "constant", values.int8_range),
        Operator("rotary_sign", "routing", memory.rotary_sign),
        Operator("rotary_pair", "routing", memory.rotary_pair),
        Operator("top_k", "routing", memory.top_k),
        Operator("wrong_expert", "routing", memory.wrong_expert),
        Operator("wrong_rank", "routing", memory.wrong_rank),
        Operator("missing_signal", "order", control.missing_signal),
        Operator("missing_dep", "order", control.missing_dep),
        Operator("cast_mode", "rounding", values.cast_mode),
        Operator("dropped_rounding", "rounding", values.dropped_rounding),
        Operator("added_rounding", "rounding", values.added_rounding),
        Operator("epsilon", "constant", values.epsilon),
        Operator("constant_ulp", "constant", values.constant_ulp),
        Operator("scale", "arithmetic", values.scale),
        Operator("arithmetic", "arithmetic", values.arithmetic),
        Operator("swapped_operands", "arithmetic", values.swapped_operands),
        Operator("axis", "arithmetic", values.axis),
        Operator("loop_first", "loop", control.loop_first),
        Operator("loop_last", "loop", control.loop_last),
        Operator("block", "loop", control.block),
        Operator("comparison", "guard", control.comparison),
        Operator("missing_guard", "guard", control.missing_guard),
        Operator("missing_statement", "memory", control.missing_statement),
        Operator("missing_token", "memory", memory.missing_token),
        Operator("stale_tile", "memory", memory.stale_tile),
        Operator("index", "memory", memory.index),
        Operator("bound", "memory", memory.bound),
    )
}


@dataclass(frozen=True)
class Mutant:
    """One wrong kernel. `line` and `column` (from 1) are those of the node that an operator changed, in the file `path`
    relative to the repository; `ordinal` counts what the operator makes of all nodes that begin there."""

    op: str
    operator: str
    path: str
    line: int
    column: int
    ordinal: int
    text: str

    @property
    def id(self) -> str:
        """`gate:cast_mode:kernels/gate.py:231:57:0`; the same as long as the kernel file is."""
        return f"{self.op}:{self.operator}:{self.path}:{self.line}:{self.column}:{self.ordinal}"

    def diff(self, original: str) -> str:
        """What it changes, as a unified diff."""
        return diff(original, self.text, self.path)


def mutants_of(
    op: str, text: str, path: str, namespace: Mapping[str, Any], operators: Sequence[str] = ()
) -> list[Mutant]:
    """Every mutant of the kernel functions of one file, in order of operator and position, no two of one text.

    `operators`: names of OPERATORS, all when empty. Functions that a kernel splices in from other files belong to the
    ops of those files. A change that is no Python is no mutant. Raises UsageError for an unknown operator.
    """
    for name in operators:
        if name not in OPERATORS:
            raise UsageError(f"unknown operator {name!r}{did_you_mean(name, list(OPERATORS))}")
    source = Source(text, namespace)
    seen = {text}
    found = []
    for operator in OPERATORS.values():
        ordinals: Counter[tuple[int, int]] = Counter()  # a + b and a + b + c begin at the same place
        for node, edits in _changes(source, operator):
            place: Any = node
            column = len(source.line(place.lineno)[: place.col_offset].decode("utf-8")) + 1
            ordinal = ordinals[place.lineno, column]
            ordinals[place.lineno, column] += 1
            changed = source.edited(edits)
            if changed in seen or not _is_python(changed):
                continue
            seen.add(changed)
            if not operators or operator.name in operators:
                found.append(Mutant(op, operator.name, path, place.lineno, column, ordinal, changed))
    return found


def _changes(source: Source, operator: Operator) -> Iterator[tuple[ast.AST, Edits]]:
    for _, node in source.nodes():
        for edits in operator.edits(source, node):
            yield node, edits


def _is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def mutants_of_op(name: str, operators: Sequence[str] = ()) -> list[Mutant]:
    """The mutants of an op's shipped kernel. Raises SpecError, KernelRefused and UsageError."""
    from harness.devices.emulator.loader import load_functions
    from specs.registry import load_op

    op = load_op(name)
    entry = load_functions(op.kernel, op.sizes, None)[name]
    text = op.kernel.read_text(encoding="utf-8")
    return mutants_of(name, text, relative(op.kernel), entry.namespace, operators)


def relative(path: Path) -> str:
    """A path below the repository as it is in ids and diffs."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
