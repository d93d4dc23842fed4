"""A run whose tensors do not fit is refused before the system kills it, and so many processes as fit are started."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import room
from harness.cli import main
from harness.errors import UsageError
from harness.execute import sensible_jobs
from harness.run import Run
from specs.registry import load_op


def test_needed_counts_inputs_and_outputs() -> None:
    op = load_op("rms_norm")
    tokens, width = op.sizes["T"], op.sizes["D"]
    assert room.needed(op) == 2 * (2 * tokens * width + width)  # x, x_normed and the weight, all BF16


def test_what_does_not_fit_is_refused_with_both_sizes() -> None:
    op = load_op("moe", "pro")
    with pytest.raises(UsageError, match=r"moe pro/decode: its tensors take 24\.3 GiB, this machine has 16\.0 free"):
        room.refuse_without_room(op, 16 * room.GIB)
    room.refuse_without_room(op, 25 * room.GIB)
    room.refuse_without_room(op, None)


def test_a_command_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("harness.verify.available", lambda: 1000)
    assert main(["verify", "rms_norm"]) == 2
    error = capsys.readouterr().err
    assert "rms_norm tiny/decode: its tensors take 0.0 GiB, this machine has 0.0 free" in error
    assert "Traceback" not in error


def test_no_more_processes_than_fit() -> None:
    ops = [load_op("rms_norm"), load_op("moe", "flash")]
    assert room.fitting(ops, 24 * room.GIB, 4) == 1
    assert room.fitting(ops, 40 * room.GIB, 4) == 2
    assert room.fitting(ops[:1], 24 * room.GIB, 4) == 4
    assert room.fitting(ops, None, 4) == 4
    assert room.fitting([], 0, 4) == 4


def test_few_runs_stay_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("harness.execute.available", lambda: 1 << 60)
    assert sensible_jobs([Run("rms_norm", seed=seed) for seed in range(3)]) == 1
    assert sensible_jobs([Run("rms_norm", seed=seed) for seed in range(99)]) == 8
    assert sensible_jobs([Run("rms_norm", seed=seed, overrides=(("tokens", -1),)) for seed in range(99)]) == 8


def test_the_tighter_of_machine_and_group_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n", encoding="ascii")
    monkeypatch.setattr(room, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(room, "_GROUP", tmp_path)
    assert room.available() == 5000 * 1024
    for name, text in (("max", "4000000"), ("current", "1500000"), ("stat", "anon 1\nfile 500000\n")):
        (tmp_path / f"memory.{name}").write_text(text, encoding="ascii")
    assert room.available() == 3_000_000
    (tmp_path / "memory.max").write_text("max\n", encoding="ascii")
    assert room.available() == 5000 * 1024
    monkeypatch.setattr(room, "_MEMINFO", tmp_path / "none")
    assert room.available() is None
