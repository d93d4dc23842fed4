"""Subscripts and slices (pypto_dsl.md 1.6, 3.3, 3.12)."""

from __future__ import annotations

import ast

from harness.devices.emulator.frontend.operators import Operators


class Subscripts(Operators):
    """Translates `value[index]`, and the index by itself for an assignment."""

    def _subscript(self, node: ast.Subscript) -> ast.expr:
        base = node.value
        if isinstance(base, ast.Attribute) and base.attr == "shape":
            return self.rt("shape_item", self.expr(base), self.expr(node.slice))
        if (
            isinstance(base, ast.Name)
            and base.id not in self.locals
            and not isinstance(self._global(base), (list, tuple))
        ):
            self.refuse(node, f"{base.id} is a {type(self._global(base)).__name__}: a body cannot subscript it")
        return self.rt("item", self.expr(base), self.index(node.slice))

    def index(self, node: ast.expr) -> ast.expr:
        """A subscript: scalars and `a:b` slices, one or a tuple."""
        if isinstance(node, ast.Tuple):
            return ast.copy_location(ast.Tuple(elts=[self.index(e) for e in node.elts], ctx=ast.Load()), node)
        if not isinstance(node, ast.Slice):
            if isinstance(node, ast.Constant) and (node.value is None or node.value is Ellipsis):
                self.refuse(node, "None and ... are not accepted in a subscript")
            return self.expr(node)
        if node.step is not None:
            self.refuse(node, "a subscript takes no step")
        bounds = [ast.Constant(value=None) if b is None else self.expr(b) for b in (node.lower, node.upper)]
        for bound in bounds:
            if isinstance(bound, ast.Constant) and isinstance(bound.value, int) and bound.value < 0:
                self.refuse(node, "a negative bound is not accepted in a subscript")
        known = self._static_extent(node)
        return ast.copy_location(self.rt("slice_" if known else "dynamic_slice", *bounds), node)
