"""`goldengate run-file`: scripts as they are, modules beside them, exit codes, and a process left as it was."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_testing import Scripts

from harness import cli
from harness.devices.base import KernelRefused
from harness.devices.emulator.loader import load_functions

COMPLETE = Path(__file__).parents[2] / "foreign_kernels"  # see the README there

ADD = """
    import argparse
    import torch
    import pypto.language as pl
    from golden import TensorSpec, run_jit

    N = 32

    @pl.jit
    def add(a: pl.Tensor[[8, N], pl.FP32], b: pl.Tensor[[8, N], pl.FP32], c: pl.Out[pl.Tensor[[8, N], pl.FP32]]):
        with pl.at(level=pl.Level.CORE_GROUP):
            c[0:8, 0:N] = pl.add(a[0:8, 0:N], b[0:8, 0:N])
        return c

    def golden_add(tensors):
        tensors["c"][:] = tensors["a"] + tensors["b"] + OFF

    if __name__ == "__main__":
        parser = argparse.ArgumentParser()
        parser.add_argument("-p", "--platform", default="a2a3", choices=["a2a3", "a2a3sim", "a5", "a5sim"])
        parser.add_argument("--off", type=float, default=0)
        args = parser.parse_args()
        OFF = args.off
        result = run_jit(
            add,
            [
                TensorSpec("a", [8, N], torch.float32, init_value=torch.randn),
                TensorSpec("b", [8, N], torch.float32, init_value=torch.randn),
                TensorSpec("c", [8, N], torch.float32, is_output=True),
            ],
            golden_fn=golden_add,
            runtime_cfg={"platform": args.platform},
            save_data=False,
        )
        if not result.passed:
            print(result.error)
            raise SystemExit(1)
