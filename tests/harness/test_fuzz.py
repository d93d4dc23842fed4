"""`goldengate fuzz`: finds planted faults, shrinks them, keeps and replays them, finds nothing in shipped kernels."""

import json
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from standin import GoldenDevice

from harness import fuzz
from harness.cli import main
from harness.errors import UsageError
from harness.fuzz import worker
from harness.run import Run
from specs.registry import load_op
from specs.variations import AXES

KERNELS = Path(__file__).parents[2] / "kernels"
COMMON = Run("")


def plan(tmp_path, *ops, seed=0, seconds=60.0, common=COMMON):
    return fuzz.Plan(ops, common, seed, time.time() + seconds, tmp_path / "db")


def planted(tmp_path, op, before, after):
    source = (KERNELS / f"{op}.py").read_text(encoding="utf-8")
    assert before in source
    path = tmp_path / f"{op}.py"
    path.write_text(source.replace(before, after), encoding="utf-8")
    return str(path)


def kept(tmp_path, op):
    path = tmp_path / "db" / f"{op}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_examples_depend_on_the_seed_and_their_number_alone(tmp_path):
    first = list(islice(fuzz.examples(plan(tmp_path), "gate"), 12))
    assert first[5:8] == list(islice(fuzz.examples(plan(tmp_path), "gate", 5), 3))
    assert first != list(islice(fuzz.examples(plan(tmp_path, seed=1), "gate"), 12))
    assert [r.case for r in first] != [r.case for r in islice(fuzz.examples(plan(tmp_path), "hc_pre"), 12)]


def test_examples_reach_every_axis_case_token_count_and_schedule(tmp_path):
    runs = list(islice(fuzz.examples(plan(tmp_path), "gate"), 1000))
    varied = {name for run in runs for name, _ in run.overrides}
    assert varied == {*AXES, "tokens"}
    assert {run.case for run in runs} >= {c.name for c in load_op("gate").cases if not c.invalid}
    assert {run.deployment for run in runs} == {"decode", "decode_mtp", "prefill"}
    assert 0.1 < sum(run.schedule == 0 for run in runs) / len(runs) < 0.4
    assert len({run.seed for run in runs}) > 990


def test_shrinks_to_the_plainest_example_that_fails_in_the_same_place():
    start = Run(
        "gate", deployment="prefill", case="hash", seed=77, schedule=9,
        overrides=(("hidden_size", 768), ("rms_norm_eps", 1e-3), ("tokens", 64)),
    )  # fmt: skip

    def check(run):
        sizes = dict(run.overrides)
        if sizes.get("hidden_size") in (512, 768) and (sizes.get("tokens") or 8) >= 16:
            return "weights"
        return "x_norm" if run.seed == 0 else None  # another failure: not the one that is shrunk

    found = fuzz.shrink(start, check, time.time() + 60)
    assert found == Run("gate", seed=0, overrides=(("hidden_size", 512), ("tokens", 16)))


def test_shrinking_stops_when_the_time_is_up():
    start = Run("gate", case="hash", schedule=9)
    assert fuzz.shrink(start, lambda run: "weights", time.time() - 1) == start


def test_rejects_a_planted_fault_and_shrinks_it(tmp_path, capsys):
    """Found within a minute, with a command that repeats it, at the plainest sizes."""
    kernel = planted(tmp_path, "rms_norm", 'pl.BF16, mode="rint"', 'pl.BF16, mode="trunc"')
    argv = ["fuzz", "rms_norm", "--minutes", "0.05", "--kernel", kernel, "--database", str(tmp_path / "db")]
    assert main(argv) == 1
    captured = capsys.readouterr()
    assert "1 failures" in captured.out
    assert "x_normed" in captured.out
    (example,) = kept(tmp_path, "rms_norm")
    command = next(line for line in captured.out.splitlines() if "repeat: goldengate verify rms_norm" in line)
    assert command.strip() == (
        f"repeat: goldengate verify rms_norm --preset tiny --deployment decode --case {example['case']} "
        f"--seed {example['seed']} --schedule 0 --kernel {kernel}"
    )
    assert example["overrides"] == []
    assert main([*command.split()[2:]]) == 1


