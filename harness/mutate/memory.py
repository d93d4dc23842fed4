"""Operators on where things are: indices, bounds, tiles, tokens, lanes, experts, ranks."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from harness.mutate.source import Edit, Edits, Source, keyword, operation

_PLACES = {"read": (1,), "write": (1,), "slice": (2,), "assemble": (2,), "put": (3, 4, 5), "notify": (2, 3)}
_PLACES |= {"wait": (1, 2), "remote_load": (2,), "remote_store": (2,)}
_EXTENTS = {"set_validshape": (1, 2)}
_PATTERNS = {"P0101": "P1010", "P1010": "P0101"}
_EXPERT = re.compile(r"e|ex|expert\w*|eid\w*")
_RANK = re.compile(r"(my_)?rank|peer|owner|source|dst|src|target_rank")
_ROTATION = re.compile(r"rotat|rope|rotary")
_SIGNS = {"add": "sub", "sub": "add"}


def index(source: Source, node: ast.AST) -> Iterator[Edits]:
    """A window of a tile, or an element, one further or one before."""
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, (ast.Load, ast.Store)):
        for part in node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]:
            if isinstance(part, ast.Slice) and part.lower is not None and part.upper is not None:
                for change in ("+ 1", "- 1"):
                    yield (_moved(source, part.lower, change), _moved(source, part.upper, change))
            elif isinstance(node.slice, ast.Tuple):
                for change in ("+ 1", "- 1"):
                    yield (_moved(source, part, change),)
    if isinstance(node, ast.Call):
        for position in _PLACES.get(operation(node), ()):
            if position < len(node.args):
                place = node.args[position]
                for element in place.elts if isinstance(place, ast.List) else [place]:
                    for change in ("+ 1", "- 1"):
                        yield (_moved(source, element, change),)


def bound(source: Source, node: ast.AST) -> Iterator[Edits]:
    """A valid extent one shorter or one longer."""
    if not isinstance(node, ast.Call):
        return
    valid = keyword(node, "valid_shape")
    extents = list(valid.elts) if isinstance(valid, ast.List) else []
    extents += [node.args[i] for i in _EXTENTS.get(operation(node), ()) if i < len(node.args)]
    for extent in extents:
        for change in ("- 1", "+ 1"):
            yield (_moved(source, extent, change),)


def missing_token(source: Source, node: ast.AST) -> Iterator[Edits]:
    """The last row of a stored tile is not written."""
    if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Subscript):
        return
    windows = node.targets[0].slice
    if not isinstance(windows, ast.Tuple) or len(windows.elts) != 2:
        return
    rows, columns = (_extent(source, part) for part in windows.elts)
    if rows and columns and operation(node.value) != "set_validshape":
        value = f"pl.set_validshape({source.of(node.value)}, {rows} - 1, {columns})"
        yield (source.replace(node.value, value),)


def stale_tile(source: Source, node: ast.AST) -> Iterator[Edits]:
    """A tile read in a loop is the first one each time: one name in the place of one read does not move."""
    for place in _places_read(source, node):
        moving = set().union(*(_moving(a) for a in source.around(node) if isinstance(a, (ast.For, ast.With))))
        uses = [n for n in ast.walk(place) if isinstance(n, ast.Name) and n.id in moving]
        for name in dict.fromkeys(use.id for use in uses):
            yield tuple(source.replace(use, "0") for use in uses if use.id == name)


def _places_read(source: Source, node: ast.AST) -> list[ast.AST]:
    """Windows of a subscript that is loaded, and the offsets of a slice or of an element that is read."""
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
        return list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
    if isinstance(node, ast.Call) and operation(node) in ("slice", "read"):
        offsets = node.args[_PLACES[operation(node)][0]]
        return list(offsets.elts) if isinstance(offsets, ast.List) else [offsets]
    return []


def _moving(loop: ast.For | ast.With) -> set[str]:
    """The names that change from one iteration of a loop to the next: its variable and what follows from it."""
    names: set[str] = set()
    if isinstance(loop, ast.For) and isinstance(loop.target, ast.Name):
        names.add(loop.target.id)
    for statement in loop.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            value = statement.value
            follows = any(isinstance(n, ast.Name) and n.id in names for n in ast.walk(value))
            numbered = any(operation(n) == "get_block_idx" for n in ast.walk(value))
            if (follows or numbered) and not isinstance(value, ast.Call):
                names.add(statement.targets[0].id)
    return names


def rotary_sign(source: Source, node: ast.AST) -> Iterator[Edits]:
    """The other sign in a rotation."""
    name = operation(node)
    if name in _SIGNS and isinstance(node, ast.Call) and _rotates(source, node):
        func = source.of(node.func)
        yield (source.replace(node.func, func[: -len(name)] + _SIGNS[name]),)


def rotary_pair(source: Source, node: ast.AST) -> Iterator[Edits]:
    """The other lane of a pair."""
    if isinstance(node, ast.Attribute) and node.attr in _PATTERNS:
        text = source.of(node)
        yield (source.replace(node, text[: -len(node.attr)] + _PATTERNS[node.attr]),)


def top_k(source: Source, node: ast.AST) -> Iterator[Edits]:
    """The smallest for the largest."""
    if isinstance(node, ast.Call) and operation(node) in ("sort32", "sort", "topk"):
        yield (source.replace(node.args[0], f"pl.neg({source.of(node.args[0])})"),)


def wrong_expert(source: Source, node: ast.AST) -> Iterator[Edits]:
    """The neighbouring expert."""
    yield from _neighbour(source, node, _EXPERT)


def wrong_rank(source: Source, node: ast.AST) -> Iterator[Edits]:
    """The neighbouring rank."""
    yield from _neighbour(source, node, _RANK)


def _neighbour(source: Source, node: ast.AST, names: re.Pattern[str]) -> Iterator[Edits]:
    """2i for 2i + 1 and the other way round, which stays in range."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and names.fullmatch(node.id):
        yield (source.replace(node, f"({node.id} + 1 - {node.id} % 2 * 2)"),)


def _rotates(source: Source, node: ast.AST) -> bool:
    return any(isinstance(a, ast.FunctionDef) and _ROTATION.search(a.name) for a in source.around(node))


def _moved(source: Source, node: ast.expr, change: str) -> Edit:
    return source.replace(node, f"{source.of(node)} {change}")


def _extent(source: Source, part: ast.expr) -> str:
    """N of a window `a : a + N`, empty where it is one element or no such window."""
    if not isinstance(part, ast.Slice) or part.lower is None or part.upper is None:
        return ""
    lower, upper = source.of(part.lower), source.of(part.upper)
    extent = upper if lower == "0" else upper.removeprefix(f"{lower} + ")
    return "" if extent == "1" or (extent == upper and lower != "0") else extent
