"""Snapshots of `run_jit`, and `validate_golden` (reference_harness.md 9)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_testing import lines, scale_golden, scale_specs, square

from harness.devices.base import KernelRefused
from harness.foreign.golden_compare import ratio_allclose
from harness.foreign.golden_run import run_jit
from harness.foreign.golden_validate import validate_golden

# -- snapshots ----------------------------------------------------------------------------------------


@pytest.fixture
def snapshot(kernels, tmp_path: Path) -> Path:
    """The snapshot of a passing run."""
    result = run_jit(
        kernels["scale"], scale_specs(), scale_golden, compile_cfg={"save_kernels_dir": str(tmp_path / "b")}
    )
    assert result.passed
    return tmp_path / "b" / "data"


def test_a_snapshot_holds_the_required_files(snapshot: Path) -> None:
    files = sorted(str(p.relative_to(snapshot)) for p in snapshot.rglob("*.pt"))
    assert files == ["in/factor.pt", "in/total.pt", "in/x.pt", "out/total.pt", "out/y.pt"]
    assert torch.load(snapshot / "in" / "total.pt", weights_only=True).eq(1).all()  # before the run
    assert torch.load(snapshot / "in" / "factor.pt", weights_only=True).shape == ()


def test_save_data_false_writes_nothing(kernels, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert run_jit(kernels["scale"], scale_specs(), scale_golden, save_data=False).passed
    assert sorted(tmp_path.rglob("*")) == before


def test_the_default_work_dir_is_named_after_the_kernel(kernels, tmp_path: Path) -> None:
    result = run_jit(kernels["scale"], scale_specs(), scale_golden)
    assert result.work_dir is not None
    assert re.fullmatch(r"build_output/scale_\d{8}_\d{6}", result.work_dir)
    assert (tmp_path / result.work_dir / "data" / "in" / "x.pt").is_file()


def test_a_golden_that_raises_leaves_only_inputs(kernels, tmp_path: Path) -> None:
    def golden(_: dict[str, Any]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_jit(kernels["scale"], scale_specs(), golden, compile_cfg={"save_kernels_dir": str(tmp_path / "c")})
    assert [p.name for p in (tmp_path / "c" / "data").iterdir()] == ["in"]


def test_a_snapshot_replaces_inputs_and_golden(kernels, snapshot: Path, capsys) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("called")

    specs = scale_specs()
    specs[0].init_value = never
    capsys.readouterr()
    assert run_jit(kernels["scale"], specs, never, golden_data=snapshot).passed
    printed = lines(capsys)
    assert f"[RUN]   cache hit: {snapshot / 'in'}" in printed
    assert f"[RUN]   cache hit: {snapshot / 'out'}" in printed


def test_a_snapshot_works_without_golden_and_its_mismatch_fails(kernels, snapshot: Path) -> None:
    assert run_jit(kernels["scale"], scale_specs(), golden_data=snapshot).passed
    torch.save(torch.zeros(8, 8), snapshot / "out" / "y.pt")
    result = run_jit(kernels["scale"], scale_specs(), golden_data=snapshot)
    assert not result.passed
    assert "'y'" in str(result.error)


def test_a_snapshot_is_never_written(kernels, snapshot: Path) -> None:
    before = {p: p.read_bytes() for p in snapshot.rglob("*.pt")}
    assert run_jit(kernels["scale"], scale_specs(), golden_data=snapshot, save_data=True).passed
    assert {p: p.read_bytes() for p in snapshot.rglob("*.pt")} == before


def test_missing_files_are_all_listed(kernels, tmp_path: Path, snapshot: Path) -> None:
    result = run_jit(kernels["scale"], scale_specs(), golden_data=tmp_path / "empty")
    assert not result.passed
    for name in ("in/x.pt", "in/factor.pt", "in/total.pt", "out/total.pt", "out/y.pt"):
        assert str(tmp_path / "empty" / name) in str(result.error)
    (snapshot / "out" / "y.pt").unlink()
    result = run_jit(kernels["scale"], scale_specs(), golden_data=snapshot)
    assert result.error == f"golden_data lacks {snapshot / 'out' / 'y.pt'}"


@pytest.mark.parametrize(
    ("file", "content", "text"),
    [
        ("in/x.pt", b"no tensor", "cannot be read"),
        ("in/factor.pt", torch.ones(1), "expected a 0-dim tensor of torch.float32"),
        ("in/factor.pt", torch.tensor(1), "torch.int64 [], expected"),
        ("out/y.pt", {"y": 1}, "holds a dict"),
    ],
)
def test_a_malformed_file_is_a_failed_result(kernels, snapshot: Path, file: str, content: Any, text: str) -> None:
    if isinstance(content, bytes):
        (snapshot / file).write_bytes(content)
    else:
        torch.save(content, snapshot / file)
    result = run_jit(kernels["scale"], scale_specs(), golden_data=snapshot)
    assert not result.passed
    assert text in str(result.error)


class Payload:
    """Something that writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "executed")


