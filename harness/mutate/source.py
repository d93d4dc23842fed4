"""A kernel file as text, tree and globals, and edits of its text at nodes of the tree."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Edit:
    """Replace the bytes `start` to `end` of the source by `text`."""

    start: int
    end: int
    text: str


Edits = tuple[Edit, ...]


class Source:
    """One kernel file. `namespace`: the globals of its module in one configuration, which say what its names are."""

    def __init__(self, text: str, namespace: Mapping[str, Any]) -> None:
        self.text = text
        self.namespace = namespace
        self.tree = ast.parse(text)
        self._data = text.encode("utf-8")
        self._lines = [0]
        for line in self._data.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))

    @cached_property
    def parents(self) -> dict[ast.AST, ast.AST]:
        """The node that each node stands in."""
        return {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}

    @cached_property
    def functions(self) -> list[ast.FunctionDef]:
        """The functions under a decorator of `pypto.language`, in the order of the file."""
        return [n for n in self.tree.body if isinstance(n, ast.FunctionDef) and n.decorator_list]

    def nodes(self) -> Iterator[tuple[ast.FunctionDef, ast.AST]]:
        """Every node of the bodies of kernel functions, docstrings aside, with its function; in order of position."""
        for function in self.functions:
            body = function.body[1:] if ast.get_docstring(function) is not None else function.body
            found = [node for statement in body for node in ast.walk(statement) if hasattr(node, "lineno")]
            for node in sorted(found, key=self.span):
                yield function, node

    def span(self, node: ast.AST) -> tuple[int, int]:
        """First byte of a node and the one behind its last."""
        place: Any = node
        return (
            self._lines[place.lineno - 1] + place.col_offset,
            self._lines[place.end_lineno - 1] + place.end_col_offset,
        )

    def line(self, number: int) -> bytes:
        """A line of the source, from 1, as the bytes that columns of the tree count."""
        return self._data[self._lines[number - 1] : self._lines[number]]

    def of(self, node: ast.AST) -> str:
        """The text of a node."""
        start, end = self.span(node)
        return self._data[start:end].decode("utf-8")

    def replace(self, node: ast.AST, text: str) -> Edit:
        """The edit that puts `text` in the place of a node."""
        return Edit(*self.span(node), text)

    def edited(self, edits: Iterable[Edit]) -> str:
        """The source with edits that do not overlap."""
        data = self._data
        for edit in sorted(edits, key=lambda e: e.start, reverse=True):
            data = data[: edit.start] + edit.text.encode("utf-8") + data[edit.end :]
        return data.decode("utf-8")

    def statement(self, node: ast.AST) -> ast.stmt:
        """The statement that a node stands in, or is."""
        while not isinstance(node, ast.stmt):
            node = self.parents[node]
        return node

    def around(self, node: ast.AST) -> Iterator[ast.AST]:
        """The nodes that a node stands in, innermost first."""
        while node in self.parents:
            node = self.parents[node]
            yield node

    def constant(self, node: ast.AST) -> float | None:
        """The value of a floating point constant: a literal, or a global of the module; None for anything else."""
        if isinstance(node, ast.Constant):
            value = node.value
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            value = self.namespace.get(node.id)
        else:
            return None
        return value if isinstance(value, float) else None


def operation(node: ast.AST) -> str:
    """The last name of a call of the language: `matmul` for `pl.matmul(…)`, `notify` for `pld.system.notify(…)`.

    Empty for anything else, like the call of another kernel function.
    """
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return ""
    root: ast.AST = node.func
    while isinstance(root, ast.Attribute):
        root = root.value
    return node.func.attr if isinstance(root, ast.Name) and root.id in ("pl", "pld") else ""


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    """The value of a keyword argument, None where it is not given."""
    return next((k.value for k in call.keywords if k.arg == name), None)


def without(source: Source, call: ast.Call, name: str) -> str:
    """The text of a call with one keyword argument left out."""
    parts = [source.of(argument) for argument in call.args]
    parts += [f"{k.arg}={source.of(k.value)}" for k in call.keywords if k.arg != name]
    return f"{source.of(call.func)}({', '.join(parts)})"


def diff(before: str, after: str, path: str) -> str:
    """What a mutant changes, as a unified diff with one line around."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), f"a/{path}", f"b/{path}", n=1, lineterm="")
    return "\n".join(lines)
