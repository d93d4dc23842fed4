"""Operators on values: rounding, arithmetic, scales, constants, epsilons, axes."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from itertools import pairwise

from harness.mutate.source import Edits, Source, keyword, operation

MODES = ("rint", "round", "trunc", "floor", "ceil", "odd")
_SWAPPED = {"add": "sub", "sub": "add", "mul": "div", "div": "mul", "maximum": "minimum", "minimum": "maximum"}
_SWAPPED |= {"max": "min", "min": "max", "row_max": "row_min", "row_min": "row_max", "col_max": "col_min"}
_SWAPPED |= {
    f"{axis}_expand_{one}": f"{axis}_expand_{other}"
    for axis in ("row", "col")
    for one, other in (("add", "sub"), ("sub", "add"), ("mul", "div"), ("div", "mul"))
}
_UNARY = ("recip", "neg", "abs", "sqrt", "exp", "log", "rsqrt")
_ROUNDED = ("add", "sub", "mul", "div", "recip", "sqrt", "exp", "log", "row_sum", "col_sum", "matmul", "matmul_acc")
_PRODUCTS = ("mul", "row_expand_mul", "col_expand_mul")
_UNORDERED = ("sub", "div", "row_expand_sub", "row_expand_div", "col_expand_sub", "col_expand_div", "matmul")
_LARGEST_EPSILON = 1e-3
_INT8_MAX = 127.0
_BF16_FRACTION = 7
_LARGEST_CONSTANT = 1e30  # beyond it constants stand for infinity


def cast_mode(source: Source, node: ast.AST) -> Iterator[Edits]:
    """A rounding cast with each of the other modes. A cast without a mode only widens."""
    if operation(node) == "cast" and isinstance(node, ast.Call):
        mode = keyword(node, "mode")
        if isinstance(mode, ast.Constant) and mode.value in MODES:
            for other in MODES:
                if other != mode.value:
                    yield (source.replace(mode, f'"{other}"'),)


def dropped_rounding(source: Source, node: ast.AST) -> Iterator[Edits]:
    """A cast of what was cast before, directly or through a name: the value is taken from before one of them."""
    if operation(node) != "cast" or not isinstance(node, ast.Call):
        return
    inner = _definition(source, node.args[0])
    if operation(inner) == "cast" and isinstance(inner, ast.Call):
        unrounded = source.of(inner.args[0])
        yield (source.replace(node, unrounded),)
        yield (source.replace(node.args[0], unrounded),)


def added_rounding(source: Source, node: ast.AST) -> Iterator[Edits]:
    """A result that the contract keeps in FP32 goes through BF16."""
    name = operation(node)
    if name in _ROUNDED or (name.startswith(("row_expand_", "col_expand_")) and name in _SWAPPED):
        rounded = f'pl.cast(pl.cast({source.of(node)}, pl.BF16, mode="rint"), pl.FP32)'
        yield (source.replace(node, rounded),)


def arithmetic(source: Source, node: ast.AST) -> Iterator[Edits]:
    """Add for sub, max for min, times for divided by; a function of one argument left out; a term left out."""
    name = operation(node)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and name:
        if name in _SWAPPED:
            func = source.of(node.func)
            yield (source.replace(node.func, func[: -len(name)] + _SWAPPED[name]),)
        if name in _UNARY:
            yield (source.replace(node, source.of(node.args[0])),)
        if name in ("add", "sub"):
            for argument in node.args[:2]:
                if source.constant(argument) is None:
                    yield (source.replace(node, source.of(argument)),)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub)):
        sign = "-" if isinstance(node.op, ast.Add) else "+"
        yield (source.replace(node, f"({source.of(node.left)} {sign} {source.of(node.right)})"),)


def swapped_operands(source: Source, node: ast.AST) -> Iterator[Edits]:
    """Two operands whose order matters; two neighbouring arguments of a kernel function."""
    pairs: list[tuple[ast.expr, ast.expr]] = []
    name = operation(node)
    if isinstance(node, ast.Call) and name in _UNORDERED:
        pairs = [(node.args[0], node.args[1])]
    elif isinstance(node, ast.Call) and name == "matmul_acc":
        pairs = [(node.args[1], node.args[2])]
    elif isinstance(node, ast.Call) and not name and isinstance(node.func, ast.Name):
        named = [argument for argument in node.args if isinstance(argument, ast.Name)]
        pairs = list(pairwise(named))
    elif isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Sub, ast.FloorDiv, ast.Mod)):
        pairs = [(node.left, node.right)]
    for one, other in pairs:
        yield (source.replace(one, f"{_grouped(source, other)}"), source.replace(other, f"{_grouped(source, one)}"))


def scale(source: Source, node: ast.AST) -> Iterator[Edits]:
    """A factor left out, or applied twice."""
    if operation(node) in _PRODUCTS and isinstance(node, ast.Call):
        first, second = node.args[:2]
        func = source.of(node.func)
        yield (source.replace(node, source.of(first)),)
        yield (source.replace(node, f"{func}({source.of(node)}, {source.of(second)})"),)
        if operation(node) == "mul":
            yield (source.replace(node, source.of(second)),)


def constant_ulp(source: Source, node: ast.AST) -> Iterator[Edits]:
    """A floating point constant one BF16 step up and down.

    A name is multiplied by what does so in the configuration that was loaded, so that in another one it is not merely
    the constant of this one.
    """
    value = source.constant(node)
    if value is None or value == 0.0 or abs(value) > _LARGEST_CONSTANT:
        return
    step = 2.0 ** (math.floor(math.log2(abs(value))) - _BF16_FRACTION)
    for other in (value + step, value - step):
        text = repr(other) if isinstance(node, ast.Constant) else f"({source.of(node)} * {other / value!r})"
        yield (source.replace(node, text),)


def int8_range(source: Source, node: ast.AST) -> Iterator[Edits]:
    """126 or 128 for 127."""
    if source.constant(node) == _INT8_MAX:
        yield (source.replace(node, "126.0"),)
        yield (source.replace(node, "128.0"),)


def epsilon(source: Source, node: ast.AST) -> Iterator[Edits]:
    """An epsilon dropped, or added on the other side of the function that it stands in."""
    value = source.constant(node)
    if value is None or not 0.0 < value <= _LARGEST_EPSILON:
        return
    yield (source.replace(node, "0.0"),)
    added = source.parents[node]
    if operation(added) != "add" or not isinstance(added, ast.Call) or added.args[1] is not node:
        return
    bare, text = source.of(added.args[0]), source.of(node)
    outer = source.parents[added]
    if isinstance(outer, ast.Call) and operation(outer) and added in outer.args:
        parts = [bare if argument is added else source.of(argument) for argument in outer.args]
        parts += [f"{k.arg}={source.of(k.value)}" for k in outer.keywords]
        yield (source.replace(outer, f"pl.add({source.of(outer.func)}({', '.join(parts)}), {text})"),)
    inner = added.args[0]
    if isinstance(inner, ast.Call) and operation(inner) and inner.args:
        inside = f"pl.add({source.of(inner.args[0])}, {text})"
        parts = [inside, *(source.of(a) for a in inner.args[1:])]
        yield (source.replace(added, f"{source.of(inner.func)}({', '.join(parts)})"),)


def axis(source: Source, node: ast.AST) -> Iterator[Edits]:
    """Rows for columns and columns for rows."""
    name = operation(node)
    if isinstance(node, ast.Call) and name.startswith(("row_", "col_")):
        func = source.of(node.func)
        other = ("col_" if name.startswith("row_") else "row_") + name[4:]
        yield (source.replace(node.func, func[: -len(name)] + other),)
    if isinstance(node, ast.Call) and name == "transpose" and len(node.args) == 3:
        yield (source.replace(node, source.of(node.args[0])),)


def _definition(source: Source, node: ast.expr) -> ast.AST:
    """What a name was last assigned above a node; the node itself where it is no name."""
    if not isinstance(node, ast.Name):
        return node
    above: ast.AST = node
    function = next(a for a in source.around(node) if isinstance(a, ast.FunctionDef))
    for statement in ast.walk(function):
        if (
            isinstance(statement, ast.Assign)
            and isinstance(statement.targets[0], ast.Name)
            and statement.targets[0].id == node.id
            and statement.lineno < node.lineno
            and (above is node or statement.lineno > above.lineno)  # type: ignore[attr-defined]
        ):
            above = statement
    return above.value if isinstance(above, ast.Assign) else node


def _grouped(source: Source, node: ast.expr) -> str:
    text = source.of(node)
    return f"({text})" if isinstance(node, ast.BinOp) else text
