"""`run_jit`: stages, messages, verdicts and snapshots of reference_harness.md sections 4 to 9."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from foreign_testing import lines, scale_golden, scale_specs, square

from harness.devices.base import KernelRefused
from harness.devices.emulator.toolchain import DistributedConfig
from harness.foreign.golden_run import run, run_jit
from harness.foreign.golden_specs import TensorSpec
from harness.foreign.session import RunResult


def test_a_run_passes_and_prints_its_stages(kernels, capsys) -> None:
    result = run_jit(kernels["scale"], scale_specs(), scale_golden, runtime_cfg={"platform": "a2a3sim"})
    assert result.passed
    assert result.error is None
    assert lines(capsys) == [
        "[RUN] compile ...",
        "[RUN] compile done (?s)",
        "[RUN] platform a2a3sim: answered by the goldengate emulator, schedule 0",
        "[RUN] generate inputs ...",
        "[RUN] generate inputs done (?s)",
        "[RUN] compute golden ...",
        "[RUN] compute golden done (?s)",
        "[RUN] runtime ...",
        "[RUN] runtime done (?s)",
        "[RUN] validate ...",
        "[RUN]   'total' PASS  shape=(8, 8) dtype=torch.float32",
        "[RUN]   'y' PASS  shape=(8, 8) dtype=torch.float32",
        "[RUN] validate done (?s)",
        "[RUN] PASS (?s)",
    ]


def test_rejects_a_wrong_golden_and_shows_where(kernels, capsys) -> None:
    def wrong(tensors: dict[str, Any]) -> None:
        scale_golden(tensors)
        tensors["y"][3, 5] += 1

    result = run_jit(kernels["scale"], scale_specs(), wrong)
    assert not result.passed
    assert result.error is not None
    assert "golden mismatch in 'y'" in result.error
    assert "1 of 64 elements" in result.error
    assert "[29] actual=58.0 expected=59.0" in result.error
    printed = lines(capsys)
    assert "[RUN]   'y' FAIL  shape=(8, 8) dtype=torch.float32" in printed
    assert not any(line.startswith("[RUN] PASS") for line in printed)


def test_without_golden_the_run_passes_and_says_that_nothing_was_compared(kernels, capsys) -> None:
    assert run_jit(kernels["scale"], scale_specs()).passed
    printed = lines(capsys)
    assert "[RUN] PASS (?s, validation skipped: no golden_fn or golden_data)" in printed
    assert "note: nothing was compared: goldengate would call this run unverified" in printed


def test_the_golden_gets_clones_zeros_and_python_numbers(kernels) -> None:
    seen: dict[str, Any] = {}

    def golden(tensors: dict[str, Any]) -> None:
        seen.update(factor=tensors["factor"], y=tensors["y"].clone())
        scale_golden(tensors)
        tensors["x"].zero_()  # a golden may spoil its inputs

    x = torch.ones(8, 8)
    specs = scale_specs(0.5)
    specs[0] = TensorSpec("x", [8, 8], torch.float32, init_value=x)
    assert run_jit(kernels["scale"], specs, golden).passed
    assert seen["factor"] == 0.5
    assert not seen["y"].any()
    assert torch.equal(x, torch.ones(8, 8))


def test_an_error_of_the_golden_stops_before_the_device(kernels, capsys) -> None:
    def golden(_: dict[str, Any]) -> None:
        raise ZeroDivisionError("golden")

    with pytest.raises(ZeroDivisionError):
        run_jit(kernels["scale"], scale_specs(), golden)
    printed = lines(capsys)
    assert "[RUN] compute golden done (?s)" in printed
    assert "[RUN] runtime ..." not in printed


def test_a_comparator_gets_its_context(kernels, capsys) -> None:
    seen: dict[str, Any] = {}

    def compare(actual, expected, **context):
        seen.update(context)
        return True, ""

    result = run_jit(kernels["scale"], scale_specs(), scale_golden, compare_fn={"y": compare}, rtol=0.5, atol=0.25)
    assert result.passed
    assert sorted(seen) == ["actual_outputs", "atol", "expected_outputs", "inputs", "rtol"]
    assert sorted(seen["actual_outputs"]) == ["total", "y"]
    assert (seen["rtol"], seen["atol"]) == (0.5, 0.25)
    assert sorted(seen["inputs"]) == ["factor", "x"]
    assert seen["inputs"]["factor"].item() == 2.0
    assert "[RUN]   'y' PASS  shape=(8, 8) dtype=torch.float32 (compare)" in lines(capsys)


def test_a_misspelt_comparator_is_noted(kernels, capsys) -> None:
    assert run_jit(kernels["scale"], scale_specs(), scale_golden, compare_fn={"z": lambda *a, **k: (False, "")}).passed
    assert "note: compare_fn names 'z', which is no output: it is never used" in lines(capsys)


def test_what_the_kernel_leaves_unwritten_keeps_the_hosts_contents_and_is_noted(kernels, capsys) -> None:
    def golden(tensors: dict[str, Any]) -> None:
        tensors["y"][:4] = tensors["x"][:4]

    assert run_jit(kernels["half"], square(), golden).passed
    assert any(line.startswith("note: 32 of 64 elements of y were never written") for line in lines(capsys))


def test_an_output_that_the_golden_forgets_is_noted(kernels, capsys) -> None:
    run_jit(kernels["half"], square(), lambda tensors: None)
    assert "note: the golden never writes y" in lines(capsys)


def test_findings_of_severity_error_fail(kernels) -> None:
    result = run_jit(kernels["untyped"], square(dtype=torch.bfloat16), lambda t: t["y"].copy_(t["x"]))
    assert not result.passed
    assert result.error is not None
    assert "GG209" in result.error


def test_compile_only_stops_after_the_compile(kernels, capsys) -> None:
    def golden(_: dict[str, Any]) -> None:
        raise AssertionError("the golden must not run")

    assert run_jit(kernels["scale"], scale_specs(), golden, compile_only=True).passed
    assert lines(capsys) == ["[RUN] compile ...", "[RUN] compile done (?s)", "[RUN] PASS (?s)"]


def test_compile_only_with_runtime_dir_is_a_failed_result(kernels, tmp_path) -> None:
    result = run_jit(kernels["scale"], scale_specs(), compile_only=True, runtime_dir=tmp_path)
    assert not result.passed
    assert result.error == "compile_only and runtime_dir exclude each other"


def test_runtime_dir_receives_the_data(kernels, tmp_path, capsys) -> None:
    (tmp_path / "build").mkdir()
    assert run_jit(kernels["scale"], scale_specs(), scale_golden, runtime_dir=tmp_path / "build").passed
    printed = lines(capsys)
    assert f"[RUN] runtime_only: skipping JIT compile, using {tmp_path / 'build'}" in printed
    assert "[RUN] compile ..." not in printed
    assert (tmp_path / "build" / "data" / "out" / "y.pt").is_file()


def test_a_missing_runtime_dir_is_a_failed_result(kernels, tmp_path) -> None:
    result = run_jit(kernels["scale"], scale_specs(), runtime_dir=tmp_path / "no")
    assert not result.passed
    assert result.error == f"runtime_dir does not exist: {tmp_path / 'no'}"


@pytest.mark.parametrize("platform", ["a2a3", "a2a3sim", "a5", "a5sim"])
def test_the_emulator_answers_for_every_platform(kernels, capsys, platform: str) -> None:
    assert run_jit(kernels["scale"], scale_specs(), scale_golden, runtime_cfg={"platform": platform}).passed
    printed = lines(capsys)
    assert f"[RUN] platform {platform}: answered by the goldengate emulator, schedule 0" in printed
    assert any("A5 differ" in line for line in printed) is platform.startswith("a5")


def test_rejects_an_unknown_platform(kernels) -> None:
    with pytest.raises(ValueError, match="'a4'; expected one of a2a3, a2a3sim, a5, a5sim"):
        run_jit(kernels["scale"], scale_specs(), runtime_cfg={"platform": "a4"})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"compile_cfg": {"output_dir": "x"}}, "unknown compile option 'output_dir'"),
        ({"compile_cfg": {"dump_passses": True}}, "unknown compile option 'dump_passses'"),
        ({"runtime_cfg": {"rounds": 3}}, "unknown run option 'rounds'"),
    ],
)
def test_rejects_unknown_options(kernels, options: dict[str, Any], text: str) -> None:
    with pytest.raises(TypeError, match=text):
        run_jit(kernels["scale"], scale_specs(), **options)


def test_run_takes_the_options_of_the_ir_compiler(kernels, tmp_path) -> None:
    result = run(kernels["scale"], scale_specs(), scale_golden, compile_cfg={"output_dir": str(tmp_path / "build")})
    assert result.passed
    assert result.work_dir == str(tmp_path / "build")
    assert (tmp_path / "build" / "data" / "in" / "x.pt").is_file()


def test_run_takes_a_program_by_its_entry(kernels) -> None:
    program = SimpleNamespace(name="Program", entry=kernels["scale"])  # what a pl.program class offers
    result = run(program, scale_specs(), scale_golden, save_data=False)
    assert result.passed
    assert result.work_dir is not None
    assert result.work_dir.startswith("build_output/Program_")


@pytest.mark.parametrize("program", [lambda x: x, None, SimpleNamespace(entry=3)])
def test_rejects_what_is_no_kernel(program: Any) -> None:
    with pytest.raises(TypeError, match="is no kernel"):
        run_jit(program, [])


def test_log_level_is_consumed_and_checked(kernels, capsys) -> None:
    assert run_jit(kernels["scale"], scale_specs(), scale_golden, runtime_cfg={"log_level": "v0"}).passed
    with pytest.raises(ValueError, match="unknown log_level 'loud'"):
        run_jit(kernels["scale"], scale_specs(), scale_golden, runtime_cfg={"log_level": "loud"})


def test_diagnostics_are_noted(kernels, capsys) -> None:
    run_jit(kernels["scale"], scale_specs(), scale_golden, runtime_cfg={"enable_pmu": 2, "enable_dep_gen": False})
    assert "note: the emulator writes no diagnostics for enable_pmu" in lines(capsys)


def test_arguments_are_bound_by_position_and_other_names_are_noted(kernels, capsys) -> None:
    specs = square()
    specs[0].name, specs[1].name = "source", "copy"
    run_jit(kernels["half"], specs)
    assert "note: the parameter x of half is bound to the spec source, by position" in lines(capsys)


def test_an_output_that_the_kernel_declares_as_input_is_noted(kernels, capsys) -> None:
    specs = square()
    specs[0].is_output = True
    run_jit(kernels["half"], specs, lambda t: None)
    assert "note: x is an output, but half declares it as input: it is not read back" in lines(capsys)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: s.pop(), "takes 4 arguments, there are 3 specs"),
        (lambda s: setattr(s[0], "shape", [8, 4]), "axis 1 is declared 8, the input has shape"),
        (lambda s: setattr(s[3], "shape", [4, 8]), "y: axis 0 is declared 8, the input has shape"),
        (
            lambda s: setattr(s[0], "dtype", torch.bfloat16),
            "x is declared pl.FP32, the input is torch.bfloat16",
        ),
    ],
)
def test_specs_that_do_not_fit_the_kernel_are_refused_at_compile_time(kernels, change: Any, text: str) -> None:
    specs = scale_specs()
    change(specs)
    with pytest.raises(KernelRefused, match=text):
        run_jit(kernels["scale"], specs, compile_only=True)


def test_resident_specs_need_a_host_entry(kernels) -> None:
    specs = square()
    specs[0].resident = 0
    result = run_jit(kernels["half"], specs, lambda t: None)
    assert not result.passed
    assert result.error == "resident specs (x) need a host entry (@pl.jit.host)"


def rank_specs(**resident: Any) -> list[TensorSpec]:
    """Specs of the host entry `ranks`, in another order than its parameters: they are bound by name."""
    return [
        TensorSpec("y", [2, 8, 8], torch.float32, is_output=True),
        TensorSpec("unused", [1], torch.float32),
        TensorSpec("x", [2, 8, 8], torch.float32, init_value=torch.ones, resident=resident.get("x")),
    ]


def double_golden(tensors: dict[str, Any]) -> None:
    tensors["y"][:] = 2 * tensors["x"]


@pytest.mark.parametrize("resident", [None, "stacked"])
def test_a_host_entry_runs_on_every_rank(kernels, resident: Any) -> None:
    result = run_jit(
        kernels["ranks"],
        rank_specs(x=resident),
        double_golden,
        compile_cfg={"distributed_config": DistributedConfig(device_ids=[4, 7])},
    )
    assert result.passed, result.error


def test_a_misspelt_residency_of_a_host_entry_is_noted(kernels, capsys) -> None:
    specs = rank_specs()
    specs[2].resident = "typo"
    world = {"distributed_config": DistributedConfig(device_ids=[0, 1])}
    assert run_jit(kernels["ranks"], specs, double_golden, compile_cfg=world).passed
    assert "note: x has the unknown residency 'typo': it is uploaded like any other" in lines(capsys)


def test_an_unknown_run_option_of_a_host_entry_is_dropped_and_noted(kernels, capsys) -> None:
    world = {"distributed_config": DistributedConfig(device_ids=[0, 1])}
    assert run_jit(kernels["ranks"], rank_specs(), runtime_cfg={"rounds": 3}, compile_cfg=world).passed
    assert "note: the run option 'rounds' is unknown and has no effect" in lines(capsys)


def test_a_host_entry_needs_every_parameter_by_name(kernels) -> None:
    specs = rank_specs()
    specs[2].name = "z"
    with pytest.raises(KeyError, match="x"):
        run_jit(kernels["ranks"], specs, double_golden)


def test_the_result_has_the_references_text() -> None:
    assert str(RunResult(True, execution_time=1.234)) == "PASS (1.23s)"
    assert str(RunResult(False, "why", 1.0)) == "FAIL: why (1.00s)"
    assert str(RunResult(False)) == "FAIL"
