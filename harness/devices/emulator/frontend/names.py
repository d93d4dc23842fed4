"""Names of the kernel language: what a name, a dotted path and a callee stand for (pypto_dsl.md 1.2, 1.6, 1.7)."""

from __future__ import annotations

import ast
from types import ModuleType
from typing import Any, NoReturn

from harness.devices.emulator import runtime
from harness.devices.emulator.annotations import Annotation, DynVar
from harness.devices.emulator.dtypes import DType
from harness.devices.emulator.frontend.trees import copy_of
from harness.devices.emulator.functions import KernelFunction

_INSTEAD = {
    "range": "pl.range",
    "min": "pl.min",
    "max": "pl.max",
    "print": "pl.static_print",
    "len": "the extent itself",
}
_REFUSED = {
    ast.IfExp: "a conditional expression",
    ast.Lambda: "a lambda",
    ast.ListComp: "a list comprehension (only deps=[…] takes one)",
    ast.SetComp: "a set comprehension",
    ast.DictComp: "a dict comprehension",
    ast.GeneratorExp: "a generator",
    ast.NamedExpr: "the walrus operator",
    ast.Starred: "a starred argument",
    ast.JoinedStr: "an f-string",
    ast.Dict: "a dict",
    ast.Set: "a set",
    ast.Await: "await",
    ast.Yield: "yield",
    ast.YieldFrom: "yield from",
}


class Names:
    """The first class of the chain that ends in `Expressions`: its state, the way from a node to the method that
    translates it, and names. Each later class adds methods `_<kind>` for further kinds of nodes.

    `locals` are all names the function assigns; `bound` those assigned on every path to here; `partial` those assigned
    on some path only; `dynamic` those whose value is known at run time only; `literals` the entry scalars that are
    compile-time constants; `lanes` counts the enclosing pl.split_aiv bodies.
    """

    def __init__(self, function: KernelFunction, dims: dict[str, tuple[str, int]]) -> None:
        self.function = function
        self.dims = dims
        self.locals: set[str] = set()
        self.bound: set[str] = set()
        self.partial: set[str] = set()
        self.dynamic: set[str] = set()
        self.literals: set[str] = set()
        self.lanes = 0

    def refuse(self, node: ast.AST, reason: str) -> NoReturn:
        raise self.function.refuse(reason, getattr(node, "lineno", self.function.line))

    def expr(self, node: ast.expr) -> ast.expr:
        """Translate one expression; the result evaluates, under Python, to what the language says."""
        for kind, words in _REFUSED.items():
            if isinstance(node, kind):
                self.refuse(node, f"{words} is not accepted in a kernel")
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        if method is None:
            self.refuse(node, f"the expression {ast.unparse(node)!r} is not accepted in a kernel")
        result: ast.expr = method(node)
        return ast.copy_location(result, node)

    def rt(self, name: str, *arguments: ast.expr, keywords: list[ast.keyword] | None = None) -> ast.Call:
        """A call of `runtime.<name>`."""
        target = ast.Attribute(value=ast.Name(id=runtime.ALIAS, ctx=ast.Load()), attr=name, ctx=ast.Load())
        return ast.Call(func=target, args=list(arguments), keywords=keywords or [])

    # -- what a name stands for -------------------------------------------------------------------------

    def callee(self, node: ast.expr) -> Any:
        """The object that a call names: an operation of pl, a sub-function; None for a method of a local."""
        if isinstance(node, ast.Name):
            if node.id in self.locals:
                self.refuse(node, f"{node.id} is a value, not a function")
            return self._global(node)
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id == self.function.receiver:
                method = self.function.named(node)
                if method is None:
                    self.refuse(node, f"the program has no method {node.attr}")
                return method
            root: ast.expr = node
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in self.locals:
                return None
            return self._path(node)
        self.refuse(node, f"{ast.unparse(node)!r} cannot be called in a kernel")

    def reference(self, node: ast.expr, target: KernelFunction) -> ast.expr:
        """A name that gives `target` in the translated code."""
        if isinstance(node, ast.Name):
            return ast.Name(id=node.id, ctx=ast.Load())
        assert target.program is not None
        name = f"__goldengate_{target.program.name}_{target.name}__"
        self.function.namespace[name] = target
        return ast.Name(id=name, ctx=ast.Load())

    def _global(self, node: ast.Name) -> Any:
        if node.id in self.function.namespace:
            return self.function.namespace[node.id]
        if node.id in _INSTEAD:
            self.refuse(node, f"{node.id}() is not available in a kernel; use {_INSTEAD[node.id]}")
        self.refuse(
            node,
            f"undefined variable {node.id}: names of a body are parameters, locals or module-level numbers",
        )

    def _path(self, node: ast.Attribute) -> Any:
        """The object at a dotted path below `pl` or `pld`."""
        parts = [node.attr]
        base = node.value
        while isinstance(base, ast.Attribute):
            parts.append(base.attr)
            base = base.value
        if not isinstance(base, ast.Name):
            self.refuse(node, f"{ast.unparse(node)!r} is not accepted in a kernel")
        value = self._global(base)
        if not (isinstance(value, ModuleType) and getattr(value, "__goldengate_language__", False)):
            self.refuse(
                node,
                f"{ast.unparse(node)!r}: a body cannot look into {base.id}; bind it to a module-level name first",
            )
        for part in reversed(parts):
            try:
                value = getattr(value, part)
            except AttributeError:
                self.refuse(node, f"{ast.unparse(node)} is not part of the language")
        return value

    # -- names as expressions ---------------------------------------------------------------------------

    def _name(self, node: ast.Name) -> ast.expr:
        if node.id in self.locals:
            if node.id in self.partial:
                self.refuse(node, f"{node.id} is assigned on one branch only and used afterwards")
            if node.id not in self.bound:
                self.refuse(node, f"{node.id} is used before it is assigned, or outside the block that assigns it")
            return ast.Name(id=node.id, ctx=ast.Load())
        value = self._global(node)
        if isinstance(value, (bool, int, float)):
            return ast.Constant(value=value)
        if isinstance(value, DynVar):
            return self._dynamic(node, value)
        if isinstance(value, KernelFunction):
            self.refuse(node, f"the call of {node.id} must be a whole statement or the whole right-hand side")
        if isinstance(value, (list, tuple)) and all(type(v) is int for v in value):
            return ast.List(elts=[ast.Constant(value=v) for v in value], ctx=ast.Load())
        if isinstance(value, (DType, Annotation, *runtime.ENUMS)):
            return ast.Name(id=node.id, ctx=ast.Load())
        self.refuse(node, f"{node.id} is a {type(value).__name__}, which a kernel body cannot use")

    def _dynamic(self, node: ast.AST, variable: DynVar) -> ast.expr:
        if variable.name not in self.dims:
            self.refuse(
                node,
                f"the dynamic dimension {variable.name} is bound to no parameter of {self.function.name}",
            )
        parameter, axis = self.dims[variable.name]
        return self.rt("extent", ast.Name(id=parameter, ctx=ast.Load()), ast.Constant(value=axis))

    def _attribute(self, node: ast.Attribute) -> ast.expr:
        if isinstance(node.value, ast.Name) and node.value.id in self.locals:
            if node.attr not in ("shape", "dtype"):
                self.refuse(node, f"a value has no attribute {node.attr} in a kernel (only shape and dtype)")
            return ast.Attribute(value=self.expr(node.value), attr=node.attr, ctx=ast.Load())
        value = self._path(node)
        if not isinstance(value, (DType, *runtime.ENUMS)):
            self.refuse(node, f"{ast.unparse(node)} must be called")
        return copy_of(node)