def test_replays_the_kept_example_first_and_forgets_it_once_it_passes(tmp_path, capsys):
    kernel = planted(tmp_path, "rms_norm", 'pl.BF16, mode="rint"', 'pl.BF16, mode="trunc"')
    argv = ["fuzz", "rms_norm", "--kernel", kernel, "--database", str(tmp_path / "db")]
    assert main([*argv, "--minutes", "0.05"]) == 1
    before = kept(tmp_path, "rms_norm")
    capsys.readouterr()
    # No time for a single new example: what fails is the kept one.
    assert main([*argv, "--minutes", "1e-9"]) == 1
    assert "(1 replayed)" in capsys.readouterr().out
    assert kept(tmp_path, "rms_norm") == before
    # Another kernel does not replay it, and leaves it alone.
    assert main(["fuzz", "rms_norm", "--minutes", "0.01", "--database", str(tmp_path / "db")]) == 0
    assert kept(tmp_path, "rms_norm") == before
    # The kernel is repaired.
    Path(kernel).write_text((KERNELS / "rms_norm.py").read_text(), encoding="utf-8")
    capsys.readouterr()
    assert main([*argv, "--minutes", "0.01"]) == 0
    assert kept(tmp_path, "rms_norm") == []


@pytest.mark.slow  # the whole of the time limit; run with -m slow
@pytest.mark.parametrize(
    ("op", "before", "after"),
    [
        ("gate", "pl.mul(share, ROUTED_SCALING)", "share"),
        ("hc_pre", "pl.range(K_SLICES)", "pl.range(K_SLICES - 1)"),
        ("expert_shared", 'pl.INT32, mode="rint"', 'pl.INT32, mode="trunc"'),
    ],
)
def test_rejects_planted_faults_of_other_ops_within_a_minute(tmp_path, capsys, op, before, after):
    kernel = planted(tmp_path, op, before, after)
    argv = ["fuzz", op, "--minutes", "0.5", "--kernel", kernel, "--database", str(tmp_path / "db")]
    start = time.time()
    assert main(argv) == 1
    assert time.time() - start < 60
    assert "repeat: goldengate verify" in capsys.readouterr().out


def test_accepts_the_shipped_kernels(tmp_path, capsys):
    assert main(["fuzz", "rms_norm", "hc_post", "--minutes", "0.05", "--database", str(tmp_path / "db")]) == 0
    out = capsys.readouterr().out
    assert "0 failures" in out
    assert kept(tmp_path, "rms_norm") == kept(tmp_path, "hc_post") == []


@pytest.mark.slow  # processes import everything anew; run with -m slow
def test_processes_find_what_one_process_finds(tmp_path, capsys):
    kernel = planted(tmp_path, "rms_norm", 'pl.BF16, mode="rint"', 'pl.BF16, mode="trunc"')
    argv = ["fuzz", "rms_norm", "--minutes", "0.3", "-j", "2", "--kernel", kernel, "--database", str(tmp_path / "db")]
    assert main(argv) == 1
    assert "1 failures" in capsys.readouterr().out
    assert kept(tmp_path, "rms_norm")  # each process may have found and kept its own example


def test_an_interrupt_prints_the_summary_and_keeps_what_was_found(tmp_path, capsys, monkeypatch):
    calls = []

    def change(run, inputs):
        calls.append(1)
        run.outputs["x_normed"][0, 0] = 7.0
        if len(calls) == 4:  # while the first failure is being shrunk
            raise KeyboardInterrupt

    monkeypatch.setattr(worker, "get_device", lambda name: GoldenDevice(change))
    argv = ["fuzz", "rms_norm", "--minutes", "1", "--database", str(tmp_path / "db")]
    assert main(argv) == 1
    out = capsys.readouterr().out
    assert "1 failures, interrupted" in out
    assert len(kept(tmp_path, "rms_norm")) == 1


def test_an_interrupt_without_a_failure_exits_as_interrupted(tmp_path, capsys, monkeypatch):
    def change(run, inputs):
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "get_device", lambda name: GoldenDevice(change))
    assert main(["fuzz", "rms_norm", "--database", str(tmp_path / "db")]) == 130
    assert "interrupted" in capsys.readouterr().out


