"""The ops of the DSL. Importing this package fills the op table; `namespace` hands it to the loader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.devices.emulator.ops import (
    absent,
    bitwise,
    cast,
    compare,
    create,
    cube,
    distributed,
    elementwise,
    expand,
    gather,
    memory,
    minmax,
    prefetch,
    reduce,
    scatter,
    shape,
    sort,
    subscript,
)
from harness.devices.emulator.optable import OPS

__all__ = [
    "absent", "bitwise", "cast", "compare", "create", "cube", "distributed", "elementwise", "expand", "gather",
    "memory", "minmax", "namespace", "prefetch", "reduce", "scatter", "shape", "sort", "subscript",
]  # fmt: skip


def namespace() -> dict[str, Callable[..., Any]]:
    """Every op by its dotted name below `pl`: `add`, `tensor.dim`, `tile.load` …"""
    return {name: entry.run for name, entry in OPS.items()}