"""


def add_with(scripts: Scripts, old: str, new: str, name: str = "add.py") -> Path:
    """The script ADD with one change."""
    assert ADD.count(old) == 1
    return scripts.write(name, ADD.replace(old, new))


def test_there_are_complete_scripts() -> None:
    assert len(list(COMPLETE.glob("*.py"))) == 10


@pytest.mark.parametrize(
    ("name", "old", "new", "text"),
    [
        ("softmax_rows", "pl.row_sum(e)", "pl.row_max(e)", "'y' FAIL"),
        ("layer_norm", "pl.mul(pl.row_sum(h_tile), INV_D)", "pl.row_sum(h_tile)", "'y' FAIL"),
        ("matmul_bias_gelu", "pl.pipeline(1, K_BLOCKS, stage=2)", "pl.pipeline(2, K_BLOCKS, stage=2)", "'y' FAIL"),
        ("topk_rows", "[1, 2 * K], [0, 0])", "[1, 2 * K], [0, 2])", "'vals' FAIL"),
        ("transpose_tiles", "pl.transpose(tile, 0, 1), [n0, m0]", "pl.transpose(tile, 0, 1), [0, m0]", "GG401"),
        ("flash_attention", "pl.mul(l_sum, alpha)", "l_sum", "'out' FAIL"),
        ("prefix_scan", "pl.row_expand_add(local_tile, carry_tile)", "local_tile", "'y' FAIL"),
        ("histogram", "atomic=pl.AtomicType.Add", "atomic=pl.AtomicType.None_", "GG401"),
        ("all_reduce", "pld.system.wait(sent, [p, 0], 1, cmp=pld.WaitCmp.Ge)", "pass", "GG404"),
        ("ring_matmul", "owner = (me + RANKS - s)", "owner = (me + 1 + RANKS - s)", "'y' FAIL"),
    ],
)
def test_a_complete_script_can_fail(scripts: Scripts, capsys, name: str, old: str, new: str, text: str) -> None:
    source = (COMPLETE / f"{name}.py").read_text()
    assert source.count(old) == 1
    scripts.write(f"{name}.py", source.replace(old, new))
    assert scripts.run(f"{name}.py") == 1
    assert text in capsys.readouterr().out


@pytest.mark.parametrize("schedule", [0, 7])
@pytest.mark.parametrize("path", sorted(COMPLETE.glob("*.py")), ids=lambda p: p.stem)
def test_a_complete_script_runs(path: Path, schedule: int, capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # a script saves its data below the current directory
    assert cli.main(["run-file", "--schedule", str(schedule), str(path), "--", "-p", "a2a3sim"]) == 0
    printed = capsys.readouterr().out
    assert f"answered by the goldengate emulator, schedule {schedule}" in printed
    assert "[RUN] PASS (" in printed
    assert "FAIL" not in printed


def test_a_script_gets_its_command_line(scripts: Scripts, capsys) -> None:
    scripts.write("add.py", ADD)
    assert scripts.run("add.py", "--platform", "a2a3sim") == 0
    assert "[RUN] platform a2a3sim:" in capsys.readouterr().out


def test_bad_arguments_of_the_script_exit_with_2(scripts: Scripts, capsys) -> None:
    scripts.write("add.py", ADD)
    assert scripts.run("add.py", "-p", "a4") == 2
    assert "invalid choice: 'a4'" in capsys.readouterr().err


def test_a_failing_golden_exits_with_1(scripts: Scripts, capsys) -> None:
    scripts.write("add.py", ADD)
    assert scripts.run("add.py", "--off", "0.5") == 1
    printed = capsys.readouterr().out
    assert "[RUN]   'c' FAIL" in printed
    assert "256 of 256 elements mismatch" in printed


def test_a_script_that_ignores_a_failed_result_exits_with_1(scripts: Scripts, capsys) -> None:
    add_with(scripts, "raise SystemExit(1)", "pass")
    assert scripts.run("add.py", "--off", "0.5") == 1
    assert "ended normally although a run failed" in capsys.readouterr().out


def test_a_script_without_a_run_is_noted(scripts: Scripts, capsys) -> None:
    scripts.write("empty.py", "import pypto.language as pl\n")
    assert scripts.run("empty.py") == 0
    assert "ended without a run: nothing was verified" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argument", "code", "text"),
    [("", 0, ""), ("0", 0, ""), ("3", 3, ""), ("None", 0, ""), ("'why'", 1, "why\n"), ("True", 1, "")],
)
def test_the_code_of_sys_exit_is_the_exit_code(scripts: Scripts, capsys, argument: str, code: int, text: str) -> None:
    scripts.write("leave.py", f"import sys\nsys.exit({argument})\n")
    assert scripts.run("leave.py") == code
    assert capsys.readouterr().err == text


@pytest.mark.parametrize(
    ("old", "new", "place", "reason"),
    [
        ("N = 32", "N = = 32", 7, "syntax error"),
        ("pl.add(a[0:8, 0:N], b[0:8, 0:N])", "[x for x in a]", 12, "comprehension"),
        ('TensorSpec("c", [8, N]', 'TensorSpec("c", [8, 16]', 9, "c: axis 1 is declared 32"),
    ],
    ids=["syntax", "comprehension", "shape"],
)
def test_what_the_front_end_refuses_is_one_line_and_exit_2(
    scripts: Scripts, capsys, old: str, new: str, place: int, reason: str
) -> None:
    path = add_with(scripts, old, new)
    assert scripts.run("add.py") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"goldengate: error: {path}:{place}: ")
    assert reason in error


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("c[0:8, 0:N] =", "c[0:8, 8:40] =", "out of bounds"),
        ("pl.add(a[0:8, 0:N], b[0:8, 0:N])", "a[0:8, 0:N] + b[0:8, 0:N]", "infix + is for scalars only"),
    ],
)
def test_a_fault_of_the_kernel_is_one_line_and_exit_1(
    scripts: Scripts, capsys, old: str, new: str, reason: str
) -> None:
    path = add_with(scripts, old, new)
    assert scripts.run("add.py") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"goldengate: error: {path}:12: ")
    assert reason in error


def test_an_error_of_the_script_is_shown_as_python_would(scripts: Scripts, capsys) -> None:
    path = add_with(scripts, 'tensors["a"] + tensors["b"] + OFF', 'tensors["a"] + tensors["d"]')
    assert scripts.run("add.py") == 1
    error = capsys.readouterr().err
    assert error.startswith(f'Traceback (most recent call last):\n  File "{path}"')
    assert error.endswith("KeyError: 'd'\n")
    assert "script.py" not in error


def test_a_file_that_cannot_be_read_exits_with_2(scripts: Scripts, capsys) -> None:
    assert cli.main(["run-file", str(scripts.folder / "no.py")]) == 2
    assert (
        capsys.readouterr().err
        == f"goldengate: error: {scripts.folder / 'no.py'} cannot be read: No such file or directory\n"
    )


def test_findings_fail_unless_they_are_let_pass(scripts: Scripts, capsys) -> None:
    add_with(scripts, "[8, N], pl.FP32]]):", "[8, N], pl.BF16]]):")
    source = (
        (scripts.folder / "add.py").read_text().replace('"c", [8, N], torch.float32', '"c", [8, N], torch.bfloat16')
    )
    source = source.replace('tensors["a"] + tensors["b"] + OFF', '(tensors["a"] + tensors["b"]).bfloat16()')
    path = scripts.write("add.py", source)
    assert cli.main(["run-file", str(path)]) == 1
    assert "error GG209" in capsys.readouterr().out
    cli.main(["run-file", "--lint", "warn", str(path)])
    assert f"note: {path}:12: error GG209" in capsys.readouterr().out


def test_a_configuration_overridden_before_the_siblings_are_imported(scripts: Scripts, capsys) -> None:
    scripts.write("config.py", "ROWS = 8\nCOLS = 16\n")
    scripts.write("shapes.py", "from config import COLS, ROWS\nSHAPE = [ROWS, COLS]\n")
    scripts.write(
        "main.py",
        """
        import config
        config.COLS = 64
        import torch
        import pypto.language as pl
        from shapes import SHAPE
        from golden import TensorSpec, run_jit

        COLS = SHAPE[1]

        @pl.jit
        def copy(x: pl.Tensor[SHAPE, pl.FP32], y: pl.Out[pl.Tensor[SHAPE, pl.FP32]]):
            with pl.at(level=pl.Level.CORE_GROUP):
                y[0:8, 0:COLS] = x[0:8, 0:COLS]
            return y

        specs = [
            TensorSpec("x", SHAPE, torch.float32, init_value=torch.ones),
            TensorSpec("y", SHAPE, torch.float32, is_output=True),
        ]
        assert run_jit(copy, specs, lambda t: t["y"].copy_(t["x"]), save_data=False).passed
        """,
    )
    assert scripts.run("main.py") == 0
    assert "shape=(8, 64)" in capsys.readouterr().out
    assert scripts.run("main.py") == 0, "a second run imports config anew"


CHAIN = {
    "config.py": "FACTOR = 3.0\n",
    "leaf.py": """
        import pypto.language as pl
        from config import FACTOR

        @pl.jit.inline
        def leaf(x: pl.Tensor[[8, 8], pl.FP32]):
            y = pl.mul(x, FACTOR)
            return y
    """,
    "middle.py": """
        import pypto.language as pl
        from leaf import leaf
        FACTOR = 100.0

        @pl.jit.inline
        def middle(x: pl.Tensor[[8, 8], pl.FP32]):
            y = leaf(x)
            z = pl.add(y, FACTOR)
            return z
    """,
    "top.py": """
        import torch
        import pypto.language as pl
        from golden import TensorSpec, run_jit
        from middle import middle
        FACTOR = 7.0

        @pl.jit
        def top(x: pl.Tensor[[8, 8], pl.FP32], y: pl.Out[pl.Tensor[[8, 8], pl.FP32]]):
            with pl.at(level=pl.Level.CORE_GROUP):
                t = middle(x[0:8, 0:8])
                y[0:8, 0:8] = pl.mul(t, FACTOR)
            return y

        if __name__ == "__main__":
            specs = [
                TensorSpec("x", [8, 8], torch.float32, init_value=torch.ones),
                TensorSpec("y", [8, 8], torch.float32, is_output=True),
            ]
            result = run_jit(top, specs, lambda t: t["y"].fill_((1 * 3 + 100) * 7), save_data=False)
            raise SystemExit(0 if result.passed else 1)
    """,
}


def test_kernels_import_kernels_and_keep_their_own_globals(scripts: Scripts) -> None:
    for name, source in CHAIN.items():
        scripts.write(name, source)
    assert scripts.run("top.py") == 0


def test_a_fault_in_an_imported_kernel_is_located_there(scripts: Scripts, capsys) -> None:
    for name, source in CHAIN.items():
        scripts.write(name, source)
    path = scripts.write("leaf.py", CHAIN["leaf.py"].replace("pl.mul(x, FACTOR)", "pl.mul(x[0:16, 0:8], FACTOR)"))
    assert scripts.run("top.py") in (1, 2)
    assert capsys.readouterr().err.startswith(f"goldengate: error: {path}:7: ")


def test_a_refusal_in_an_imported_kernel_is_located_there(scripts: Scripts, capsys) -> None:
    for name, source in CHAIN.items():
        scripts.write(name, source)
    path = scripts.write("leaf.py", CHAIN["leaf.py"].replace("pl.mul(x, FACTOR)", "x if x else x"))
    assert scripts.run("top.py") == 2
    assert capsys.readouterr().err.startswith(f"goldengate: error: {path}:7: ")


def test_a_syntax_error_beside_the_script_exits_with_2(scripts: Scripts, capsys) -> None:
    for name, source in CHAIN.items():
        scripts.write(name, source)
    path = scripts.write("config.py", "FACTOR = = 3.0\n")
    assert scripts.run("top.py") == 2
    assert capsys.readouterr().err == f"goldengate: error: {path}:1: syntax error: invalid syntax\n"


def test_a_kernel_is_called_directly(scripts: Scripts) -> None:
    scripts.write(
        "direct.py",
        """
        import torch
        import pypto.language as pl
        from pypto.runtime import RunConfig

        @pl.jit
        def double(x: pl.Tensor[[8, 8], pl.FP32], y: pl.Out[pl.Tensor[[8, 8], pl.FP32]]):
            with pl.at(level=pl.Level.CORE_GROUP):
                y[0:8, 0:8] = pl.mul(x[0:8, 0:8], 2.0)
            return y

        x, y = torch.ones(8, 8), torch.zeros(8, 8)
        config = RunConfig(platform="a2a3sim")
        assert double(x, y, config=config) is None
        assert y.eq(2).all()
        assert double(x).eq(2).all()
        compiled = double.compile(x, y, config=config)
        assert compiled.param_names == ["x", "y"]
        assert compiled.output_indices == [1]
        y.zero_()
        compiled(x, y)
        assert y.eq(2).all()
        try:
            double(x, torch.zeros(4, 8))
        except Exception as error:
            assert "axis 0 is declared 8" in str(error)
        else:
            raise AssertionError("accepted")
        """,
    )
    assert scripts.run("direct.py") == 0


def test_the_toolchains_python_side_is_there(scripts: Scripts) -> None:
    scripts.write(
        "imports.py",
        """
        import importlib.util
        import pypto.language.distributed as pld
        from pypto.backend import BackendType
        from pypto.ir.distributed_compiled_program import DistributedConfig
        from pypto.runtime import RunConfig
        import golden, golden.spec

        config = RunConfig(distributed_config=DistributedConfig(device_ids=[0, 1]))
        assert (config.platform, config.backend_type) == ("a2a3sim", BackendType.Ascend910B)
        assert config.distributed_config.world_size == 2
        assert golden.spec.TensorSpec is golden.TensorSpec
        assert importlib.util.find_spec("pypto") is not None
        try:
            RunConfig(platfrom="a2a3")
        except TypeError:
            pass
        else:
            raise AssertionError("accepted")
        """,
    )
    assert scripts.run("imports.py") == 0


def test_fixtures_repeat_with_the_seed_and_the_generator_is_restored(scripts: Scripts, capsys) -> None:
    scripts.write("draw.py", "import torch\nprint(torch.rand(1).item())\n")
    before = torch.get_rng_state()
    drawn = []
    for seed in (0, 0, 1):
        scripts.run("draw.py", seed=seed)
        drawn.append(capsys.readouterr().out)
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.get_rng_state(), before)


def state() -> dict[str, Any]:
    return {"modules": dict(sys.modules), "path": list(sys.path), "argv": list(sys.argv), "cwd": os.getcwd(),
            "meta_path": list(sys.meta_path)}  # fmt: skip


@pytest.mark.parametrize("ending", ["", "raise ValueError('x')", "raise SystemExit(4)"])
def test_the_process_is_left_as_it_was(scripts: Scripts, capsys, ending: str) -> None:
    scripts.write("helper.py", "VALUE = 1\n")
    scripts.write("json.py", "raise AssertionError('the standard library is not shadowed')\n")
    scripts.write(
        "spoil.py",
        f"""
        import json, os, sys
        import helper, pypto.language, golden
        assert sys.argv == [{str(scripts.folder / "spoil.py")!r}, "-x"]
        assert sys.modules["__main__"].__file__ == {str(scripts.folder / "spoil.py")!r}
        sys.argv = ["other"]
        sys.path.insert(0, "/nowhere")
        os.chdir("/")
        {ending}
        """,
    )
    cwd = os.getcwd()
    scripts.run("spoil.py", "-x")  # the first run may load installed modules, which stay
    assert os.getcwd() == cwd
    before = state()
    scripts.run("spoil.py", "-x")
    assert state() == before
    assert not {"helper", "pypto", "golden", "spoil"} & set(sys.modules)
    assert "not shadowed" not in capsys.readouterr().err


# -- verify OP --kernel FILE:FUNCTION -----------------------------------------------------------------


def test_a_whole_script_loads_as_a_kernel_file(scripts: Scripts) -> None:
    path = scripts.write("add.py", ADD + "\n    import sys\n    assert len(sys.argv) == 1\n")
    before = state()
    assert list(load_functions(path, {}, None)) == ["add"]
    assert state() == before


def test_a_script_with_sibling_kernels_loads_as_a_kernel_file(scripts: Scripts) -> None:
    for name, source in CHAIN.items():
        scripts.write(name, source)
    assert list(load_functions(scripts.folder / "top.py", {}, None)) == ["top"]
    assert not {"leaf", "middle", "config", "top"} & set(sys.modules)


@pytest.mark.parametrize(
    ("name", "source", "place", "reason"),
    [
        ("config.py", "FACTOR = 1 / 0\n", "config.py:1", "ZeroDivisionError"),
        ("config.py", "import sys\nsys.exit('no device')\n", "config.py:2", "SystemExit: no device"),
        ("config.py", "FACTOR = (\n", "config.py:1", "SyntaxError"),
    ],
)
def test_an_error_beside_a_kernel_file_is_located_there(
    scripts: Scripts, name: str, source: str, place: str, reason: str
) -> None:
    for other, text in CHAIN.items():
        scripts.write(other, text)
    scripts.write(name, source)
    with pytest.raises(KernelRefused, match=reason) as error:
        load_functions(scripts.folder / "top.py", {}, None)
    assert f"{error.value.file}:{error.value.line}" == str(scripts.folder / place)


def test_verify_takes_a_kernel_out_of_a_script(scripts: Scripts, capsys) -> None:
    """The shipped kernel of an op, put into a script with a golden of its own and a helper beside it."""
    shipped = (Path(__file__).parents[3] / "kernels" / "rms_norm.py").read_text()
    scripts.write("helper.py", "LIMIT = 3\n")
    tail = """
from golden import TensorSpec, run_jit
from helper import LIMIT

if __name__ == "__main__":
    raise AssertionError
"""
    path = scripts.write("mine.py", shipped + tail)
    assert cli.main(["verify", "rms_norm", "--case", "default", "--kernel", f"{path}:rms_norm"]) == 0
    assert "1 pass" in capsys.readouterr().out
