"""Literals, and what is known of a value at compile time (pypto_dsl.md 1.2, 3.12)."""

from __future__ import annotations

import ast
from typing import Any

from harness.devices.emulator.frontend.names import Names

_RUNTIME_READS = frozenset(("read", "get_block_idx", "get_subblock_idx", "get_block_num", "dim", "rank", "nranks"))


class Constants(Names):
    """Translates literals, folds constants and tells which values certainly are none."""

    def _constant(self, node: ast.Constant) -> ast.expr:
        if node.value is None or isinstance(node.value, (bool, int, float)):
            return ast.Constant(value=node.value)
        self.refuse(node, f"the {type(node.value).__name__} literal {node.value!r} is not accepted here")

    def _list(self, node: ast.List) -> ast.expr:
        return ast.List(elts=[self.expr(e) for e in node.elts], ctx=ast.Load())

    def _tuple(self, node: ast.Tuple) -> ast.expr:
        return ast.Tuple(elts=[self.expr(e) for e in node.elts], ctx=ast.Load())

    def _fold(self, node: ast.AST, function: Any, *values: Any) -> ast.Constant:
        """Literals and inlined constants fold in Python arithmetic."""
        try:
            return ast.Constant(value=function(*values))
        except (ArithmeticError, TypeError, ValueError) as error:
            self.refuse(node, f"constant expression: {error}")

    def _is_literal(self, node: ast.expr) -> bool:
        """Whether an expression is built from literals, inlined constants and entry scalars only (1.2)."""
        if isinstance(node, ast.Name):
            return node.id in self.literals or node.id not in self.locals
        if isinstance(node, ast.BinOp):
            return self._is_literal(node.left) and self._is_literal(node.right)
        return isinstance(node, ast.Constant)

    def is_dynamic(self, node: ast.AST) -> bool:
        """Whether a value is certainly no compile-time constant: it hangs on a loop variable or on a read."""
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and part.id in self.dynamic:
                return True
            if isinstance(part, ast.Call) and getattr(part.func, "attr", "") in _RUNTIME_READS:
                return True
        return False

    def _static_extent(self, node: ast.Slice) -> bool:
        """Whether `upper - lower` may be a constant although the bounds are not: equal terms cancel."""
        if node.upper is None:
            return node.lower is None or not self.is_dynamic(node.lower)
        terms = self._terms(node.upper)
        for term, factor in self._terms(node.lower).items() if node.lower is not None else ():
            terms[term] = terms.get(term, 0) - factor
        left = [ast.parse(term, mode="eval") for term, factor in terms.items() if factor]
        return not any(self.is_dynamic(term) for term in left)

    def _terms(self, node: ast.expr) -> dict[str, int]:
        """An integer expression as a sum: text of each term -> its factor. Constants are left out."""
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub)):
            sign = 1 if isinstance(node.op, ast.Add) else -1
            found = self._terms(node.left)
            for term, factor in self._terms(node.right).items():
                found[term] = found.get(term, 0) + sign * factor
            return found
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            for one, other in ((node.left, node.right), (node.right, node.left)):
                times = self._constant_of(one)
                if times is not None:
                    return {term: factor * times for term, factor in self._terms(other).items()}
        return {} if self._constant_of(node) is not None else {ast.unparse(node): 1}

    def _constant_of(self, node: ast.expr) -> int | None:
        value = node.value if isinstance(node, ast.Constant) else None
        if isinstance(node, ast.Name) and node.id not in self.locals:
            value = self.function.namespace.get(node.id)
        return value if type(value) is int else None
