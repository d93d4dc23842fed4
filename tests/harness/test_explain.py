"""The walk through the stages of a run: what is equal, what is carried over, where the kernel leaves its golden."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from harness.cli import main
from harness.devices.base import DeviceRun
from harness.devices.emulator.device import EmulatorDevice
from harness.localise import CARRIED, CLOSE, DIFFERS, EQUAL, UNTOLD, first_diverging, walk
from harness.run import Run
from harness.tolerances import load_tolerances
from harness.verify import prepare
from specs.registry import all_ops, load_op


def faulty(tmp_path: Path, op: str, before: str, after: str) -> str:
    source = load_op(op).kernel.read_text(encoding="utf-8")
    assert before in source
    path = tmp_path / "faulty.py"
    path.write_text(source.replace(before, after), encoding="utf-8")
    return str(path)


def result_of(op: str, case: str = "default") -> DeviceRun:
    loaded, device = load_op(op), EmulatorDevice()
    return device.run(device.load(loaded.kernel, op, loaded.sizes), loaded, loaded.inputs(case))


def test_a_right_kernel_diverges_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "expert_shared"]) == 0
    said = capsys.readouterr().out
    assert "no stage diverges" in said
    assert "h_i8" in said


SOME_BLOCKS_EMPTY = [(f"decode_sparse_attn_{form}", "short_window") for form in ("csa", "hca", "swa")]


LAYERS = [pytest.param(op, "default", marks=pytest.mark.slow) for op in all_ops() if op.startswith("decode_attention_")]
OTHERS = [(op, "default") for op in all_ops() if op != "moe" and not op.startswith("decode_attention_")]


@pytest.mark.parametrize(("op", "case"), [*OTHERS, *LAYERS, *SOME_BLOCKS_EMPTY])
def test_no_stage_of_a_shipped_kernel_diverges(op: str, case: str) -> None:
    """A stage that is told and differs would be named as the cause of any other failure."""
    prepared, _ = prepare(Run(op, case=case))
    result = result_of(op, case)
    assert first_diverging(walk(prepared, load_tolerances()[op], result)) is None


def test_a_wrong_stage_is_named_and_the_command_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = faulty(tmp_path, "expert_shared", 'pl.INT32, mode="rint")', 'pl.INT32, mode="floor")')
    assert main(["explain", "expert_shared", "--kernel", path, "--schedule", "3"]) == 1
    said = capsys.readouterr().out
    assert "first diverging: h_i8: " in said
    run = "--preset tiny --deployment decode --case default --seed 0 --schedule 3"
    assert f"repeat: goldengate verify expert_shared {run} --kernel {path}" in said


def test_a_fault_of_the_device_is_said_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = faulty(tmp_path, "rms_norm", "d0 = c * CHUNK", "d0 = c * CHUNK + 100000")
    assert main(["explain", "rms_norm", "--kernel", path]) == 1
    assert f"kernel fault: {path}:" in capsys.readouterr().out


def test_rejects_more_than_one_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "rms_norm", "--seed", "0..3"]) == 2
    assert "explain walks through one run, this selection has 4" in capsys.readouterr().err


def test_what_follows_a_legal_flip_is_carried_over() -> None:
    """A code of qr one off moves q by more than q's tolerance; given that code, q is right."""
    prepared, _ = prepare(Run("qkv_proj_rope"))
    entries = load_tolerances()["qkv_proj_rope"]
    qr = prepared.golden["qr"].clone()
    qr[0, 0] += 1 if int(qr[0, 0]) < 0 else -1
    stages: dict[str, torch.Tensor] = {}
    flipped = prepared.op.golden(prepared.inputs, stages, given={"qr": qr})
    result = dataclasses.replace(result_of("qkv_proj_rope"), outputs={**flipped, "qr": qr}, intermediates={})
    statuses = {step.name: step.status for step in walk(prepared, entries, result)}
    assert statuses["qr"] == CLOSE
    assert statuses["q"] == CARRIED
    assert statuses["kv"] == EQUAL
    assert statuses["low_rank"] == UNTOLD
    assert first_diverging(walk(prepared, entries, result)) is None


def test_a_stage_without_a_tolerance_is_held_to_a_rule_of_thumb() -> None:
    prepared, _ = prepare(Run("expert_shared"))
    result = result_of("expert_shared")
    assert "h_scale" in result.intermediates
    wrong = {**result.intermediates, "h_scale": result.intermediates["h_scale"] * 1.01}
    steps = walk(prepared, {}, dataclasses.replace(result, intermediates=wrong))
    first = first_diverging(steps)
    assert first is not None
    assert (first.name, first.status) == ("h_scale", DIFFERS)
