"""Operators on scalars and comparisons (pypto_dsl.md 1.2, 1.6)."""

from __future__ import annotations

import ast
import operator

from harness.devices.emulator.frontend.constants import Constants

_BINARY = {
    ast.Add: ("add", operator.add),
    ast.Sub: ("sub", operator.sub),
    ast.Mult: ("mul", operator.mul),
    ast.Div: ("truediv", operator.truediv),
    ast.FloorDiv: ("floordiv", operator.floordiv),
    ast.Mod: ("mod", operator.mod),
    ast.LShift: ("lshift", operator.lshift),
    ast.RShift: ("rshift", operator.rshift),
}
_COMPARE = {ast.Eq: "eq", ast.NotEq: "ne", ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge"}
_COMPARE_FOLD = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt,
    ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip
_FOLDED = frozenset(("add", "sub", "mul", "truediv", "floordiv", "mod"))


class Operators(Constants):
    """Translates operators into calls of the scalar functions of `runtime`."""

    def _binop(self, node: ast.BinOp) -> ast.expr:
        entry = _BINARY.get(type(node.op))
        if entry is None:
            self.refuse(node, f"the operator in {ast.unparse(node)!r} is not accepted in a kernel")
        left, right = self.expr(node.left), self.expr(node.right)
        if isinstance(left, ast.Constant) and isinstance(right, ast.Constant):
            return self._fold(node, entry[1], left.value, right.value)
        name = entry[0]
        if self.function.kind == "host" and name in ("floordiv", "mod"):
            name = f"host_{name}"  # host programs are emitted as Python
        elif name in _FOLDED and self._is_literal(node.left) and self._is_literal(node.right):
            name = f"fold_{name}"
        return self.rt(name, left, right)

    def _unaryop(self, node: ast.UnaryOp) -> ast.expr:
        operand = self.expr(node.operand)
        if isinstance(node.op, ast.Not):
            return self.rt("not_", operand)
        if isinstance(node.op, ast.UAdd):
            self.refuse(node, "unary + is not accepted in a kernel")
        if isinstance(operand, ast.Constant):
            return self._fold(node, operator.neg if isinstance(node.op, ast.USub) else operator.invert, operand.value)
        return self.rt("neg" if isinstance(node.op, ast.USub) else "invert", operand)

    def _compare(self, node: ast.Compare) -> ast.expr:
        if len(node.ops) != 1:
            self.refuse(node, "a chained comparison is not accepted in a kernel; join two with `and`")
        kind = type(node.ops[0])
        if kind not in _COMPARE:
            self.refuse(node, f"the comparison {ast.unparse(node)!r} is not accepted in a kernel")
        left, right = self.expr(node.left), self.expr(node.comparators[0])
        if isinstance(left, ast.Constant) and isinstance(right, ast.Constant):
            return self._fold(node, _COMPARE_FOLD[kind], left.value, right.value)
        return self.rt(_COMPARE[kind], left, right)

    def _boolop(self, node: ast.BoolOp) -> ast.expr:
        return self.rt("and_" if isinstance(node.op, ast.And) else "or_", *(self.expr(v) for v in node.values))
