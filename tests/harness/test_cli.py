"""The command line through `main(argv)`: exit codes, and one line without a traceback for every mistake."""

import json
from pathlib import Path

import pytest

from harness.cli import main
from harness.commands import verify
from harness.errors import UsageError
from harness.execute import batches
from harness.run import Run
from harness.selection import numbers
from harness.tolerances import DEFAULT_PATH

KERNEL = Path(__file__).parents[2] / "kernels" / "rms_norm.py"


def error_of(capsys, *argv):
    """The one line of stderr of a command that must exit with 2."""
    assert main(list(argv)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("goldengate: error: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err.removeprefix("goldengate: error: ").strip()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["verify", "gat"], "unknown op 'gat'; did you mean gate?"),
        (["verify", "gate", "--preset", "flsh"], "unknown preset 'flsh'; did you mean flash?"),
        (["verify", "gate", "--deployment", "decod"], "unknown deployment 'decod'; did you mean decode?"),
        (["verify", "gate", "--case", "hsh"], "unknown case 'hsh'; did you mean hash?"),
        (["verify", "gate", "--device", "emulatr"], "unknown device 'emulatr'; did you mean emulator?"),
        (["verify", "gate", "--tiles", "pr1"], "gate tiny/decode: unknown tile set 'pr1'; known: pr672, before_pr672"),
        (["verify", "--seed", "x"], "'x' is no list of numbers >= 0"),
        (["verify", "--seed", "-1"], "'-1' is no list of numbers >= 0"),
        (["verify", "--seed", "5..2"], "'5..2' is an empty range"),
        (["verify", "--schedule", "0..99999999999"], "is more than 100000 numbers"),
        (["verify", "-j", "0"], "'0' is no number >= 1"),
        (["verify", "--lint", "off"], "invalid choice: 'off'"),
        (["verify", "--checks", "maybe"], "invalid choice: 'maybe'"),
        (["verify", "gate", "--checks=off", "--device", "pypto"], "--checks=off is an option of the emulator"),
        (["verify", "gate", "--kernel", "/none/k.py"], "kernel file /none/k.py does not exist"),
        (["verify", "gate", "--kernel", "/tmp"], "kernel file /tmp is not a file"),
        (["verify", "--kernel", str(KERNEL)], "--kernel judges one op"),
        (["verify", "rms_norm", "--json", "/none/x.json"], "cannot write /none/x.json: No such file or directory"),
        (["verify", "gate", "--tolerances", "/none.yaml"], "/none.yaml: No such file or directory"),
        (["verify", "gate", "--case", "hash_out_of_range"], "tid2eid"),
        (["verify", "gate", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["verfy"], "invalid choice: 'verfy'"),
        ([], "the following arguments are required: COMMAND"),
        (["list", "gat"], "unknown op 'gat'; did you mean gate?"),
        (["golden"], "the following arguments are required: OP"),
        (["golden", "rms_norm", "--save", "/proc/none"], "cannot write a snapshot below /proc/none"),
    ],
)
def test_rejects_bad_input_in_one_line(capsys, argv, message, monkeypatch):
    if "--save" in argv:  # the table is printed before the snapshot is written
        monkeypatch.setattr("builtins.print", lambda *a, file=None, **k: file and file.write(" ".join(a) + "\n"))
    assert message in error_of(capsys, *argv)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(:\n", "k.py:1"),
        ("import pypto.language as pl\n", "no entry 'rms_norm'"),
        (KERNEL.read_text().replace("norm_w", "gamma"), "expects 'norm_w'"),
    ],
)
def test_rejects_a_kernel_file_that_the_front_end_refuses(capsys, tmp_path, source, message):
    path = tmp_path / "k.py"
    path.write_text(source)
    assert message in error_of(capsys, "verify", "rms_norm", "--case", "default", "--kernel", str(path))


def test_rejects_a_function_that_the_file_does_not_have(capsys):
    error = error_of(capsys, "verify", "rms_norm", "--kernel", f"{KERNEL}:other")
    assert "'other'" in error
    assert "rms_norm" in error


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("rms_norm:", "rms_nrm:", "unknown op 'rms_nrm'"),
        ("max_ulp: 1", "max_ulp: .nan", "expected a whole number"),
        ("bias_z: 6", "bias_z: -6", "expected a finite number >= 0"),
        ("rms_norm:", "rms_norm: [", "malformed YAML"),
    ],
)
def test_rejects_a_wrong_tolerances_file(capsys, tmp_path, before, after, message):
    path = tmp_path / "t.yaml"
    path.write_text(DEFAULT_PATH.read_text().replace(before, after, 1))
    error = error_of(capsys, "verify", "rms_norm", "--tolerances", str(path))
    assert f"{path}:" in error
    assert message in error


def test_verify_prints_the_table_and_writes_json(capsys, tmp_path):
    path = tmp_path / "out.json"
    argv = ["verify", "rms_norm", "--case", "default", "--seed", "0,3", "--schedule", "0..2", "--json", str(path)]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "default × seeds 2 in 0..3 × schedules 0..2" in out
    assert "6 runs in" in out
    document = json.loads(path.read_text())
    assert [run["id"] for run in document["runs"]][:2] == [
        "rms_norm-tiny-decode-default-seed0",
        "rms_norm-tiny-decode-default-seed0-schedule1",
    ]


