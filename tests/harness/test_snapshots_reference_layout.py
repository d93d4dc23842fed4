"""Snapshots of the reference's layout, theirs and ours: R27 and R31 of contracts/reference_harness.md 18.4."""

from __future__ import annotations

import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from saved_snapshots import bits, save_both
from torch import Tensor

from harness.cli import main
from harness.foreign import golden_snapshots, golden_specs
from harness.run import Run
from harness.snapshots.save import save_snapshot
from harness.verify import prepare
from specs.tensors import ScalarSpec


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_both(tmp_path_factory.mktemp("snapshots"))


@pytest.fixture
def foreign(saved: dict[str, Path], tmp_path: Path) -> Path:
    """A snapshot as the reference writes it: nothing beside `in` and `out`."""
    path = shutil.copytree(saved["reference"], tmp_path / "data")
    (path / "manifest.json").unlink()
    shutil.rmtree(path / "stages")
    return path


def replay(path: Path) -> int:
    return main(["replay", str(path), "--op", "rms_norm"])


def test_ours_has_the_files_that_the_reference_needs(tmp_path: Path) -> None:
    run = Run("gate")
    prepared, _ = prepare(run)
    path = save_snapshot(tmp_path, run, prepared, "reference")
    specs = [
        golden_specs.ScalarSpec(spec.name, spec.dtype, spec.value)
        if isinstance(spec, ScalarSpec)
        else golden_specs.TensorSpec(spec.name, list(spec.shape), spec.dtype, is_output=spec.is_output)
        for spec in prepared.op.signature
    ]
    inputs = golden_snapshots.read_inputs(path, specs)
    for name, value in prepared.inputs.items():
        held = inputs[name]
        if isinstance(value, Tensor):
            assert isinstance(held, Tensor)
            assert bits(held) == bits(value)
        else:
            assert isinstance(held, golden_specs.ScalarSpec)
            assert held.python_value == value
    outputs = golden_snapshots.read_outputs(path, specs)
    assert {name: bits(t) for name, t in outputs.items()} == {name: bits(t) for name, t in prepared.golden.items()}


def test_one_without_manifest_is_taken_with_a_warning(foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay(foreign) == 0
    said = capsys.readouterr().out
    assert "has no manifest" in said
    assert "differs from the golden" not in said


def test_its_golden_counts_and_a_difference_from_ours_is_noted(
    foreign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = torch.load(foreign / "out" / "x_normed.pt", weights_only=True)
    golden[0, :3] += 1
    torch.save(golden, foreign / "out" / "x_normed.pt")
    assert replay(foreign) == 1
    assert "out/x_normed.pt differs from the golden of rms_norm in 3 elements" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("in/x.pt", torch.zeros(8, 256), r"x: got torch.float32 \(8, 256\), expected torch.bfloat16 \(8, 256\)"),
        ("in/x.pt", torch.zeros(1).bfloat16(), r"x: got torch.bfloat16 \(1,\), expected"),
        ("out/x_normed.pt", torch.zeros(2, 2), r"output x_normed is float32 \[2, 2\], rms_norm has bfloat16"),
        ("in/x.pt", [1, 2], "holds a list, not a tensor"),
        ("in/x.pt", None, "in/x.pt"),
        ("out/x_normed.pt", None, "lacks out/x_normed.pt of rms_norm"),
    ],
)
def test_one_that_does_not_fit_is_refused(
    foreign: Path, capsys: pytest.CaptureFixture[str], file: str, content: object, said: str
) -> None:
    if content is None:
        (foreign / file).unlink()
    else:
        torch.save(content, foreign / file)
    assert replay(foreign) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(said, line), line


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("/tmp/goldengate-was-executed",)


def test_nothing_in_a_file_is_executed(foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (foreign / "in" / "x.pt").write_bytes(pickle.dumps(Evil()))
    assert replay(foreign) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "in/x.pt cannot be read" in line
    assert not Path("/tmp/goldengate-was-executed").exists()


def test_the_scalars_of_the_directory_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything judged depends on them: here on 7 tokens instead of the default case's 8."""
    assert main(["golden", "gate", "--case", "tokens_7", "--save", str(tmp_path), "--layout", "reference"]) == 0
    path = tmp_path / "gate-tiny-decode-tokens_7-seed0"
    (path / "manifest.json").unlink()
    back, _ = prepare(Run("gate", snapshot=str(path)))
    assert back.inputs["num_tokens"] == 7
    for wrong in (torch.tensor([7], dtype=torch.int32), torch.tensor(7.0)):
        torch.save(wrong, path / "in" / "num_tokens.pt")
        capsys.readouterr()
        assert main(["replay", str(path), "--op", "gate"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "num_tokens.pt is" in line
        assert "expected a 0-dim tensor of int32" in line
