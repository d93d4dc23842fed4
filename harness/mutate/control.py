"""Operators on control flow and order: loops, comparisons, guards, signals, dependencies."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from harness.mutate.source import Edits, Source, keyword, operation, without

_LOOPS = ("range", "pipeline", "parallel")
_BLOCK_INDEX = ("get_block_idx",)
_COMPARISONS = {
    ast.Lt: ("<=",),
    ast.LtE: ("<",),
    ast.Gt: (">=",),
    ast.GtE: (">",),
    ast.Eq: ("!=",),
    ast.NotEq: ("==",),
}
_CLAMPS = ("min", "max", "minimum", "maximum")
_SIGNALS = ("notify", "wait", "put", "remote_store", "barrier")


def loop_first(source: Source, node: ast.AST) -> Iterator[Edits]:
    """The first iteration of a loop is left out."""
    if _is_loop(source, node, _LOOPS) and isinstance(node, ast.Call):
        if len(node.args) == 1:
            yield (source.replace(node.args[0], f"1, {source.of(node.args[0])}"),)
        else:
            yield (source.replace(node.args[0], f"{source.of(node.args[0])} + 1"),)


def loop_last(source: Source, node: ast.AST) -> Iterator[Edits]:
    """The last iteration of a loop is left out, or there is one too many."""
    if _is_loop(source, node, _LOOPS) and isinstance(node, ast.Call):
        stop = node.args[min(1, len(node.args) - 1)]
        for change in ("- 1", "+ 1"):
            yield (source.replace(stop, f"{source.of(stop)} {change}"),)


def block(source: Source, node: ast.AST) -> Iterator[Edits]:
    """The first or the last block of a dispatch is left out."""
    if not _is_loop(source, node, ("spmd",)) or not isinstance(node, ast.Call):
        return
    count = node.args[0]
    fewer = source.replace(count, f"{source.of(count)} - 1")
    yield (fewer,)
    shifted = [source.replace(use, f"({source.of(use)} + 1)") for use in _block_numbers(source, node)]
    if shifted:
        yield (fewer, *shifted)


def _block_numbers(source: Source, dispatch: ast.Call) -> list[ast.expr]:
    """Where the body of a dispatch reads the number of its block."""
    holder = source.parents[dispatch]
    body = holder if isinstance(holder, ast.For) else source.statement(dispatch)
    assert isinstance(body, (ast.For, ast.With))
    inside = [node for statement in body.body for node in ast.walk(statement)]
    if isinstance(body, ast.For) and isinstance(body.target, ast.Name):
        name = body.target.id
        return [n for n in inside if isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Load)]
    return [n for n in inside if isinstance(n, ast.Call) and operation(n) in _BLOCK_INDEX]


def comparison(source: Source, node: ast.AST) -> Iterator[Edits]:
    """`<` for `<=` and so on, equal for unequal."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        for sign in _COMPARISONS.get(type(node.ops[0]), ()):
            text = f"{source.of(node.left)} {sign} {source.of(node.comparators[0])}"
            yield (source.replace(node, text),)


def missing_guard(source: Source, node: ast.AST) -> Iterator[Edits]:
    """A condition that always or never holds; a clamp, a valid shape or a fill left out."""
    if isinstance(node, ast.If):
        yield (source.replace(node.test, "True"),)
        yield (source.replace(node.test, "False"),)
    if not isinstance(node, ast.Call):
        return
    name = operation(node)
    if name in _CLAMPS and len(node.args) == 2:
        for argument in node.args:
            yield (source.replace(node, f"({source.of(argument)})"),)
    if name in ("set_validshape", "fillpad"):
        yield (source.replace(node, source.of(node.args[0])),)
    if keyword(node, "valid_shape") is not None:
        yield (source.replace(node, without(source, node, "valid_shape")),)


def missing_signal(source: Source, node: ast.AST) -> Iterator[Edits]:
    """A notify, a wait or a transfer left out."""
    if isinstance(node, ast.Expr) and operation(node.value) in _SIGNALS:
        yield (source.replace(node, "pass"),)


def missing_dep(source: Source, node: ast.AST) -> Iterator[Edits]:
    """A dependency left out of `deps=[…]`."""
    if not isinstance(node, ast.Call):
        return
    deps = keyword(node, "deps")
    if isinstance(deps, ast.List):
        for position in range(len(deps.elts)):
            kept = [source.of(task) for i, task in enumerate(deps.elts) if i != position]
            yield (source.replace(deps, f"[{', '.join(kept)}]"),)


def missing_statement(source: Source, node: ast.AST) -> Iterator[Edits]:
    """A write to memory left out; an accumulation that keeps what it had."""
    if isinstance(node, ast.Expr) and operation(node.value) == "write":
        yield (source.replace(node, "pass"),)
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target = node.targets[0]
        if isinstance(target, ast.Subscript) or (isinstance(target, ast.Name) and _uses(node.value, target.id)):
            yield (source.replace(node, "pass"),)


def _uses(node: ast.AST, name: str) -> bool:
    return any(isinstance(n, ast.Name) and n.id == name for n in ast.walk(node))


def _is_loop(source: Source, node: ast.AST, names: tuple[str, ...]) -> bool:
    """Whether a node is the header of a loop or dispatch of one of these names."""
    if operation(node) not in names or not isinstance(node, ast.Call) or not node.args:
        return False
    holder = source.parents[node]
    return isinstance(holder, ast.withitem) or (isinstance(holder, ast.For) and holder.iter is node)