def test_without_checks_the_bits_are_the_same_and_the_repeat_line_says_so(capsys, tmp_path):
    runs = []
    for checks in ("on", "off"):
        report = tmp_path / f"{checks}.json"
        assert main(["verify", "rms_norm", "--case", "default", f"--checks={checks}", "--json", str(report)]) == 0
        runs += json.loads(report.read_text())["runs"]
    capsys.readouterr()
    checked, unchecked = runs
    assert checked["outputs"] == unchecked["outputs"]
    assert checked["run"]["checks"] == "on"
    assert "--checks" not in checked["reproduce"]
    assert unchecked["run"]["checks"] == "off"
    assert unchecked["reproduce"].endswith("--checks off")


def test_a_users_own_kernel_is_judged_like_the_shipped_one(capsys, tmp_path):
    good, bad = tmp_path / "copy.py", tmp_path / "fault.py"
    good.write_text(KERNEL.read_text())
    bad.write_text(KERNEL.read_text().replace('pl.BF16, mode="rint")', 'pl.BF16, mode="trunc")'))
    assert main(["verify", "rms_norm", "--kernel", str(good)]) == 0
    assert main(["verify", "rms_norm", "--case", "default", "--kernel", f"{bad}:rms_norm", "-x"]) == 1
    out = capsys.readouterr().out
    assert "FAIL rms_norm tiny/decode default seed 0 schedule 0: x_normed: " in out
    assert f"--kernel {bad}:rms_norm" in out


def test_unverified_has_its_own_exit_code(capsys, tmp_path):
    path = tmp_path / "t.yaml"
    text = DEFAULT_PATH.read_text()
    path.write_text(text[text.index("hc_pre:") :])
    assert main(["verify", "rms_norm", "--tolerances", str(path)]) == 3
    assert "unverified: no tolerance for x_normed" in capsys.readouterr().out


def test_nothing_compared_is_not_a_pass(capsys):
    assert main(["verify", "expert_routed", "--case", "empty"]) == 3
    assert "nothing to compare" in capsys.readouterr().out


def test_an_error_of_goldengate_itself_says_so(capsys, monkeypatch):
    monkeypatch.setattr(verify, "expand", lambda *_, **__: 1 / 0)
    assert main(["verify", "rms_norm"]) == 4
    assert "internal error: this is a bug of goldengate" in capsys.readouterr().err


@pytest.mark.slow  # starts two processes, each of which imports torch; run with -m slow
def test_jobs_change_neither_order_nor_figures(capsys, tmp_path):
    found = []
    for jobs in ("1", "2"):
        path = tmp_path / f"{jobs}.json"
        argv = ["verify", "rms_norm", "hc_post", "--schedule", "0..3", "-j", jobs, "--json", str(path)]
        assert main(argv) == 0
        runs = json.loads(path.read_text())["runs"]
        found.append([{key: value for key, value in run.items() if key != "seconds"} for run in runs])
    assert found[0] == found[1]


def test_batches_keep_order_and_inputs_together():
    runs = [Run("gate", seed=seed, schedule=s) for seed in (0, 1) for s in range(20)]
    grouped = batches(runs)
    assert [run for batch in grouped for run in batch] == runs
    assert [len(batch) for batch in grouped] == [16, 4, 16, 4]


def test_list_and_golden(capsys, tmp_path):
    assert main(["list", "gate"]) == 0
    out = capsys.readouterr().out
    assert "top-k by biased" in out
    assert "hash" in out
    assert main(["golden", "rms_norm", "--case", "default", "--save", str(tmp_path)]) == 0
    assert "x_normed" in capsys.readouterr().out
    snapshot = tmp_path / "rms_norm-tiny-decode-default-seed0"
    manifest = json.loads((snapshot / "manifest.json").read_text())
    assert manifest["tensors"]["x_normed"]["role"] == "out"
    assert set(manifest["files"]) == {"in.safetensors", "out.safetensors", "stages.safetensors"}
    from safetensors.torch import load_file

    from specs.registry import load_op

    op = load_op("rms_norm")
    saved = load_file(snapshot / "in.safetensors")
    assert bool((saved["x"] == op.inputs()["x"]).all())
    assert bool((load_file(snapshot / "out.safetensors")["x_normed"] == op.golden(op.inputs())["x_normed"]).all())


@pytest.mark.parametrize(
    ("text", "values"), [("3", [3]), ("1,2", [1, 2]), ("0..3", [0, 1, 2, 3]), ("2..3,0,2", [0, 2, 3])]
)
def test_numbers(text, values):
    assert numbers(text) == values


@pytest.mark.parametrize("text", ["", "x", "1,", "-1", "1.5", "1..", "9" * 30])
def test_rejects_what_is_no_number(text):
    with pytest.raises(UsageError):
        numbers(text)


def test_an_override_changes_sizes_and_is_part_of_the_repeat_line(capsys, tmp_path):
    path = tmp_path / "verdicts.json"
    argv = ["verify", "rms_norm", "--case", "default", "--set", "tokens=16", "--set", "rms_norm_eps=1e-5"]
    assert main([*argv, "--json", str(path)]) == 0
    run = json.loads(path.read_text())["runs"][0]
    assert run["config"]["sizes"]["T"] == 16
    assert run["config"]["model"]["rms_norm_eps"] == 1e-5
    assert "--set tokens=16 --set rms_norm_eps=1e-05" in run["reproduce"]
    assert run["id"] == "rms_norm-tiny-decode-tokens16-rms_norm_eps1e-05-default-seed0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tokens", "'tokens' is no override, like tokens=16"),
        ("tokens=many", "'tokens=many' is no override, like tokens=16"),
        ("tokns=16", "unknown override 'tokns'"),
        ("tokens=7", "T = 7 is no multiple of 8"),
        ("rms_norm_eps=nan", "rms_norm_eps is nan"),
    ],
)
def test_rejects_an_override_that_cannot_be(capsys, text, message):
    assert message in error_of(capsys, "verify", "rms_norm", "--set", text)