def test_an_op_that_fails_in_many_ways_is_left_alone(tmp_path, monkeypatch):
    runs = []

    def change(run, inputs):
        runs.append(1)
        run.outputs[f"extra{'abc'[len(runs) % 3]}"] = run.outputs["x_normed"]

    monkeypatch.setattr(worker, "get_device", lambda name: GoldenDevice(change))
    monkeypatch.setattr(worker, "_SHRINK_SECONDS", 0.0)
    tallies = {}
    start = time.time()
    fuzz.fuzz(plan(tmp_path, "rms_norm", seconds=50), 1, tallies, lambda *_: None)
    assert len({failure.place for failure in tallies["rms_norm"].failures}) == 3
    assert time.time() - start < 40


def test_nothing_run_is_not_a_pass(tmp_path, capsys):
    assert main(["fuzz", "rms_norm", "--minutes", "1e-9", "--database", str(tmp_path / "db")]) == 3


def test_sizes_that_a_kernel_refuses_are_counted_and_not_an_error(tmp_path, capsys):
    """Someone's kernel for one width."""
    refuse = 'if D != 256:\n    raise ValueError("D")'
    kernel = planted(tmp_path, "rms_norm", "D_INV = 1.0 / D", f"D_INV = 1.0 / D\n{refuse}")
    argv = ["fuzz", "rms_norm", "--minutes", "0.05", "--kernel", kernel, "--database", str(tmp_path / "db")]
    assert main(argv) == 0
    row = next(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("rms_norm"))
    assert int(row[-1]) > 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["gat"], "unknown op 'gat'; did you mean gate?"),
        (["--minutes", "0"], "'0' is no number of minutes above 0"),
        (["--minutes", "nan"], "'nan' is no number of minutes above 0"),
        (["--minutes", "soon"], "'soon' is no number of minutes above 0"),
        (["--seed", "-1"], "'-1' is no number >= 0"),
        (["-j", "0"], "'0' is no number >= 1"),
        (["--device", "emulatr"], "unknown device 'emulatr'; did you mean emulator?"),
        (["--kernel", str(KERNELS / "gate.py")], "--kernel is fuzzed as one op"),
        (["gate", "--kernel", "/none.py"], "kernel file /none.py does not exist"),
        (["gate", "--tiles", "pr1"], "unknown tile set 'pr1'"),
        (["gate", "--tolerances", "/none.yaml"], "/none.yaml: No such file or directory"),
    ],
)
def test_rejects_bad_input_in_one_line(capsys, argv, message):
    assert main(["fuzz", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_rejects_a_kernel_that_the_front_end_refuses(tmp_path, capsys):
    (tmp_path / "k.py").write_text("import pypto.language as pl\n")
    assert main(["fuzz", "gate", "--kernel", str(tmp_path / "k.py")]) == 2
    assert "no entry 'gate'" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["{", '{"op": "gate"}', '{"op": "gate", "overrides": [], "nonsense": 1}', "[1]"])
def test_rejects_a_database_that_is_not_ours(tmp_path, capsys, line):
    (tmp_path / "gate.jsonl").write_text(line + "\n")
    assert main(["fuzz", "gate", "--database", str(tmp_path)]) == 2
    assert f"{tmp_path / 'gate.jsonl'}:1: no example of this version" in capsys.readouterr().err


def test_the_database_keeps_each_example_once_and_per_kernel(tmp_path):
    database = fuzz.Database(tmp_path / "db")
    run = Run("gate", overrides=(("tokens", 16),), case="hash", seed=5, schedule=3)
    database.add(run)
    database.add(run)
    database.add(replace(run, kernel="k.py"))
    assert database.load("gate", COMMON) == [run]
    assert database.load("gate", replace(COMMON, kernel="k.py")) == [replace(run, kernel="k.py")]
    database.forget(run)
    assert database.load("gate", COMMON) == []
    assert len(database.load("gate", replace(COMMON, kernel="k.py"))) == 1


def test_rejects_a_database_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write below"):
        fuzz.Database(tmp_path / "file" / "db").add(Run("gate"))
