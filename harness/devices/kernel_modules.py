"""The package `kernels` as a kernel file sees it while it loads: its sizes are those of one configuration."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_SIZES = Path(__file__).parents[2] / "kernels" / "sizes.py"


def kernel_modules(sizes: Mapping[str, Any], tile_set: str | None) -> dict[str, ModuleType]:
    """Fresh modules `kernels` and `kernels.sizes` for one configuration; `tile_set` None is the shipped one.

    Raises ValueError for a size or a tile set that kernels/sizes.py does not have.
    """
    package = ModuleType("kernels")
    package.__path__ = [str(_SIZES.parent)]
    package.__dict__["sizes"] = _sizes_module(sizes, tile_set)
    return {"kernels": package, "kernels.sizes": package.__dict__["sizes"]}


class KernelImports:
    """Import hook: `kernels.<op>` is executed anew while a kernel file loads, so that it sees this configuration."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if not name.startswith("kernels."):
            return None
        file = _SIZES.parent / f"{name.removeprefix('kernels.')}.py"
        return importlib.util.spec_from_file_location(name, file) if file.is_file() else None


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
