"""A journal keeps every record that was acknowledged, whatever kills its writer."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.journal import Journal

WRITER = """
import sys
from pathlib import Path
from harness.journal import Journal
with Journal(Path(sys.argv[1]), "test") as journal:
    number = len(journal.records)
    while True:
        journal.append({"number": number, "padding": "x" * 5000})
        print(number, flush=True)
        number += 1
"""


def records(path: Path) -> list[dict[str, object]]:
    with Journal(path, "test") as journal:
        return list(journal.records)


def test_keeps_records_from_one_process_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "below" / "journal.jsonl"
    for number in range(3):
        with Journal(path, "test") as journal:
            assert [r["number"] for r in journal.records] == list(range(number))
            journal.append({"number": number})
    assert path.read_text(encoding="utf-8").splitlines()[0] == '{"journal": "test"}'


def test_kill_at_any_moment_loses_at_most_the_record_in_flight(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    rng = random.Random(7)
    kept = 0
    for _ in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )
        assert writer.stdout is not None
        first = int(writer.stdout.readline())  # it is at work
        time.sleep(rng.random() * 0.05)
        writer.kill()
        acknowledged = [first, *map(int, writer.stdout.read().split())]
        writer.wait()
        writer.stdout.close()
        found = [r["number"] for r in records(path)]
        assert first == kept
        assert found == list(range(len(found)))
        assert len(found) - (acknowledged[-1] + 1) in (0, 1)  # on disk, but not yet said to be
        kept = len(found)
    assert kept > 8


@pytest.mark.parametrize("length", [1, 5, 11])
def test_drops_a_torn_last_line(tmp_path: Path, length: int) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path, "test") as journal:
        journal.append({"number": 0})
        journal.append({"number": 1})
    whole = path.read_bytes()
    path.write_bytes(whole[:-length])
    assert [r["number"] for r in records(path)] == [0]
    with Journal(path, "test") as journal:
        journal.append({"number": 1})
    assert path.read_bytes() == whole


def test_a_torn_header_is_an_empty_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"jour', encoding="utf-8")
    assert records(path) == []
    assert json.loads(path.read_text(encoding="utf-8")) == {"journal": "test"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"journal": "test"}\nnonsense\n', r"journal.jsonl:2: no JSON"),
        ('{"journal": "other"}\n', r"journal.jsonl:1: no journal of goldengate test"),
        ('{"journal": "test"}\n[1]\n', r"journal.jsonl:2: no journal"),
        ("\n", r"journal.jsonl:1: no JSON"),
        ('"a text"\n', r"journal.jsonl:1: no journal"),
    ],
)
def test_refuses_what_is_no_journal(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        Journal(path, "test")
    assert path.read_text(encoding="utf-8") == text


def test_refuses_a_second_writer_and_a_path_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path, "test"), pytest.raises(UsageError, match="in use by another process"):
        Journal(path, "test")
    records(path)  # it was let go
    with pytest.raises(UsageError, match="cannot write"):
        Journal(tmp_path, "test")
