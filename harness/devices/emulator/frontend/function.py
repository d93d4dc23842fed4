"""A kernel function as a whole: its body, its dynamic sizes, the parameters it hands back (pypto_dsl.md 1.4)."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness.devices.emulator import runtime
from harness.devices.emulator.annotations import DynVar, TensorType
from harness.devices.emulator.frontend.statements import Statements
from harness.devices.emulator.functions import KernelFunction


@dataclass(frozen=True)
class Compiled:
    """`run(*arguments)` executes the body. `writebacks` are the parameters whose rebinding reaches the caller
    (1.4); `run` then returns (value, their final values). `returns` tells whether there is a value."""

    run: Callable[..., Any]
    writebacks: tuple[str, ...]
    returns: bool


def compile_function(function: KernelFunction) -> Compiled:
    """Translate `function`. Raises KernelRefused."""
    tree = function.tree
    if function.kind == "extern":  # its calls are refused
        return Compiled(_no_source, (), True)
    names = [p.name for p in function.parameters]
    writebacks = _writebacks(function, names)
    statements = Statements(function, names, writebacks, _dynamic_dims(function))
    body = statements.body(tree.body)
    compiled = ast.FunctionDef(
        name=tree.name,
        args=ast.arguments(
            posonlyargs=[], args=[ast.arg(arg=n) for n in names], kwonlyargs=[], kw_defaults=[], defaults=[]
        ),
        body=body,
        decorator_list=[],
    )
    if hasattr(compiled, "type_params"):
        compiled.type_params = []
    module = ast.Module(body=[ast.copy_location(compiled, tree)], type_ignores=[])
    ast.fix_missing_locations(module)
    function.namespace[runtime.ALIAS] = runtime
    scope: dict[str, Any] = {}
    exec(compile(module, function.file, "exec"), function.namespace, scope)
    return Compiled(scope[tree.name], writebacks, statements.returns)


def _no_source(*_: Any) -> None:
    raise TypeError("a function under pl.jit.extern has no body to execute")


def _dynamic_dims(function: KernelFunction) -> dict[str, tuple[str, int]]:
    """For each dynamic variable, the parameter and axis that hold its runtime size."""
    dims: dict[str, tuple[str, int]] = {}
    for parameter in function.parameters:
        if isinstance(parameter.type, TensorType):
            for axis, dim in enumerate(parameter.type.shape):
                if isinstance(dim, DynVar):
                    dims.setdefault(dim.name, (parameter.name, axis))
    for node in ast.walk(function.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "bind_dynamic":
            base = node.func.value
            if not (isinstance(base, ast.Name) and len(node.args) == 2 and isinstance(node.args[0], ast.Constant)
                    and isinstance(node.args[1], ast.Name)):  # fmt: skip
                raise function.refuse("bind_dynamic takes an axis number and a pl.dynamic variable", node.lineno)
            variable = function.namespace.get(node.args[1].id)
            if not isinstance(variable, DynVar):
                raise function.refuse(f"{node.args[1].id} is not a pl.dynamic variable", node.lineno)
            dims.setdefault(variable.name, (base.id, int(node.args[0].value)))  # type: ignore[arg-type]
    return dims


def _writebacks(function: KernelFunction, names: list[str]) -> tuple[str, ...]:
    """Parameters of an inline that are rebound below the top level of its body and not before at the top level."""
    if function.kind != "inline":  # a template hands nothing back
        return ()
    settled: set[str] = set()
    found: list[str] = []
    for statement in function.tree.body:
        nested = [n for child in ast.iter_child_nodes(statement) for n in ast.walk(copy.copy(child))]
        if isinstance(statement, (ast.Assign, ast.AnnAssign)):
            settled |= {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        elif isinstance(statement, (ast.For, ast.While, ast.If, ast.With)) and not _is_spmd(statement):
            stored = {n.id for n in nested if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            found += [n for n in names if n in stored - settled and n not in found]
    return tuple(found)


def _is_spmd(statement: ast.stmt) -> bool:
    """Block bodies are private: an assignment there never reaches the caller."""
    return (
        isinstance(statement, ast.For)
        and isinstance(statement.iter, ast.Call)
        and (ast.unparse(statement.iter.func).endswith(".spmd"))
    )
