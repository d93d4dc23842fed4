"""`goldengate calibrate`: the table, what it refuses to write, held-out seeds, journals that are gone on from."""

from __future__ import annotations

import itertools
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.calibrate import check as checking
from harness.calibrate import ensemble, fit
from harness.calibrate.check import Checked
from harness.calibrate.ensemble import HELD_OUT, Plan, held_out
from harness.calibrate.fit import Fit
from harness.cli import main
from harness.errors import UsageError
from harness.journal import Journal
from harness.run import Run
from harness.tolerances import DEFAULT_PATH, load_tolerances
from harness.verify import Session, Verdict

ROOT = Path(__file__).parents[2]
FEW = ["calibrate", "rms_norm", "--devices", "2", "--seed", "0"]


@pytest.fixture
def tolerances(tmp_path: Path) -> Path:
    """A copy that may be written."""
    path = tmp_path / "tolerances.yaml"
    path.write_text(DEFAULT_PATH.read_text(encoding="utf-8"), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rms_nrm"], "unknown op 'rms_nrm'; did you mean rms_norm?"),
        (["rms_norm", "--devices", "0"], "--devices: '0' is no number >= 1"),
        (["rms_norm", "--seed", "x"], "'x' is no list of numbers"),
        (["rms_norm", "--seed", str(HELD_OUT)], f"seeds from {HELD_OUT} on are held out"),
        (["rms_norm", "--preset", "huge"], "unknown preset 'huge'"),
        (["rms_norm", "--margin", "0.5"], "--margin 0.5 is no number >= 1"),
        (["rms_norm", "--margin", "nan"], "--margin nan is no number >= 1"),
        (["rms_norm", "--check", "none"], "--check: 'none' is no number >= 1"),
        (["rms_norm", "--check", "1", "--jobs", "0"], "--jobs: '0' is no number >= 1"),
        (["rms_norm", "--check", "1", "--write"], "--check only counts"),
        (["rms_norm", "--allow-looser", "because"], "--allow-looser takes the reason and goes with --write"),
        (["rms_norm", "--write", "--allow-looser", " "], "--allow-looser takes the reason"),
        (["rms_norm", "--tighten"], "--tighten goes with --write"),
        (["rms_norm", "--write", "--tighten", "--allow-looser", "why"], "and not with --allow-looser"),
        (["rms_norm", "--tolerances", "/no/file"], "/no/file: No such file"),
        (["rms_norm", "--journal", "/proc/no/journal"], "cannot write /proc/no/journal"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_plan_has_every_case_seed_and_device() -> None:
    runs = list(Plan(("gate",), ("tiny", "flash"), (0, 5), 3).runs("gate"))
    tiny = [run for run in runs if run.preset == "tiny"]
    assert {run.schedule for run in tiny} == {0, 1, 2}
    assert {run.seed for run in tiny} == {0, 5}
    assert len(tiny) == len({run.case for run in tiny}) * 6 > 100
    assert {run.case for run in runs if run.preset == "flash"} == {"default"}


def test_held_out_seeds_are_no_seeds_of_a_calibration() -> None:
    with pytest.raises(UsageError, match="held out"):
        Plan(("gate",), ("tiny",), (HELD_OUT - 1,), HELD_OUT + 1)
    runs = list(held_out(("gate", "rms_norm"), 100))
    assert min(min(run.seed, run.schedule) for run in runs) == HELD_OUT
    assert len({run.seed for run in runs}) == 100
    assert {run.op for run in runs} == {"gate", "rms_norm"}
    assert len({run.case for run in runs if run.op == "gate"}) == 33
    assert runs[:10] == list(held_out(("gate", "rms_norm"), 10))  # a longer check begins like a shorter one


def test_prints_observed_fitted_and_file(capsys: pytest.CaptureFixture[str]) -> None:
    before = DEFAULT_PATH.read_bytes()
    assert main(FEW) == 0
    said = capsys.readouterr().out
    for words in ("x_normed", "differing_fraction", "0.001", "tighter", "ratio_allclose(atol 1e-4"):
        assert words in said
    assert DEFAULT_PATH.read_bytes() == before


def test_writes_what_is_tighter_with_its_ensemble(tolerances: Path) -> None:
    assert main([*FEW, "--write", "--tolerances", str(tolerances)]) == 0
    entry = load_tolerances(tolerances)["rms_norm"]["x_normed"]
    assert entry.comparator.differing_fraction < 1e-3  # type: ignore[attr-defined]
    assert entry.provenance["calibrated"].startswith("16 runs of 2 devices, seeds 0 to 0, tiny, times 2; observed ")


def test_refuses_what_is_looser_without_a_reason(
    tolerances: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fit, "fits", lambda op, output, *_: [Fit(op, output, "differing_points", 3, 5, 2)])
    before = tolerances.read_bytes()
    words = [*FEW, "--write", "--tolerances", str(tolerances)]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "1 tolerances would be looser than in" in said
    assert "first rms_norm.x_normed.differing_points 5 for 2: nothing was written" in said
    assert said.count("\n") == 1
    assert tolerances.read_bytes() == before
    assert main([*words, "--allow-looser", "a small output needs a point"]) == 0
    entry = load_tolerances(tolerances)["rms_norm"]["x_normed"]
    assert entry.provenance["looser"] == "a small output needs a point"
    assert entry.comparator.differing_points == 5  # type: ignore[attr-defined]


def test_tightens_the_outputs_of_which_nothing_is_looser(tolerances: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers of an output go together: half of a fit would be a tolerance that nothing was fitted to."""

    def some(op: str, output: str, *_: object) -> list[Fit]:
        if output == "post":
            return [Fit(op, output, "rtol", 1e-7, 2e-7, 1.8e-6)]
        return [Fit(op, output, "rtol", 1e-7, 2e-7, 3.8e-6), Fit(op, output, "atol", 1.0, 2.0, 1.9e-7)]

    monkeypatch.setattr(fit, "fits", some)
    before = load_tolerances(tolerances)["hc_pre"]
    words = ["calibrate", "hc_pre", "--devices", "1", "--seed", "0", "--tolerances", str(tolerances)]
    assert main([*words, "--write", "--tighten"]) == 0
    now = load_tolerances(tolerances)["hc_pre"]
    assert now["post"].comparator.rtol == 2e-7  # type: ignore[attr-defined]
    assert now["post"].provenance["calibrated"].startswith("10 runs of 1 devices")
    assert (now["comb"], now["x_mixed"]) == (before["comb"], before["x_mixed"])


def test_refuses_to_write_where_a_legal_device_fails(tolerances: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tolerances.read_text(encoding="utf-8")
    start = text.index("\nhc_pre:")
    strict = re.sub(r"rtol: \S+", "rtol: 1.0e-9", text[start:], count=1)
    tolerances.write_text(text[:start] + strict, encoding="utf-8")
    words = ["calibrate", "hc_pre", "--devices", "1", "--seed", "0", "--tolerances", str(tolerances)]
    assert main(words) == 1
    assert main([*words, "--write"]) == 2
    assert "legal devices fail hc_pre.post: find out why; nothing was written" in capsys.readouterr().err


def test_goes_on_from_a_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Run] = []

    class Counting(Session):
        def verify(self, run: Run) -> Verdict:
            made.append(run)
            return super().verify(run)

    monkeypatch.setattr(ensemble, "Session", Counting)
    journal = ["--journal", str(tmp_path / "j.jsonl")]
    main([*FEW, *journal])
    assert len(made) == len(set(made)) == 16
    main([*FEW, *journal])
    assert len(made) == 16
    main([*FEW[:-1], "0,1", *journal])
    assert len(made) == len(set(made)) == 32


def test_check_counts_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[Run] = []

    class Fake:
        def __init__(self, _: object) -> None:
            pass

        def verify(self, run: Run) -> Checked:
            made.append(run)
            bad = run.seed == HELD_OUT + 3
            return Checked(run, "fail" if bad else "pass", f"FAIL {run.command}" if bad else "")

    monkeypatch.setattr(checking, "_Worker", Fake)
    words = ["calibrate", "rms_norm", "gate", "--journal", str(tmp_path / "j.jsonl"), "--check"]
    assert main([*words, "3"]) == 0
    assert main([*words, "10"]) == 1
    assert len(made) == len(set(made)) == 10
    said = capsys.readouterr().out
    assert f"--seed {HELD_OUT + 3} --schedule {HELD_OUT + 3}" in said
    assert "10 runs on held-out seeds" in said
    assert "1 false alarms" in said


def test_check_of_a_right_kernel_has_no_false_alarm(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "rms_norm", "gate", "--check", "8"]) == 0
    assert "0 false alarms" in capsys.readouterr().out


@pytest.mark.slow  # starts processes
def test_check_is_the_same_in_several_processes(capsys: pytest.CaptureFixture[str]) -> None:
    tables = []
    for jobs in ("1", "2"):
        assert main(["calibrate", "rms_norm", "hc_post", "--check", "12", "-j", jobs]) == 0
        tables.append(capsys.readouterr().out.split("\n\n")[0])
    assert tables[0] == tables[1]


def killed_and_resumed(words: list[str], path: Path, kind: str) -> Iterator[list[str]]:
    """Run a command again and again, killed at random moments after its first result; what the journal then has."""
    rng = random.Random(5)
    for _ in itertools.count():
        before = path.read_bytes().count(b"\n") if path.exists() else 1
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") <= before):
            time.sleep(0.005)
        time.sleep(rng.random() * 0.1)
        process.kill()
        process.wait()
        with Journal(path, kind) as journal:
            yield [str(record["run"]) for record in journal.records]


@pytest.mark.slow  # starts the command again and again
@pytest.mark.parametrize("check", [False, True])
def test_kill_at_random_moments_loses_at_most_the_run_in_flight(tmp_path: Path, check: bool) -> None:
    path = tmp_path / "j.jsonl"
    words = [sys.executable, "-m", "harness.cli", "calibrate", "hc_post", "--journal", str(path)]
    if check:
        ids = [run.id for run in held_out(("hc_post",), 30)]
        words += ["--check", "30"]
    else:
        ids = [run.id for run in Plan(("hc_post",), ("tiny",), (0,), 4).runs("hc_post")]
        words += ["--devices", "4", "--seed", "0"]
    kept: list[str] = []
    for found in killed_and_resumed(words, path, "calibrate --check" if check else "calibrate"):
        assert found == ids[: len(found)]  # nothing is lost, made twice or out of order
        assert len(found) > len(kept) or len(kept) == len(ids)
        kept = found
        if len(kept) == len(ids):
            return
