"""Every property is seen to fail: with its fault planted in the outputs, some of its examples break it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from property_testing import PROPERTIES, Property

from specs.registry import all_ops

FILES = sorted(path.stem for path in Path(__file__).parent.glob("test_properties_*.py"))
for _file in FILES:
    if _file != Path(__file__).stem:
        importlib.import_module(_file)
OPS = [op for op in all_ops() if f"test_properties_{op}" in FILES]
"""Those with a file of their own; some files declare properties of several."""


def declared(subject: str) -> list[object]:
    found = [(op, p) for op in OPS for p in PROPERTIES.get(op, []) if subject in p.subjects]
    return [pytest.param(p, id=f"{op}-{p.name}") for op, p in found]


def test_every_op_with_a_file_has_properties_of_golden_and_kernel() -> None:
    for op in OPS:
        for subject in ("golden", "kernel"):
            assert sum(subject in p.subjects for p in PROPERTIES[op]) >= 8, op


@pytest.mark.parametrize("of_golden", declared("golden"))
def test_rejects_a_spoiled_golden(of_golden: Property) -> None:
    with pytest.raises(AssertionError):
        of_golden.check("golden", of_golden.spoil)


@pytest.mark.slow  # every kernel property on the emulator once more; run with -m slow
@pytest.mark.parametrize("of_kernel", declared("kernel"))
def test_rejects_a_spoiled_kernel(of_kernel: Property) -> None:
    with pytest.raises(AssertionError):
        of_kernel.check("kernel", of_kernel.spoil)
