"""Decorated functions and programs of a kernel file: kind, parameters, source (contracts/pypto_dsl.md 1.1, 1.2).

The Python body is never executed. A `KernelFunction` keeps the syntax tree; `frontend` turns it, once, when
it is first needed, into a function that the runtime executes.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from harness.devices.base import KernelRefused
from harness.devices.emulator import annotations as types
from harness.devices.emulator.enums import FunctionType


@lru_cache(maxsize=256)
def _parse(path: str, stamp: tuple[int, int]) -> ast.Module:
    return ast.parse(Path(path).read_text(encoding="utf-8"), filename=path)


def source_tree(path: str) -> ast.Module:
    """The syntax tree of a kernel file, parsed anew when the file has changed."""
    status = Path(path).stat()
    return _parse(path, (status.st_mtime_ns, status.st_size))


@dataclass(frozen=True)
class Parameter:
    name: str
    type: types.Annotation


class KernelFunction:
    """A function under one of the `pl.jit` decorators, under `pl.inline` or `pl.function`.

    `kind`: "entry" (`pl.jit`), "host", "inline", "template" (`pl.inline`), "incore", "opaque", "extern". `options` are
    the decorator's keywords. `program` is set for a method of a `pl.program` class.
    """

    def __init__(self, python: Callable[..., Any], kind: str, options: Mapping[str, Any]) -> None:
        self.python = python
        self.kind = kind
        self.options = dict(options)
        self.program: Program | None = None
        self.name = python.__name__
        self.file = python.__code__.co_filename
        self.line = python.__code__.co_firstlineno
        self.__name__ = python.__name__
        self.__doc__ = python.__doc__

    def __repr__(self) -> str:
        return f"<pl.jit {self.kind} {self.name} {self.file}:{self.line}>"

    def refuse(self, reason: str, line: int | None = None) -> KernelRefused:
        return KernelRefused(self.file, line or self.line, reason)

    @property
    def namespace(self) -> dict[str, Any]:
        """The globals that names of the body resolve to."""
        return self.python.__globals__

    def named(self, node: ast.expr) -> KernelFunction | None:
        """The kernel function that an expression of the body names: a global, or `self.f` in a method."""
        if isinstance(node, ast.Name):
            found = self.namespace.get(node.id)
            return found if isinstance(found, KernelFunction) else None
        own = self.program is not None and isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if own and node.value.id == self.receiver:  # type: ignore[attr-defined]
            return self.program.functions.get(node.attr)  # type: ignore[union-attr,attr-defined]
        return None

    @property
    def receiver(self) -> str | None:
        """The name of `self` in a method of a program."""
        return self.tree.args.args[0].arg if self.program is not None and self.tree.args.args else None

    @cached_property
    def tree(self) -> ast.FunctionDef:
        for node in ast.walk(source_tree(self.file)):
            if isinstance(node, ast.FunctionDef) and node.name == self.name:
                first = node.decorator_list[0].lineno if node.decorator_list else node.lineno
                if self.line in (first, node.lineno):
                    return node
        raise self.refuse(f"the source of {self.name} was not found")

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Parameters in order with their evaluated annotations."""
        arguments = self.tree.args
        if arguments.vararg or arguments.kwarg or arguments.kwonlyargs or arguments.posonlyargs:
            raise self.refuse(f"{self.name}: *args, **kwargs and keyword-only parameters are not accepted")
        if arguments.defaults:
            raise self.refuse(f"{self.name}: parameters take no default values")
        own = arguments.args[1:] if self.program is not None else arguments.args
        return tuple(Parameter(a.arg, self._annotation(a)) for a in own)

    def _annotation(self, argument: ast.arg) -> types.Annotation:
        if argument.annotation is None:
            raise self.refuse(f"parameter {argument.arg} of {self.name} has no annotation", argument.lineno)
        value = self.python.__annotations__.get(argument.arg)
        if isinstance(value, str):  # the file has `from __future__ import annotations`
            try:
                value = eval(value, self.namespace)
            except Exception as error:
                raise self.refuse(f"annotation of {argument.arg}: {error}", argument.lineno) from error
        if isinstance(value, (types.TensorType, types.ScalarType, types.ArrayType)):
            return value
        from harness.devices.emulator.dtypes import DType

        if isinstance(value, DType):
            return types.ScalarType(value)
        raise self.refuse(f"annotation of {argument.arg} is not a type of pypto.language: {value!r}", argument.lineno)

    @cached_property
    def compiled(self) -> Any:
        """The executable form (`frontend.Compiled`); raises KernelRefused with file, line and reason."""
        from harness.devices.emulator import frontend

        return frontend.compile_function(self)

    def compile(self, *arguments: Any, config: Any = None) -> Any:
        """Check the function for these arguments; a `program.CompiledProgram` that can be called (5.2)."""
        from harness.devices.emulator import program

        return program.compile_program(self, arguments, config)

    def __call__(self, *arguments: Any, config: Any = None) -> Any:
        """Compile and run on the emulator; out and inout arguments are overwritten in place (5.2)."""
        from harness.devices.emulator import program

        return program.call(self, arguments, config)


