"""Expressions of the kernel language: accepted and translated, or refused (pypto_dsl.md 1.2, 1.6, 1.7)."""

from __future__ import annotations

import ast
import copy
import operator
from types import ModuleType
from typing import Any, NoReturn

from harness.devices.emulator import runtime
from harness.devices.emulator.annotations import Annotation, DynVar
from harness.devices.emulator.dtypes import DType
from harness.devices.emulator.functions import KernelFunction

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
_FOLDED = frozenset(("add", "sub", "mul", "truediv", "floordiv", "mod"))
# Where the extents of an operation stand: they are compile-time constants inside a kernel (3.12).
_EXTENTS = {
    "slice": (1, "shape"), "load": (2, "shapes"), "create_tensor": (0, "shape"), "create_tile": (0, "shape"),
    "create": (0, "shape"), "create_l1": (0, "shape"), "full": (0, "shape"), "arange": (1, "shape"),
}  # fmt: skip
_RUNTIME_READS = frozenset(("read", "get_block_idx", "get_subblock_idx", "get_block_num", "dim", "rank", "nranks"))
# What the cube unit does, once for both vector lanes of a split region (2.5).
_CUBE = frozenset((
    "matmul", "matmul_acc", "matmul_bias", "gemv", "gemv_acc", "gemv_bias", "batch_matmul", "batch_matmul_acc",
    "assemble", "store", "move", "create_l1", "gather_row",
))  # fmt: skip
_TEXT_KEYWORDS = frozenset(("name_hint", "name", "mode", "core_type", "layout"))


class Expressions:
    """Translates the expressions of one function.

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

    # -- entry points -------------------------------------------------------------------------------

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

    def rt(self, name: str, *arguments: ast.expr, keywords: list[ast.keyword] | None = None) -> ast.Call:
        """A call of `runtime.<name>`."""
        target = ast.Attribute(value=ast.Name(id=runtime.ALIAS, ctx=ast.Load()), attr=name, ctx=ast.Load())
        return ast.Call(func=target, args=list(arguments), keywords=keywords or [])

    def reference(self, node: ast.expr, target: KernelFunction) -> ast.expr:
        """A name that gives `target` in the translated code."""
        if isinstance(node, ast.Name):
            return ast.Name(id=node.id, ctx=ast.Load())
        assert target.program is not None
        name = f"__goldengate_{target.program.name}_{target.name}__"
        self.function.namespace[name] = target
        return ast.Name(id=name, ctx=ast.Load())

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

    # -- names and attributes -----------------------------------------------------------------------

    def _name(self, node: ast.Name) -> ast.expr:
        if node.id in self.locals:
            if node.id in self.partial:
                self.refuse(node, f"{node.id} is assigned on one branch only and used afterwards")
            if node.id not in self.bound:
                self.refuse(
                    node, f"{node.id} is used before it is assigned, or outside the block that assigns it"
                )
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

    def _attribute(self, node: ast.Attribute) -> ast.expr:
        if isinstance(node.value, ast.Name) and node.value.id in self.locals:
            if node.attr not in ("shape", "dtype"):
                self.refuse(node, f"a value has no attribute {node.attr} in a kernel (only shape and dtype)")
            return ast.Attribute(value=self.expr(node.value), attr=node.attr, ctx=ast.Load())
        value = self._path(node)
        if not isinstance(value, (DType, *runtime.ENUMS)):
            self.refuse(node, f"{ast.unparse(node)} must be called")
        return copy_of(node)

    # -- literals -----------------------------------------------------------------------------------

    def _constant(self, node: ast.Constant) -> ast.expr:
        if node.value is None or isinstance(node.value, (bool, int, float)):
            return ast.Constant(value=node.value)
        self.refuse(node, f"the {type(node.value).__name__} literal {node.value!r} is not accepted here")

    def _list(self, node: ast.List) -> ast.expr:
        return ast.List(elts=[self.expr(e) for e in node.elts], ctx=ast.Load())

    def _tuple(self, node: ast.Tuple) -> ast.expr:
        return ast.Tuple(elts=[self.expr(e) for e in node.elts], ctx=ast.Load())

    # -- operators ----------------------------------------------------------------------------------

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

    def _is_literal(self, node: ast.expr) -> bool:
        """Whether an expression is built from literals, inlined constants and entry scalars only (1.2)."""
        if isinstance(node, ast.Name):
            return node.id in self.literals or node.id not in self.locals
        if isinstance(node, ast.BinOp):
            return self._is_literal(node.left) and self._is_literal(node.right)
        return isinstance(node, ast.Constant)

    def _unaryop(self, node: ast.UnaryOp) -> ast.expr:
        operand = self.expr(node.operand)
        if isinstance(node.op, ast.Not):
            return self.rt("not_", operand)
        if isinstance(node.op, ast.UAdd):
            self.refuse(node, "unary + is not accepted in a kernel")
        if isinstance(operand, ast.Constant):
            return self._fold(
                node, operator.neg if isinstance(node.op, ast.USub) else operator.invert, operand.value
            )
        return self.rt("neg" if isinstance(node.op, ast.USub) else "invert", operand)

    def _fold(self, node: ast.AST, function: Any, *values: Any) -> ast.Constant:
        """Literals and inlined constants fold in Python arithmetic."""
        try:
            return ast.Constant(value=function(*values))
        except (ArithmeticError, TypeError, ValueError) as error:
            self.refuse(node, f"constant expression: {error}")

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
        return self.rt(
            "and_" if isinstance(node.op, ast.And) else "or_", *(self.expr(v) for v in node.values)
        )

    # -- subscripts ---------------------------------------------------------------------------------

    def _subscript(self, node: ast.Subscript) -> ast.expr:
        base = node.value
        if isinstance(base, ast.Attribute) and base.attr == "shape":
            return self.rt("shape_item", self.expr(base), self.expr(node.slice))
        if (
            isinstance(base, ast.Name)
            and base.id not in self.locals
            and not isinstance(self._global(base), (list, tuple))
        ):
            self.refuse(
                node, f"{base.id} is a {type(self._global(base)).__name__}: a body cannot subscript it"
            )
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

    # -- what is known at compile time ----------------------------------------------------------------

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

    # -- calls --------------------------------------------------------------------------------------

    def _call(self, node: ast.Call) -> ast.expr:
        target = self.callee(node.func)
        if isinstance(target, KernelFunction) and target.kind == "template":
            if not target.compiled.returns:
                self.refuse(node, f"{target.name} returns nothing and cannot stand in an expression")
            values = [self.expr(a) for a in self.arguments(node, target, node)]
            return self.rt("call", self.reference(node.func, target), *values)
        if isinstance(target, KernelFunction):
            self.refuse(
                node, f"the call of {target.name} must be a whole statement or the whole right-hand side"
            )
        if target is None:
            self.refuse(
                node, f"{ast.unparse(node.func)}() is not accepted in a kernel (a value has no methods)"
            )
        if isinstance(target, runtime.Construct):
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
                ast.comprehension(
                    target=ast.Name(id=name, ctx=ast.Store()), iter=iterator, ifs=[], is_async=0
                )
            ],
        )


def copy_of(node: ast.expr) -> ast.expr:
    """A fresh copy, since one node must not stand in two trees."""
    return copy.deepcopy(node)
