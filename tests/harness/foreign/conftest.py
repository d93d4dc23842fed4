"""Fixtures for tests of the stand-in: kernels, and scripts in a directory of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from foreign_testing import KERNELS, Scripts

from harness.devices.emulator.functions import KernelFunction
from harness.devices.emulator.loader import load_functions


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, KernelFunction]:
    """The functions of KERNELS by name; the working directory is a fresh one."""
    path = tmp_path / "kernels_under_test.py"
    path.write_text(KERNELS)
    monkeypatch.chdir(tmp_path)
    return load_functions(path, {}, None)


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scripts:
    """Scripts in a fresh directory, run from another one."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return Scripts(tmp_path)