def reachable(entry: KernelFunction) -> tuple[KernelFunction, ...]:
    """`entry` and every kernel function that its body names, directly or through others, of any file."""
    found = [entry]
    for function in found:
        found += [f for f in called_by(function) if f not in found]
    return tuple(found)


def called_by(function: KernelFunction) -> list[KernelFunction]:
    """The kernel functions that the body names, each once, in order of appearance."""
    nodes = (n for n in ast.walk(function.tree) if isinstance(n, (ast.Name, ast.Attribute)))
    found = (function.named(node) for node in nodes)
    return list(dict.fromkeys(f for f in found if f is not None))


class Program:
    """A class under `pl.program`: its `pl.function` methods call one another as `self.f(…)`."""

    def __init__(self, python: type) -> None:
        self.name = python.__name__
        self.functions = {n: f for n, f in vars(python).items() if isinstance(f, KernelFunction)}
        if not self.functions:
            raise TypeError(f"pl.program {self.name} has no @pl.function methods")
        for function in self.functions.values():
            function.program = self

    @cached_property
    def entry(self) -> KernelFunction:
        """The orchestration method, or else the opaque one that no other calls. Raises KernelRefused without one."""
        methods = list(self.functions.values())
        found = [f for f in methods if f.kind == "entry"]
        if not found:
            inner = {f for caller in methods for f in called_by(caller)}
            found = [f for f in methods if f.kind == "opaque" and f not in inner]
        if len(found) != 1:
            raise methods[0].refuse(
                f"program {self.name} has {len(found)} entries; one method must have type=pl.FunctionType.Orchestration"
            )
        found[0].kind = "entry"
        return found[0]


def function_decorator(
    python: Callable[..., Any] | None = None,
    *,
    type: FunctionType = FunctionType.Opaque,
    strict_ssa: bool = False,
    auto_scope: bool = True,
    **options: Any,
) -> Any:
    """`@pl.function(type=…)`: a function of explicit kind (1.1). Further options choose code generation and are
    kept.
    """
    options |= {"strict_ssa": strict_ssa, "auto_scope": auto_scope}
    if python is None:
        return lambda function: function_decorator(function, type=type, **options)
    if not isinstance(type, FunctionType):
        raise TypeError(f"pl.function(type={type!r}) is no pl.FunctionType")
    return KernelFunction(python, _KINDS.get(type, "incore"), options)


_KINDS = {
    FunctionType.Opaque: "opaque",
    FunctionType.Orchestration: "entry",
    FunctionType.Inline: "inline",
}


class Jit:
    """The decorator object `pl.jit` with its variants `host`, `inline`, `incore`, `opaque`, `extern`."""

    def __init__(self, kind: str, accepted: tuple[str, ...]) -> None:
        self._kind = kind
        self._accepted = accepted

    def __call__(self, function: Callable[..., Any] | None = None, **options: Any) -> Any:
        for name in options:
            if name not in self._accepted:
                raise TypeError(f"pl.jit ({self._kind}) does not take {name}=")
        if function is None:
            return lambda python: KernelFunction(python, self._kind, options)
        return KernelFunction(function, self._kind, options)


class JitFamily(Jit):
    def __init__(self) -> None:
        super().__init__("entry", ("auto_scope",))
        self.host = Jit("host", ("auto_scope",))
        self.inline = Jit("inline", ("auto_scope",))
        self.incore = Jit("incore", ("level",))
        self.opaque = Jit("opaque", ())
        self.extern = _extern


def _extern(python: Callable[..., Any] | None = None, **options: Any) -> Any:
    """`pl.jit.extern` (H): a C++ kernel behind a declared signature. It can be declared; a call of it is refused."""
    if python is None:
        return lambda function: KernelFunction(function, "extern", options)
    return KernelFunction(python, "extern", options)
