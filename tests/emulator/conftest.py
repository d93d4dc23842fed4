"""Fixtures for tests that write a small kernel file and load or run it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.devices.emulator.device import execute
from harness.devices.emulator.functions import KernelFunction
from harness.devices.emulator.loader import load_functions

HEADER = """\
import pypto.language as pl
"""
HEADER_LINES = HEADER.count("\n")


class KernelFile:
    """A kernel file on disk. `line(text)` is the number of the only line that contains `text`."""

    def __init__(self, path: Path, source: str) -> None:
        self.path = path
        self.source = HEADER + textwrap.dedent(source)
        path.write_text(self.source)
        self._loaded: dict[str, KernelFunction] = {}

    def line(self, text: str) -> int:
        found = [n for n, line in enumerate(self.source.splitlines(), 1) if text in line]
        assert len(found) == 1, f"{text!r} stands on lines {found}"
        return found[0]

    def load(self) -> dict[str, KernelFunction]:
        return load_functions(self.path, {}, None)

    def run(self, *, schedule: int = 0, entry: str = "kernel", checks: bool = True, **inputs: Any) -> Any:
        self._loaded = self._loaded or self.load()
        function = self._loaded[entry]
        return execute(function, inputs, schedule, frozenset({str(self.path)}), checks=checks)


@pytest.fixture
def kernel(tmp_path: Path) -> Callable[[str], KernelFile]:
    """`kernel(source)` writes a kernel file; the header imports pypto.language as pl."""
    counter = iter(range(1000))
    return lambda source: KernelFile(tmp_path / f"kernel_{next(counter)}.py", source)
