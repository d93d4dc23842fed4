"""What a user's file sees and changes of this process while it is executed, put back afterwards.

The directory of the file comes first on the module path, so that modules beside it are found; modules of the same
name that were loaded before are hidden. What the file has imported from outside the installation is forgotten at the
end: the next file, or the next configuration, imports it anew.
"""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_INSTALLED = tuple(
    str(Path(sysconfig.get_path(name)).resolve()) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")
)


@contextmanager
def user_process(
    path: Path, argv: Sequence[str], modules: Mapping[str, ModuleType], finders: Sequence[Any] = ()
) -> Iterator[None]:
    """Bind `modules` by name, the command line `argv` and the directory of `path`; restore everything at the end.

    `finders`: import hooks that are asked first. Restored: sys.modules but for installed packages, sys.path,
    sys.meta_path, sys.argv and the working directory.
    """
    folder = path.resolve().parent
    before, cwd = dict(sys.modules), os.getcwd()
    search, hooks = list(sys.path), list(sys.meta_path)
    hidden = {name for name, module in before.items() if _is_hidden(name, module, folder, modules)}
    for name in hidden:
        del sys.modules[name]
    known = {name.split(".")[0] for name in sys.modules}
    for name, module in modules.items():
        if module.__spec__ is None and name != "__main__":  # importlib.util.find_spec wants one
            module.__spec__ = ModuleSpec(name, loader=None)
    sys.modules.update(modules)
    sys.path.insert(0, str(folder))
    sys.meta_path[:0] = finders
    importlib.invalidate_caches()
    try:
        with _replaced(sys, "argv", list(argv)):
            yield
    finally:
        for name, module in list(sys.modules.items()):
            if before.get(name) is not module and not _stays(name, module, known):
                del sys.modules[name]
        sys.modules.update(before)
        sys.path[:], sys.meta_path[:] = search, hooks
        os.chdir(cwd)


@contextmanager
def _replaced(owner: object, attribute: str, value: object) -> Iterator[None]:
    before = getattr(owner, attribute)
    setattr(owner, attribute, value)
    try:
        yield
    finally:
        setattr(owner, attribute, before)


def _is_hidden(name: str, module: ModuleType, folder: Path, modules: Mapping[str, ModuleType]) -> bool:
    """Whether a module loaded before must make room: for one that is bound, or for a file beside the user's."""
    top = name.split(".")[0]
    if any(bound.split(".")[0] == top for bound in modules if bound != "__main__"):
        return True
    if top in sys.stdlib_module_names or not ((folder / f"{top}.py").is_file() or (folder / top).is_dir()):
        return False
    return not str(getattr(module, "__file__", None) or "").startswith(f"{folder}{os.sep}")


def _stays(name: str, module: ModuleType, known: set[str]) -> bool:
    """Whether a module imported meanwhile may stay: part of Python, of an installed or of an already loaded package."""
    top = name.split(".")[0]
    file = getattr(module, "__file__", None)
    return top in known or top in sys.stdlib_module_names or (file is not None and file.startswith(_INSTALLED))


def user_place(error: BaseException, path: Path) -> tuple[str, int]:
    """File and line of the innermost frame of the user's code in a traceback: of `path` or of a file below its
    directory; (path, 0) without one. For a SyntaxError, where it is."""
    folder = f"{path.resolve().parent}{os.sep}"
    found = (str(path), 0)
    if isinstance(error, SyntaxError) and error.filename and error.filename.startswith(folder):
        return error.filename, error.lineno or 0
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file.startswith(folder) and not file.startswith((*_INSTALLED, _OURS)):
            found = (file, trace.tb_lineno)
        trace = trace.tb_next
    return found


_OURS = f"{Path(__file__).resolve().parents[1]}{os.sep}"  # the package harness
