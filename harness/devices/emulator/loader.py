"""Executes a kernel file in a fresh module: the emulator is `pypto.language`, the sizes are `kernels.sizes`."""

from __future__ import annotations

import importlib.util
import sys
import tokenize
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.devices.base import KernelRefused
from harness.devices.emulator import language
from harness.devices.emulator.functions import KernelFunction

_SIZES = Path(__file__).parents[3] / "kernels" / "sizes.py"


def load_functions(path: Path, sizes: Mapping[str, Any], tile_set: str | None) -> dict[str, KernelFunction]:
    """The decorated functions of a kernel file, by name, for one configuration.

    Raises KernelRefused (file, line, reason) for a syntax error, for an error while the module is executed, and for
    everything that the front end refuses in any of its functions.
    """
    path = path.resolve()
    try:
        with tokenize.open(path) as file:
            text = file.read()
        code = compile(text, str(path), "exec")
    except SyntaxError as error:
        raise KernelRefused(str(path), error.lineno or 0, f"syntax error: {error.msg}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise KernelRefused(str(path), 0, f"cannot be read: {error}") from error
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    with _bound_modules(_sizes_module(sizes, tile_set)):
        try:
            exec(code, module.__dict__)
        except KernelRefused:
            raise
        except Exception as error:
            raise KernelRefused(
                str(path), _line_in(error, str(path)), f"{type(error).__name__}: {error}"
            ) from error
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


def _line_in(error: BaseException, path: str) -> int:
    """The line of the innermost frame of `path` in the traceback of an error."""
    line = 0
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


class _KernelImports:
    """Import hook: `kernels.<op>` is executed anew while a kernel file loads, so that it sees this configuration."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if not name.startswith("kernels."):
            return None
        file = _SIZES.parent / f"{name.removeprefix('kernels.')}.py"
        return importlib.util.spec_from_file_location(name, file) if file.is_file() else None


@contextmanager
def _bound_modules(sizes: ModuleType) -> Iterator[None]:
    """Bind the emulator's modules in sys.modules for the duration of a load, then put back what was there."""

    def ours(name: str) -> bool:
        return name.split(".")[0] in ("pypto", "kernels")

    saved = {n: m for n, m in sys.modules.items() if ours(n)}
    for name in saved:
        del sys.modules[name]
    package = ModuleType("kernels")
    package.__path__ = [str(_SIZES.parent)]
    package.__dict__["sizes"] = sizes
    sys.modules.update({**language.build(), "kernels": package, "kernels.sizes": sizes})
    hook = _KernelImports()
    sys.meta_path.insert(0, hook)  # type: ignore[arg-type]
    try:
        yield
    finally:
        sys.meta_path.remove(hook)  # type: ignore[arg-type]
        for name in [n for n in sys.modules if ours(n)]:
            del sys.modules[name]
        sys.modules.update(saved)
