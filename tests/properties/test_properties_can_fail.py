"""Every property of goldens is seen to fail: with its fault planted in the golden's outputs, its examples break it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from property_testing import PROPERTIES, Property

OPS = sorted(path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py"))
OPS.remove("properties_can_fail")
for _op in OPS:
    importlib.import_module(f"test_{_op}")
ALL = [(op, declared) for op in OPS for declared in PROPERTIES.get(op, [])]


def test_every_file_declares_properties() -> None:
    for op in OPS:
        assert len(PROPERTIES[op]) >= 8, op


@pytest.mark.parametrize("declared", [p for _, p in ALL], ids=[f"{op}-{p.name}" for op, p in ALL])
def test_rejects_a_spoiled_golden(declared: Property) -> None:
    with pytest.raises(AssertionError):
        declared.check("golden", declared.spoil)
