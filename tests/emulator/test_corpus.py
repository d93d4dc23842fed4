"""Faulty kernels and their repairs: every fault is diagnosed with its code and line, every repair is clean.

A file of `corpus/` marks the lines of its diagnosis with `# diagnosed: CODE`. A comment line `# repair: TEXT` holds
what repairs the line above it. `refused` stands for a refusal of the front end, `undefined` for output elements that
come from memory nobody wrote.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from harness.devices.base import DeviceRun, KernelFault, KernelRefused
from harness.devices.emulator import lint
from harness.devices.emulator.annotations import TensorType
from harness.devices.emulator.device import execute
from harness.devices.emulator.functions import KernelFunction
from harness.devices.emulator.host import execute_host
from harness.devices.emulator.loader import load_functions

CORPUS = Path(__file__).parent / "corpus"
NAMES = sorted(path.stem for path in CORPUS.glob("*.py"))
_REPAIR = re.compile(r"^ *# repair: (.*)$")
_DIAGNOSED = re.compile(r"# diagnosed: (\w+)$")


def repaired(text: str) -> str:
    """The source with every repair in place of the line above it."""
    lines: list[str] = []
    for line in text.splitlines():
        repair = _REPAIR.match(line)
        if repair is None:
            lines.append(line)
        else:
            indent = len(lines[-1]) - len(lines[-1].lstrip())
            lines[-1] = " " * indent + repair[1]
    return "\n".join(lines) + "\n"


def expected(text: str) -> set[tuple[str, int]]:
    """Code and line of every mark."""
    found = ((_DIAGNOSED.search(line), number) for number, line in enumerate(text.splitlines(), 1))
    return {(mark[1], number) for mark, number in found if mark is not None}


def inputs(entry: KernelFunction) -> dict[str, torch.Tensor]:
    """Small whole numbers: every sum of them is exact in every order."""
    values = {}
    for parameter in entry.parameters:
        kind = parameter.type
        assert isinstance(kind, TensorType)
        if kind.direction == "in":
            assert all(isinstance(extent, int) for extent in kind.shape)
            shape = tuple(int(extent) for extent in kind.shape)  # type: ignore[arg-type]
            data = torch.arange(torch.Size(shape).numel(), dtype=torch.int64).reshape(shape) % 7
            values[parameter.name] = data.to(kind.dtype.storage)
    return values


@lru_cache(maxsize=1)
def load(path: Path) -> KernelFunction:
    return load_functions(path, {}, None)["kernel"]


def run(path: Path, schedule: int) -> DeviceRun:
    entry = load(path)
    if entry.kind == "host":
        return execute_host(entry, inputs(entry), schedule, frozenset({str(path)}), world=3)
    return execute(entry, inputs(entry), schedule, frozenset({str(path)}))


def diagnosis(path: Path, schedule: int) -> set[tuple[str, int | None]]:
    """Code and line of everything that one run says."""
    try:
        result = run(path, schedule)
    except KernelRefused as error:
        return {("refused", error.line)}
    except KernelFault as error:
        code = error.reason.partition(":")[0]
        line = error.line
        if code == "GG405":  # the line is where the waiting ones stand, which the text says
            line = int(re.search(rf"{re.escape(str(path))}:(\d+)", error.reason)[1])  # type: ignore[index]
        return {(code, line)}
    found: set[tuple[str, int | None]] = {(f.code, f.line) for f in result.findings}
    if any(mask is not None and bool(mask.any()) for mask in result.undefined.values()):
        found.add(("undefined", None))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_rejects_the_fault(name: str) -> None:
    path = CORPUS / f"{name}.py"
    marks = expected(path.read_text())
    assert marks, "a corpus file marks its diagnosis"
    lines = {(code, None) if code == "undefined" else (code, line) for code, line in marks}
    for schedule in range(4):
        found = diagnosis(path, schedule)
        assert found, f"schedule {schedule} does not see it"
        assert found & lines, f"{found} instead of {lines}"
        places = {line for _, line in marks} | {None}
        assert {line for _, line in found} <= places, f"{found} beside {lines}"
        assert {code for code, _ in found} <= {code for code, _ in marks} | {"undefined"}


@pytest.mark.parametrize("name", NAMES)
def test_accepts_the_repair(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.py"
    path.write_text(repaired((CORPUS / f"{name}.py").read_text()))
    first: dict[str, torch.Tensor] = {}
    for schedule in range(10):
        result = run(path, schedule)
        assert result.findings == []
        assert all(mask is None for mask in result.undefined.values())
        first = first or result.outputs
        assert all(torch.equal(result.outputs[n], first[n]) for n in first)


def test_every_code_of_the_corpus_is_in_the_table() -> None:
    codes = {code for name in NAMES for code, _ in expected((CORPUS / f"{name}.py").read_text())}
    assert codes - {"refused", "undefined"} <= set(lint.RULES)


def test_the_corpus_is_large_enough() -> None:
    assert len(NAMES) >= 24
