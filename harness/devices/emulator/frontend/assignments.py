"""Assignments, and expressions that stand as statements (pypto_dsl.md 1.4, 1.6)."""

from __future__ import annotations

import ast

from harness.devices.emulator.frontend.sub_calls import SubCalls
from harness.devices.emulator.frontend.trees import creates_tensor, is_text, names_store


class Assignments(SubCalls):
    """Translates what gives a value to names or to elements."""

    def _expr(self, node: ast.Expr) -> list[ast.stmt]:
        value = node.value
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            return []  # doc string
        if not isinstance(value, ast.Call):
            self.refuse(node, f"the statement {ast.unparse(node)!r} has no effect")
        if isinstance(value.func, ast.Attribute) and value.func.attr == "bind_dynamic":
            return []  # read by function._dynamic_dims
        if self._construct(value) == "func_attr":
            if node is not next((s for s in self.function.tree.body if not is_text(s)), None):
                self.refuse(node, "pl.func_attr is the first statement of a function")
            return []  # chooses code generation, not results
        return self._assign_call(node, [], value) or [ast.Expr(value=self.expressions.expr(value))]

    def _assign(self, node: ast.Assign) -> list[ast.stmt]:
        if len(node.targets) != 1:
            self.refuse(node, "assign to one name at a time")
        return self._store(node, node.targets[0], node.value)

    def _annassign(self, node: ast.AnnAssign) -> list[ast.stmt]:
        if node.value is None:
            self.refuse(node, "an annotated name needs a value")
        return self._store(node, node.target, node.value)

    def _store(self, node: ast.stmt, target: ast.expr, value: ast.expr) -> list[ast.stmt]:
        if isinstance(target, ast.Subscript):
            return self._store_item(node, target, value)
        names = self._target_names(target)
        if isinstance(value, ast.Call):
            special = self._assign_call(node, names, value)
            if special is not None:
                return special
        new = self.expressions.expr(value)
        if len(names) == 1 and creates_tensor(value):
            outer = ast.Constant(value=self.function.kind == "entry")
            new = self.expressions.rt("created", ast.Constant(value=names[0]), new, outer)
        several = isinstance(target, ast.Tuple)
        shape = isinstance(value, ast.Attribute) and value.attr == "shape"
        dynamic = self.expressions.is_dynamic(value) or (several and not shape)
        if isinstance(new, ast.Tuple) and several and len(new.elts) == len(names):
            assigned = self._assign_names(node, names, new.elts)
        elif several:
            assigned = ast.Assign(targets=[names_store(names, True)], value=new)
        else:
            assigned = self._assign_names(node, names, [new])
        self.bind(*names)
        self._know(names, dynamic)
        return [assigned]

    def _store_item(self, node: ast.stmt, target: ast.Subscript, value: ast.expr) -> list[ast.stmt]:
        if not isinstance(target.value, ast.Name):
            self.refuse(target, "the target of a subscript assignment must be a plain name")
        base = self.expressions.expr(target.value)
        index = self.expressions.index(target.slice)
        new = self.expressions.rt("set_item", base, index, self.expressions.expr(value))
        if self.expressions.lanes:
            new = self.expressions.rt("on_cube", new.func, *new.args)
        return [ast.Expr(value=new)]
