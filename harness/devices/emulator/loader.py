"""Executes a kernel file in a fresh module: the emulator is `pypto.language`, the sizes are `kernels.sizes`."""

from __future__ import annotations

import sys
import tokenize
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.devices.base import KernelRefused
from harness.devices.emulator.functions import KernelFunction, Program
from harness.devices.kernel_modules import KernelImports, kernel_modules
from harness.devices.process import user_place, user_process


def load_functions(path: Path, sizes: Mapping[str, Any], tile_set: str | None) -> dict[str, KernelFunction]:
    """The decorated functions of a kernel file, by name, for one configuration; a `pl.program` class is its entry.

    The file may be a whole script: modules beside it are found, `golden` is answered by Goldengate, its command line
    is empty, and its `__name__` is not `__main__`. Raises KernelRefused (file, line, reason) for a syntax error, for
    an error while the module is executed, and for everything that the front end refuses in any of its functions.
    """
    from harness.foreign import modules as answered  # it runs kernels and so imports this module

    path = path.resolve()
    try:
        with tokenize.open(path) as file:
            text = file.read()
        code = compile(text, str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        raise KernelRefused(str(path), error.lineno or 0, f"syntax error: {error.msg}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise KernelRefused(str(path), 0, f"cannot be read: {error}") from error
    shadowing = path.stem in sys.stdlib_module_names  # such a file must not stand for Python's own module
    module = ModuleType(f"kernel_{path.stem}" if shadowing else path.stem)
    module.__file__ = str(path)
    modules = answered.build() | kernel_modules(sizes, tile_set) | {module.__name__: module}
    with user_process(path, [str(path)], modules, [KernelImports()]):
        try:
            exec(code, module.__dict__)
        except KernelRefused:
            raise
        except (Exception, SystemExit) as error:
            raise KernelRefused(*user_place(error, path), f"{type(error).__name__}: {error}") from error
    functions = {n: f for n, f in module.__dict__.items() if isinstance(f, KernelFunction) and f.file == str(path)}
    for name, program in [(n, p) for n, p in module.__dict__.items() if isinstance(p, Program)]:
        if program.entry.file == str(path):
            functions |= {f"{name}.{n}": f for n, f in program.functions.items() if f is not program.entry}
            functions[name] = program.entry
    for function in functions.values():
        function.compiled  # noqa: B018  refusals of every function, before anything runs
    return functions