def test_reading_a_snapshot_executes_nothing(kernels, snapshot: Path, tmp_path: Path) -> None:
    torch.save(Payload(tmp_path / "trace"), snapshot / "in" / "x.pt")
    result = run_jit(kernels["scale"], scale_specs(), golden_data=snapshot)
    assert not result.passed
    assert not (tmp_path / "trace").exists()


def test_a_cached_scalar_replaces_the_given_one_and_is_noted(kernels, snapshot: Path, capsys) -> None:
    assert run_jit(kernels["scale"], scale_specs(5.0), golden_data=snapshot).passed
    assert any(line.startswith("note: the snapshot's factor = 2.0 replaces 5.0") for line in lines(capsys))


def test_a_stale_snapshot_is_noted_and_the_kernel_refuses_it(kernels, snapshot: Path, capsys) -> None:
    torch.save(torch.ones(4, 8), snapshot / "in" / "x.pt")
    with pytest.raises(KernelRefused, match="axis 0 is declared 8"):
        run_jit(kernels["scale"], scale_specs(), golden_data=snapshot)
    assert any("a stale snapshot?" in line for line in lines(capsys))


@pytest.mark.parametrize("name", ["../x", "a/b", ".."])
def test_a_name_that_is_no_file_name_is_refused(kernels, snapshot: Path, name: str) -> None:
    specs = square()
    specs[0].name = name
    result = run_jit(kernels["half"], specs, golden_data=snapshot)
    assert "is no file name" in str(result.error)


def test_a_view_is_stored_without_the_rest_of_its_storage(kernels, tmp_path: Path) -> None:
    def golden(tensors: dict[str, Any]) -> None:
        scale_golden(tensors)
        tensors["y"] = torch.cat([tensors["y"]] * 64)[:8]

    run_jit(kernels["scale"], scale_specs(), golden, compile_cfg={"save_kernels_dir": str(tmp_path / "c")})
    assert torch.load(tmp_path / "c/data/out/y.pt", weights_only=True).untyped_storage().nbytes() == 256


# -- validate_golden ----------------------------------------------------------------------------------


def test_validate_visits_every_output_before_it_raises() -> None:
    outputs = {"a": torch.ones(2), "b": torch.ones(2), "c": torch.ones(2)}
    golden = {"a": torch.zeros(2), "b": torch.ones(2), "c": torch.zeros(2), "extra": torch.ones(1)}
    with pytest.raises(AssertionError, match="golden mismatch in 'a', 'c'"):
        validate_golden(outputs, golden)


def test_validate_needs_a_golden_for_every_output() -> None:
    with pytest.raises(KeyError):
        validate_golden({"a": torch.ones(2)}, {})


def test_validate_treats_nan_as_unequal_and_infinities_as_equal() -> None:
    validate_golden({"a": torch.tensor([torch.inf])}, {"a": torch.tensor([torch.inf])})
    with pytest.raises(AssertionError):
        validate_golden({"a": torch.tensor([torch.nan])}, {"a": torch.tensor([torch.nan])})


def test_validate_evaluates_the_tolerance_in_the_tensors_dtype() -> None:
    actual, expected = torch.tensor([1.0078125]), torch.tensor([1.0])
    validate_golden({"a": actual.bfloat16()}, {"a": expected.bfloat16()}, rtol=7.8e-3, atol=0)
    with pytest.raises(AssertionError):
        validate_golden({"a": actual}, {"a": expected}, rtol=7.8e-3, atol=0)


def test_validate_broadcasts_and_notes_it(capsys) -> None:
    validate_golden({"a": torch.ones(4)}, {"a": torch.ones(1)})
    assert "note: a: shapes (4,) and (1,) differ and were broadcast" in lines(capsys)
    with pytest.raises(RuntimeError):
        validate_golden({"a": torch.ones(4)}, {"a": torch.ones(3)})


def test_validate_notes_integers_that_fp32_cannot_hold(capsys) -> None:
    large, next_one = torch.tensor([2**40]), torch.tensor([2**40 + 1])
    validate_golden({"a": next_one}, {"a": large}, compare_fn={"a": ratio_allclose(0, 0, 0)})
    assert "note: a: integers beyond 2^24 were compared in FP32" in lines(capsys)
    validate_golden({"a": large >> 20}, {"a": large >> 20}, compare_fn={"a": ratio_allclose(0, 0, 0)})
    assert not any(line.startswith("note") for line in lines(capsys))


def test_validate_notes_differing_dtypes(capsys) -> None:
    validate_golden({"a": torch.ones(2)}, {"a": torch.ones(2).char()}, compare_fn={"a": ratio_allclose(0, 0, 0)})
    assert "note: a: dtypes torch.float32 and torch.int8 differ" in lines(capsys)
