"""Statements of the kernel language: accepted and translated, or refused (pypto_dsl.md 1.3 to 1.6, 2).

Each file of the chain `blocks`, `sub_calls`, `assignments`, `nested`, `loops` has the class of some kinds of
statements. Branches, returns and the body as a whole are here.
"""

from __future__ import annotations

import ast

from harness.devices.emulator.frontend.loops import Loops
from harness.devices.emulator.frontend.trees import unassigned


class Statements(Loops):
    """Translates the body of one function."""

    def body(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        """The whole body of the function, with the final write-back return of an inline."""
        for node in ast.walk(ast.Module(body=statements, type_ignores=[])):
            if isinstance(node, ast.Return) and self.function.kind == "inline" and node is not statements[-1]:
                self.refuse(node, "an inline has one return, as its last statement")
        translated = self.block(statements)
        parameters = {p.name for p in self.function.parameters}
        translated[:0] = unassigned(self.expressions.locals - parameters, self.function.tree)
        if self.writebacks and not (statements and isinstance(statements[-1], ast.Return)):
            translated.append(self._returning(None, statements[-1]))
        return translated

    def _if(self, node: ast.If) -> list[ast.stmt]:
        test = self.expressions.rt("truth", self.expressions.expr(node.test))
        before = set(self.bound)
        self.depth += 1
        body = self.block(node.body)
        after_body = set(self.bound)
        self.expressions.bound = set(before)
        orelse = self.block(node.orelse) if node.orelse else []
        self.depth -= 1
        after_else = set(self.bound)
        self.expressions.bound = after_body & after_else
        self.expressions.partial |= (after_body ^ after_else) - self.bound
        return [ast.If(test=test, body=body, orelse=orelse)]

    def _pass(self, node: ast.Pass) -> list[ast.stmt]:
        return [ast.Pass()]

    def _return(self, node: ast.Return) -> list[ast.stmt]:
        if self.private:
            self.refuse(node, "return inside a with, spmd or lane body is not accepted")
        self.returns = self.returns or node.value is not None
        before: list[ast.stmt] = []
        value = node.value
        if isinstance(value, ast.Call):
            name = "gg_result"
            special = self._assign_call(node, [name], value)
            if special is not None:
                return [*special, self._returning(ast.Name(id=name, ctx=ast.Load()), node)]
        new = None if value is None else self.expressions.expr(value)
        return [*before, self._returning(new, node)]

    def _returning(self, value: ast.expr | None, at: ast.AST) -> ast.stmt:
        if not self.writebacks:
            return ast.copy_location(ast.Return(value=value), at)
        finals = ast.Tuple(elts=[ast.Name(id=n, ctx=ast.Load()) for n in self.writebacks], ctx=ast.Load())
        pair = ast.Tuple(elts=[value or ast.Constant(value=None), finals], ctx=ast.Load())
        return ast.copy_location(ast.Return(value=pair), at)
