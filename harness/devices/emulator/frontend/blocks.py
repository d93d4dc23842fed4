"""Blocks of statements: from a statement to its translation, and which names are bound (pypto_dsl.md 1.5, 1.6)."""

from __future__ import annotations

import ast
from typing import NoReturn

from harness.devices.emulator.annotations import ScalarType
from harness.devices.emulator.frontend.expressions import Expressions
from harness.devices.emulator.frontend.trees import names_store, stored_names
from harness.devices.emulator.functions import KernelFunction

_REFUSED = {
    ast.AugAssign: "augmented assignment",
    ast.Assert: "assert",
    ast.Delete: "del",
    ast.Raise: "raise",
    ast.Try: "try",
    ast.FunctionDef: "a nested def",
    ast.AsyncFunctionDef: "a nested async def",
    ast.ClassDef: "a nested class",
    ast.Import: "import",
    ast.ImportFrom: "import",
    ast.Global: "global",
    ast.Nonlocal: "nonlocal",
    ast.AsyncFor: "async for",
    ast.AsyncWith: "async with",
    ast.Match: "match",
}


class Blocks:
    """The first class of the chain that ends in `Statements`: its state, and blocks. Each later class adds
    methods `_<kind>` for further kinds of statements.

    `loops` are the kinds of the enclosing loops, innermost last; `private` counts the enclosing bodies that became
    nested functions, `clusters` the enclosing pl.cluster. `depth` is the depth of loops and branches, `first` the depth
    at which a name was first assigned.
    """

    def __init__(
        self,
        function: KernelFunction,
        parameters: list[str],
        writebacks: tuple[str, ...],
        dims: dict[str, tuple[str, int]],
    ) -> None:
        self.function = function
        self.writebacks = writebacks
        self.expressions = Expressions(function, dims)
        self.expressions.bound |= set(parameters)
        self.expressions.locals |= set(parameters) | stored_names(function.tree.body)
        self.loops: list[str] = []
        self.private = 0
        self.clusters = 0
        self.depth = 0
        self.first = dict.fromkeys(parameters, 0)
        self.running: set[str] = set()  # variables of the enclosing loops
        self.returns = False
        self.releases: dict[ast.stmt, frozenset[str]] = {}
        if function.kind == "entry":
            constants = {p.name for p in function.parameters if isinstance(p.type, ScalarType) and not p.type.runtime}
            self.expressions.literals = constants - stored_names(function.tree.body)

    @property
    def bound(self) -> set[str]:
        return self.expressions.bound

    def refuse(self, node: ast.AST, reason: str) -> NoReturn:
        self.expressions.refuse(node, reason)

    def block(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        """A list of statements; never empty."""
        out: list[ast.stmt] = []
        for statement in statements:
            for kind, words in _REFUSED.items():
                if isinstance(statement, kind):
                    self.refuse(statement, f"{words} is not accepted in a kernel")
            method = getattr(self, f"_{type(statement).__name__.lower()}", None)
            if method is None:
                self.refuse(statement, f"the statement {type(statement).__name__} is not accepted in a kernel")
            for new in method(statement):
                # keep inner positions: only nodes made here lack one, and theirs is the first line of the statement
                ast.copy_location(new, statement)
                new.end_lineno, new.end_col_offset = new.lineno, new.col_offset
                out.append(new)
            out += self._released(statement)
        return out or [ast.Pass()]

    def _released(self, statement: ast.stmt) -> list[ast.stmt]:
        """Names that nothing reads after this statement let go of their tiles, as the compiler's allocator does."""
        names = self.releases.get(statement, frozenset()) & self.expressions.locals
        out: list[ast.stmt] = []
        for name in sorted(names):
            value = self.expressions.rt("release", ast.Name(id=name, ctx=ast.Load()))
            release = ast.Assign(targets=[ast.Name(id=name, ctx=ast.Store())], value=value)
            out.append(ast.copy_location(release, statement))
        return out

    # -- names ------------------------------------------------------------------------------------------

    def bind(self, *names: str) -> None:
        self.expressions.bound |= set(names)
        self.expressions.partial -= set(names)
        for name in names:
            self.first.setdefault(name, self.depth)

    def _assign_names(self, node: ast.stmt, names: list[str], values: list[ast.expr]) -> ast.Assign:
        """`names = values`, one each. A name of an outer level is carried: its type must stay (1.5)."""
        checked = []
        for name, value in zip(names, values, strict=True):
            if name in self.running:
                self.refuse(node, f"the loop variable {name} must not be assigned")
            if self.depth > self.first.get(name, self.depth):
                arguments = (ast.Constant(value=name), ast.Name(id=name, ctx=ast.Load()), value)
                value = self.expressions.rt("carried", *arguments)
            checked.append(value)
        new = checked[0] if len(names) == 1 else ast.Tuple(elts=checked, ctx=ast.Load())
        return ast.Assign(targets=[names_store(names, len(names) > 1)], value=new)

    def _know(self, names: list[str], dynamic: bool) -> None:
        """Note whether the values of names are compile-time constants; those of an outer level stay unknown."""
        carried = {n for n in names if self.depth > self.first.get(n, self.depth)}
        self.expressions.dynamic |= set(names) if dynamic else carried
        if not dynamic:
            self.expressions.dynamic -= set(names) - carried

    def _target_names(self, target: ast.expr) -> list[str]:
        if isinstance(target, ast.Name):
            return [target.id]
        if isinstance(target, ast.Tuple) and all(isinstance(e, ast.Name) for e in target.elts):
            return [e.id for e in target.elts if isinstance(e, ast.Name)]
        self.refuse(target, f"cannot assign to {ast.unparse(target)!r} in a kernel")
