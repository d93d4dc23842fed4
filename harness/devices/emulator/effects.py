"""Which global tensors a region body reads and writes, by name: what the compiler tells the runtime (pypto_dsl.md 2.3).

Directions are a property of the text: a name in the target position of a storing operation is written, a name anywhere
else is read. Calls of inlines and in-core functions pass on what the callee does to its parameters.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.devices.emulator.annotations import TensorType
from harness.devices.emulator.functions import KernelFunction

# Position and keyword of the argument that an operation writes; it returns that argument.
_TARGETS = {
    "assemble": (0, "target"),
    "store": (2, "output_tensor"),
    "write": (0, "x"),
    "mscatter": (2, "out"),
    "put": (0, "dst"),
    "get": (0, "dst"),
    "remote_store": (1, "target"),
}


@dataclass
class Effects:
    """Names of outer tensors that a body reads and writes. `rebound` are kept names that may end as another object."""

    reads: set[str] = field(default_factory=set)
    writes: set[str] = field(default_factory=set)
    rebound: set[str] = field(default_factory=set)


def body_effects(function: KernelFunction, body: Sequence[ast.stmt]) -> Effects:
    """The effects of statements of `function`."""
    analysis = _Analysis(function)
    for statement in body:
        analysis.visit(statement)
    return analysis.effects


def returned_parameters(function: KernelFunction) -> tuple[str, ...] | None:
    """The written parameters that a function returns, where its text shows that it returns nothing else (1.3)."""
    last = function.tree.body[-1]
    if not isinstance(last, ast.Return) or last.value is None:
        return ()
    analysis = _Analysis(function)
    for statement in function.tree.body[:-1]:
        analysis.visit(statement)
    returned = last.value.elts if isinstance(last.value, ast.Tuple) else [last.value]
    written = {p.name for p in function.parameters if getattr(p.type, "direction", "in") != "in"}
    found: list[str] = []
    for value in returned:
        roots = analysis._value(value)
        if len(roots) != 1 or not roots <= written:
            return None
        found += roots
    return tuple(found)


def parameter_effects(function: KernelFunction) -> Effects:
    """The effects of a sub-function on its parameters: from the text of an inline, from the annotations otherwise."""
    if function.kind in ("inline", "template", "opaque"):
        return body_effects(function, function.tree.body)
    effects = Effects()
    for parameter in function.parameters:
        direction = parameter.type.direction if isinstance(parameter.type, TensorType) else "in"
        if direction in ("in", "inout"):
            effects.reads.add(parameter.name)
        if direction in ("out", "inout"):
            effects.writes.add(parameter.name)
    return effects


class _Analysis(ast.NodeVisitor):
    """One pass in program order. `alias` maps a local name to the outer names that it may stand for."""

    def __init__(self, function: KernelFunction) -> None:
        self.function = function
        self.effects = Effects()
        self.alias: dict[str, set[str]] = {}

    def _roots(self, node: ast.expr | None) -> set[str]:
        if isinstance(node, ast.Name):
            return self.alias.get(node.id, {node.id})
        return set()

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self.effects.reads |= self._roots(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        target = node.targets[0]
        if isinstance(target, ast.Subscript):
            self.effects.writes |= self._roots(target.value)
            self.visit(target.slice)
            self.visit(node.value)
            return
        returned = self._value(node.value)
        names = target.elts if isinstance(target, ast.Tuple) else [target]
        for name in names:
            if isinstance(name, ast.Name):
                if returned != {name.id}:
                    self.effects.rebound.add(name.id)
                self.alias[name.id] = returned

    def visit_Expr(self, node: ast.Expr) -> None:
        self._value(node.value)

    def visit_Return(self, node: ast.Return) -> None:
        if isinstance(node.value, ast.Call):
            self._value(node.value)
        # returning a parameter hands its handle back and reads nothing

    def _value(self, node: ast.expr) -> set[str]:
        """Visit a right-hand side; the outer names that its value may alias."""
        if not isinstance(node, ast.Call):
            self.visit(node)
            return self._roots(node)
        callee = self.function.named(node.func)
        if callee is not None:
            return self._sub_function(node, callee)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if name in _TARGETS:
            return self._storing(node, *_TARGETS[name])
        self.generic_visit(node)
        if name in ("reshape", "set_validshape", "transpose", "view", "as_layout") and node.args:
            return self._roots(node.args[0])
        return set()

    def visit_Call(self, node: ast.Call) -> None:
        self._value(node)

    def _storing(self, node: ast.Call, position: int, keyword: str) -> set[str]:
        target = node.args[position] if len(node.args) > position else None
        for given in node.keywords:
            if given.arg == keyword:
                target = given.value
        roots = self._roots(target)
        self.effects.writes |= roots
        if any(k.arg == "atomic" for k in node.keywords):
            self.effects.reads |= roots
        for part in _others(node, target):
            self.visit(part)
        return roots

    def _sub_function(self, node: ast.Call, callee: KernelFunction) -> set[str]:
        effects = parameter_effects(callee)
        order = [p.name for p in callee.parameters]
        given = dict(zip(order, node.args, strict=False)) | {k.arg: k.value for k in node.keywords if k.arg}
        touched: set[str] = set()
        for name, argument in given.items():
            if name in effects.writes:
                self.effects.writes |= self._roots(argument)
                touched |= self._roots(argument)
            if name in effects.reads or not isinstance(argument, ast.Name):
                self.visit(argument)
        return touched


def _others(node: ast.Call, target: Any) -> Iterable[ast.expr]:
    return [p for p in (*node.args, *(k.value for k in node.keywords)) if p is not target]
