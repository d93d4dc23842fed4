"""Which names a statement uses for the last time: what the on-chip allocator knows (contracts/pypto_dsl.md 3.12).

A backward pass over structured code. Where it cannot tell, a name counts as live.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

_Releases = dict[ast.stmt, frozenset[str]]


def last_uses(body: Sequence[ast.stmt], own: set[str], kept: set[str]) -> _Releases:
    """Per statement of `body`, at any depth, the names of `own` that nothing after it reads. `kept` live on after
    it.
    """
    found: _Releases = {}
    _block(body, frozenset(kept), frozenset(own), found, frozenset())
    return found


def _block(
    body: Sequence[ast.stmt], after: frozenset[str], own: frozenset[str], found: _Releases, leaving: frozenset[str]
) -> frozenset[str]:
    """The names that are live before `body`. `leaving` are live where break and continue lead."""
    live = after
    for statement in reversed(body):
        live = _statement(statement, live, own, found, leaving)
    return live


def _statement(
    node: ast.stmt, after: frozenset[str], own: frozenset[str], found: _Releases, leaving: frozenset[str]
) -> frozenset[str]:
    mentioned = frozenset(n.id for n in ast.walk(node) if isinstance(n, ast.Name))
    if isinstance(node, (ast.Break, ast.Continue)):
        return after | leaving
    if isinstance(node, ast.Return):
        return mentioned
    found[node] = (mentioned & own) - after
    if isinstance(node, ast.If):
        branches = [_block(part, after, own, found, leaving) for part in (node.body, node.orelse)]
        return branches[0] | branches[1] | _loaded(node.test)
    if isinstance(node, (ast.For, ast.While)):
        if isinstance(node, ast.For) and _is_nested(node):
            return after | _loaded(node)  # a body of its own, which is analysed by itself
        head = _loaded(node.iter if isinstance(node, ast.For) else node.test)
        around = after | head
        for _ in range(2):  # what the next iteration reads is live at the end of this one
            around |= _block(node.body, around, own, {}, around)
        _block(node.body, around, own, found, around)
        return around
    if isinstance(node, ast.With):
        return after | _loaded(node)
    stored = frozenset(n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
    return (after - stored) | _loaded(node)


def _is_nested(node: ast.For) -> bool:
    return isinstance(node.iter, ast.Call) and getattr(node.iter.func, "attr", "") in ("spmd", "split_aiv")


def _loaded(node: ast.AST) -> frozenset[str]:
    return frozenset(n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))
