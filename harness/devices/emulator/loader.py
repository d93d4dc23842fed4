"""Executes a kernel file in a fresh module: the emulator is `pypto.language`, the sizes are `kernels.sizes`."""

from __future__ import annotations

import importlib.util
import sys
import tokenize
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.devices.base import KernelRefused
from harness.devices.emulator.functions import KernelFunction
from harness.devices.emulator.process import user_place, user_process

_SIZES = Path(__file__).parents[3] / "kernels" / "sizes.py"


def load_functions(path: Path, sizes: Mapping[str, Any], tile_set: str | None) -> dict[str, KernelFunction]:
    """The decorated functions of a kernel file, by name, for one configuration.

    The file may be a whole script: modules beside it are found, `golden` is answered by Goldengate, its command line
    is empty, and its `__name__` is not `__main__`. Raises KernelRefused (file, line, reason) for a syntax error, for
    an error while the module is executed, and for everything that the front end refuses in any of its functions.
    """
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
    modules = _modules(_sizes_module(sizes, tile_set))
    with user_process(path, [str(path)], modules | {module.__name__: module}, [_KernelImports()]):
        try:
            exec(code, module.__dict__)
        except KernelRefused:
            raise
        except (Exception, SystemExit) as error:
            raise KernelRefused(*user_place(error, path), f"{type(error).__name__}: {error}") from error
    functions = {
        n: f for n, f in module.__dict__.items() if isinstance(f, KernelFunction) and f.file == str(path)
    }
    for function in functions.values():
        function.compiled  # noqa: B018  refusals of every function, before anything runs
    return functions


def _sizes_module(sizes: Mapping[str, Any], tile_set: str | None) -> ModuleType:
    """A fresh `kernels.sizes` with the values of one configuration."""
    spec = importlib.util.spec_from_file_location("kernels.sizes", _SIZES)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    unknown = sorted(set(sizes) - set(vars(module)))
    if unknown:
        raise ValueError(f"kernels/sizes.py has no {', '.join(unknown)}")
    if tile_set is not None:
        if tile_set not in module.TILE_SETS:
            raise ValueError(f"unknown tile set {tile_set!r}; known: {', '.join(module.TILE_SETS)}")
        module.__dict__["TILE_SET"] = tile_set
    module.__dict__.update(sizes)
    return module


class _KernelImports:
    """Import hook: `kernels.<op>` is executed anew while a kernel file loads, so that it sees this configuration."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if not name.startswith("kernels."):
            return None
        file = _SIZES.parent / f"{name.removeprefix('kernels.')}.py"
        return importlib.util.spec_from_file_location(name, file) if file.is_file() else None


def _modules(sizes: ModuleType) -> dict[str, ModuleType]:
    """What a kernel file may import, by name, beside what Python finds."""
    from harness.foreign import modules  # it runs kernels and so imports this module

    package = ModuleType("kernels")
    package.__path__ = [str(_SIZES.parent)]
    package.__dict__["sizes"] = sizes
    return {**modules.build(), "kernels": package, "kernels.sizes": sizes}
