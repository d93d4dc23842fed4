"""Expressions of the kernel language: accepted and translated, or refused (pypto_dsl.md 1.2, 1.6, 1.7).

Each file of the chain `names`, `constants`, `operators`, `subscripts` has the class of some kinds of expressions. Calls
of operations and of templates are here.
"""

from __future__ import annotations

import ast

from harness.devices.emulator.constructs import Construct
from harness.devices.emulator.frontend.subscripts import Subscripts
from harness.devices.emulator.frontend.trees import copy_of
from harness.devices.emulator.functions import KernelFunction

# Where the extents of an operation stand: they are compile-time constants inside a kernel (3.12).
_EXTENTS = {
    "slice": (1, "shape"), "load": (2, "shapes"), "create_tensor": (0, "shape"), "create_tile": (0, "shape"),
    "create": (0, "shape"), "create_l1": (0, "shape"), "full": (0, "shape"), "arange": (1, "shape"),
}  # fmt: skip
# What the cube unit does, once for both vector lanes of a split region (2.5).
_CUBE = frozenset((
    "matmul", "matmul_acc", "matmul_bias", "gemv", "gemv_acc", "gemv_bias", "batch_matmul", "batch_matmul_acc",
    "assemble", "store", "move", "create_l1", "gather_row",
))  # fmt: skip
_TEXT_KEYWORDS = frozenset(("name_hint", "name", "mode", "core_type", "layout"))


class Expressions(Subscripts):
    """Translates the expressions of one function: calls here, the rest in the classes that it extends."""

    def _call(self, node: ast.Call) -> ast.expr:
        target = self.callee(node.func)
        if isinstance(target, KernelFunction) and target.kind == "template":
            if not target.compiled.returns:
                self.refuse(node, f"{target.name} returns nothing and cannot stand in an expression")
            values = [self.expr(a) for a in self.arguments(node, target, node)]
            return self.rt("call", self.reference(node.func, target), *values)
        if isinstance(target, KernelFunction):
            self.refuse(node, f"the call of {target.name} must be a whole statement or the whole right-hand side")
        if target is None:
            self.refuse(node, f"{ast.unparse(node.func)}() is not accepted in a kernel (a value has no methods)")
        if isinstance(target, Construct):
            self.refuse(node, f"{ast.unparse(node.func)} cannot stand in an expression; {target.place}")
        if not getattr(target, "__goldengate_op__", False):
            self.refuse(
                node,
                f"call of the Python function {ast.unparse(node.func)}: a kernel may call pl operations only",
            )
        return self.call(node)

    def call(self, node: ast.Call) -> ast.Call:
        """A call of an operation with translated arguments."""
        arguments = []
        for argument in node.args:
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                arguments.append(copy_of(argument))  # cast modes and static_print texts
            else:
                arguments.append(self.expr(argument))
        keywords = self.keywords(node)
        self._extents(node, arguments, keywords)
        if self.lanes and getattr(node.func, "attr", "") in _CUBE:
            return self.rt("on_cube", copy_of(node.func), *arguments, keywords=keywords)
        return ast.Call(func=copy_of(node.func), args=arguments, keywords=keywords)

    def arguments(self, node: ast.AST, target: KernelFunction, call: ast.Call) -> list[ast.expr]:
        """Arguments in parameter order; keywords become positional."""
        order = [p.name for p in target.parameters]
        if len(call.args) > len(order):
            self.refuse(node, f"{target.name} takes {len(order)} arguments, got {len(call.args)}")
        given = dict(zip(order, call.args, strict=False))
        for keyword in call.keywords:
            if keyword.arg not in order or keyword.arg in given:
                self.refuse(node, f"{target.name} has no free parameter {keyword.arg!r}")
            given[keyword.arg] = keyword.value
        missing = [name for name in order if name not in given]
        if missing:
            self.refuse(node, f"{target.name}: argument {missing[0]!r} is missing")
        return [given[name] for name in order]

    def keywords(self, node: ast.Call) -> list[ast.keyword]:
        translated = []
        for keyword in node.keywords:
            if keyword.arg is None:
                self.refuse(node, "** is not accepted in a kernel")
            value = keyword.value
            if keyword.arg == "deps" and isinstance(value, ast.ListComp):
                new: ast.expr = self._deps(value)
            elif isinstance(value, ast.Constant) and isinstance(value.value, str):
                if keyword.arg not in _TEXT_KEYWORDS:
                    self.refuse(value, f"{keyword.arg}= takes no text")
                new = copy_of(value)
            elif keyword.arg in ("name_hint", "name"):
                self.refuse(value, f"{keyword.arg}= must be a literal identifier")
            else:
                new = self.expr(value)
            translated.append(ast.copy_location(ast.keyword(arg=keyword.arg, value=new), node))
        return translated

    def _extents(self, node: ast.Call, arguments: list[ast.expr], keywords: list[ast.keyword]) -> None:
        """Mark the extents of `node` that are not constants, in its translated arguments."""
        place = _EXTENTS.get(getattr(node.func, "attr", ""))
        if place is None:
            return
        position, name = place
        pairs = [(node.args[position], arguments[position])] if len(node.args) > position else []
        pairs += [(k.value, new.value) for k, new in zip(node.keywords, keywords, strict=True) if k.arg == name]
        for old, new in pairs:
            if isinstance(old, ast.List) and isinstance(new, ast.List):
                new.elts = [
                    self.rt("dynamic_extent", done) if self.is_dynamic(given) else done
                    for given, done in zip(old.elts, new.elts, strict=True)
                ]

    def _deps(self, node: ast.ListComp) -> ast.expr:
        """`[tids[i] for i in range(N)]` with constant bounds; the only comprehension of the language."""
        generator = node.generators[0]
        call = generator.iter
        if len(node.generators) != 1 or generator.ifs or not isinstance(generator.target, ast.Name):
            self.refuse(node, "deps=[…] takes one `for`, one name and no filter")
        if not (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Name)
            and call.func.id == "range"
            and not call.keywords
        ):
            self.refuse(node, "deps=[…] iterates over range(…) with constant bounds")
        bounds = [self.expr(a) for a in call.args]
        if not all(isinstance(b, ast.Constant) and type(b.value) is int for b in bounds):
            self.refuse(node, "the bounds of range(…) in deps= must be constants")
        name = generator.target.id
        hidden = name not in self.locals
        self.locals.add(name)
        was_bound = name in self.bound
        self.bound.add(name)
        element = self.expr(node.elt)
        if hidden:
            self.locals.discard(name)
        if not was_bound:
            self.bound.discard(name)
        iterator = ast.Call(func=ast.Name(id="range", ctx=ast.Load()), args=bounds, keywords=[])
        return ast.ListComp(
            elt=element,
            generators=[
                ast.comprehension(target=ast.Name(id=name, ctx=ast.Store()), iter=iterator, ifs=[], is_async=0)
            ],
        )
