"""`goldengate mutate`: tables, exit codes, a journal to go on from, one line for every mistake."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main
from harness.journal import Journal
from harness.mutate import command
from harness.mutate.judge import EQUIVALENT, KILLED, OURS, REFUSED, SURVIVED, Outcome
from harness.mutate.mutants import ROOT, Mutant, mutants_of_op
from harness.mutate.rivals import GATES
from harness.mutate.summary import Result, table, tally

GATE_WORDS = (OURS, *GATES)


def result(status: str, operator: str = "cast_mode", default: bool | None = False) -> Result:
    mutant = Mutant("gate", operator, "kernels/gate.py", 1, 1, 0, "text")
    return Result(mutant, Outcome(status, default=dict.fromkeys(GATE_WORDS, default)))


def test_rates_leave_out_refused_and_equivalent_mutants() -> None:
    results = [result(KILLED, default=True), result(KILLED), result(SURVIVED), result(EQUIVALENT), result(REFUSED)]
    counts = tally(results)
    assert (counts.mutants, counts.refused, counts.equivalent, counts.killed, counts.survived) == (5, 1, 1, 2, 1)
    assert counts.rate == 2 / 3
    assert counts.default["reference"] == (1, 3)
    assert tally([result(REFUSED)]).rate is None
    assert tally([result(KILLED, default=None)]).default["reference"] == (0, 0)


def test_table_has_ops_classes_and_operators() -> None:
    text = table([result(KILLED), result(SURVIVED, "top_k")], each=True)
    for words in ("gate  ", "rounding  ", "routing top_k", "gate cast_mode", "50.0%", "assert_close *"):
        assert words in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gates"], "unknown op 'gates'; did you mean gate?"),
        (["rms_norm", "--operator", "cast"], "unknown operator 'cast'"),
        (["rms_norm", "--case", "x"], "unknown case 'x'"),
        (["rms_norm", "--seed", "a"], "'a' is no list of numbers"),
        (["rms_norm", "--limit", "0"], "--limit 0 is no number of seconds above 0"),
        (["rms_norm", "--limit", "nan"], "--limit nan is no number of seconds above 0"),
        (["rms_norm", "--jobs", "0"], "--jobs: '0' is no number >= 1"),
        (["rms_norm", "--mutant", "x"], "there is no mutant x"),
        (["rms_norm", "--json", "/no/such/dir/file"], "cannot write /no/such/dir/file"),
        (["rms_norm", "--journal", "/proc/no/journal"], "cannot write /proc/no/journal"),
        (["rms_norm", "--tolerances", "/no/file"], "/no/file: No such file"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mutate", *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_lists_operators_and_ids(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mutate", "rms_norm", "--operator", "cast_mode", "--list"]) == 0
    said = capsys.readouterr().out
    assert said.count("rms_norm:cast_mode:kernels/rms_norm.py:") == 5
    assert "A rounding cast with each of the other modes." in said


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids in the order in which they are judged; `trunc` survives."""
    ids: list[str] = []

    def fake(mutants: Sequence[Mutant], settings: Any, jobs: int) -> Iterator[tuple[Mutant, Outcome]]:
        for mutant in mutants:
            ids.append(mutant.id)
            status = SURVIVED if '"trunc"' in mutant.text else KILLED
            yield mutant, Outcome(status, "verdict", "run", "reason", 0.1, dict.fromkeys(GATE_WORDS, True))

    monkeypatch.setattr(command, "judge_all", fake)
    return ids


WORDS = ["mutate", "rms_norm", "--operator", "cast_mode"]


def test_a_survivor_is_shown_with_its_change_and_fails(judged: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(WORDS) == 1
    said = capsys.readouterr().out
    assert "SURVIVED rms_norm:cast_mode:" in said
    assert '\n+            x_normed[t0 : t0 + TOKENS, d0 : d0 + CHUNK] = pl.cast(normed, pl.BF16, mode="trunc")' in said
    survivor = next(m.id for m in mutants_of_op("rms_norm", ["cast_mode"]) if '"trunc"' in m.text)
    assert f"repeat: goldengate mutate rms_norm --mutant {survivor}" in said
    assert "5 mutants in" in said
    killed = next(m.id for m in mutants_of_op("rms_norm", ["cast_mode"]) if m.id != survivor)
    assert main([*WORDS, "--mutant", killed]) == 0
    assert judged[-1] == killed


def test_goes_on_from_a_journal(judged: list[str], tmp_path: Path) -> None:
    journal = ["--journal", str(tmp_path / "j.jsonl")]
    first = mutants_of_op("rms_norm", ["cast_mode"])[0].id
    main([*WORDS, *journal, "--mutant", first])
    assert judged == [first]
    main([*WORDS, *journal])
    assert len(judged) == len(set(judged)) == 5
    main([*WORDS, *journal])
    assert len(judged) == 5
    main([*WORDS, *journal, "--seed", "0"])  # other settings are other results
    assert len(judged) == 10


def test_writes_every_result(judged: list[str], tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    main([*WORDS, "--json", str(path)])
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["all"]["killed"] == 4
    assert document["classes"]["rounding"]["rate"] == 0.8
    assert [entry["id"] for entry in document["mutants"]] == judged


@pytest.mark.slow  # starts the command again and again
def test_kill_at_random_moments_loses_at_most_the_mutant_in_flight(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    words = [sys.executable, "-m", "harness.cli", "mutate", "rms_norm", "--operator", "scale,cast_mode"]
    words += ["--case", "default", "--seed", "0", "--journal", str(path)]
    ids = [m.id for m in mutants_of_op("rms_norm", ["cast_mode", "scale"])]
    rng = random.Random(3)
    kept: list[str] = []
    for _ in range(20):
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
        started = len(kept)
        while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < started + 2):
            time.sleep(0.01)
        time.sleep(rng.random() * 0.3)
        process.kill()
        process.wait()
        time.sleep(0.1)
        with Journal(path, "mutate") as journal:
            found = [str(record["id"]) for record in journal.records]
        assert found[: len(kept)] == kept  # nothing is lost or judged twice
        assert found == ids[: len(found)]
        kept = found
        if len(kept) == len(ids):
            break
    assert kept == ids
