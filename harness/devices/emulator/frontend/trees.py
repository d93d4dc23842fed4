"""Plain functions over syntax trees: the names in them, what kind they are, small trees for translated code."""

from __future__ import annotations

import ast
import copy

from harness.devices.emulator import runtime


def stored_names(body: list[ast.stmt]) -> set[str]:
    """Every name that the statements assign, at any depth."""
    module = ast.Module(body=body, type_ignores=[])
    return {n.id for n in ast.walk(module) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def loaded_names(body: list[ast.stmt]) -> set[str]:
    """Every name that the statements read, at any depth."""
    module = ast.Module(body=body, type_ignores=[])
    return {n.id for n in ast.walk(module) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def reads_block_index(body: list[ast.stmt]) -> bool:
    module = ast.Module(body=body, type_ignores=[])
    return any(isinstance(n, ast.Attribute) and n.attr == "get_block_idx" for n in ast.walk(module))


def creates_tensor(value: ast.expr) -> bool:
    """Whether a value is `pl.create_tensor(…)` or one of its other spellings."""
    call = value.func if isinstance(value, ast.Call) else None
    return isinstance(call, ast.Attribute) and call.attr in ("create_tensor", "create")


def is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def names_store(names: list[str], as_tuple: bool) -> ast.expr:
    if not as_tuple:
        return ast.Name(id=names[0], ctx=ast.Store())
    return ast.Tuple(elts=[ast.Name(id=n, ctx=ast.Store()) for n in names], ctx=ast.Store())


def names_load(names: list[str]) -> ast.expr:
    return ast.Tuple(elts=[ast.Name(id=n, ctx=ast.Load()) for n in names], ctx=ast.Load())


def constant_keyword(name: str, value: object) -> ast.keyword:
    return ast.keyword(arg=name, value=ast.parse(repr(value), mode="eval").body)


def unassigned(names: set[str], at: ast.AST) -> list[ast.stmt]:
    """A loop of zero iterations leaves names without a value; Python must not trip over them where they are not
    used.
    """
    if not names:
        return []
    value = ast.Attribute(value=ast.Name(id=runtime.ALIAS, ctx=ast.Load()), attr="UNASSIGNED", ctx=ast.Load())
    targets: list[ast.expr] = [ast.Name(id=n, ctx=ast.Store()) for n in sorted(names)]
    return [ast.copy_location(ast.Assign(targets=targets, value=value), at)]


def copy_of(node: ast.expr) -> ast.expr:
    """A fresh copy, since one node must not stand in two trees."""
    return copy.deepcopy(node)
