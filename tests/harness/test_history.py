"""Recorded results: nothing is lost to a kill or to another recorder, and a shifted statistic is found."""

from __future__ import annotations

import dataclasses
import datetime
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from harness.devices.emulator.device import EmulatorDevice
from harness.errors import UsageError
from harness.history.query import History
from harness.history.recorder import Recorder
from harness.history.records import About
from harness.history.regression import findings
from harness.history.store import Store
from harness.metrics import Metrics
from harness.run import Run
from harness.tolerances import load_tolerances
from harness.verify import Session, Verdict

ABOUT = About("session-a", "1" * 40, False, "here")


@pytest.fixture(scope="module")
def verdict() -> Verdict:
    return Session(EmulatorDevice(), load_tolerances()).verify(Run("rms_norm", schedule=3))


def changed(verdict: Verdict, schedule: int = 0, **figures: float) -> Verdict:
    """The verdict of another schedule, with other figures for its output."""
    judgement = verdict.outputs["x_normed"]
    assert judgement.metrics is not None
    names = {field.name for field in dataclasses.fields(Metrics)}
    metrics = dataclasses.replace(judgement.metrics, **{k: v for k, v in figures.items() if k in names})
    used = figures.get("used", judgement.used)
    judged = dataclasses.replace(judgement, metrics=metrics, used=used)
    run = dataclasses.replace(verdict.run, schedule=schedule)
    return dataclasses.replace(verdict, run=run, outputs={"x_normed": judged})


def record(store: Store, session: str, verdicts: list[Verdict]) -> None:
    with Recorder(store, dataclasses.replace(ABOUT, session=session)) as recorder:
        for verdict in verdicts:
            recorder.add(verdict)


def test_a_recorded_verdict_is_read_back_with_its_figures(tmp_path: Path, verdict: Verdict) -> None:
    store = Store(str(tmp_path / "store"))
    record(store, "a", [verdict])
    (row,) = History(store).select("SELECT * FROM results")
    judgement = verdict.outputs["x_normed"]
    assert judgement.metrics is not None
    assert (row["op"], row["output"], row["status"]) == ("rms_norm", "x_normed", "pass")
    assert (row["seed"], row["schedule"]) == (0, 3)
    assert row["rel_l2"] == judgement.metrics.rel_l2
    assert row["compared"] == judgement.metrics.compared
    assert row["sweep"] == list(judgement.metrics.sweep.values())
    assert row["command"] == verdict.command
    assert len(row["kernel"]) == 16


def test_a_session_is_packed_into_one_file_at_its_end(tmp_path: Path, verdict: Verdict) -> None:
    store = Store(str(tmp_path))
    with Recorder(store, ABOUT) as recorder:
        for schedule in range(3):
            recorder.add(changed(verdict, schedule))
        assert len(store.files()) == 3
    assert len(store.files()) == 1
    assert len(History(store).select("SELECT * FROM results")) == 3


def test_a_row_in_two_files_counts_once(tmp_path: Path, verdict: Verdict) -> None:
    """What a kill between packing and removing leaves."""
    store = Store(str(tmp_path))
    store.remove = lambda paths: None  # type: ignore[method-assign]
    record(store, "a", [changed(verdict, schedule) for schedule in range(3)])
    assert len(store.files()) == 4
    assert len(History(store).select("SELECT * FROM results")) == 3


def test_any_fsspec_url_is_a_store(verdict: Verdict) -> None:
    store = Store("memory://goldengate-test/results")
    try:
        record(store, "a", [changed(verdict, schedule) for schedule in range(2)])
        assert len(History(store).select("SELECT * FROM results")) == 2
    finally:
        fsspec.filesystem("memory").rm("/goldengate-test", recursive=True)


RECORDING = """
import sys
from harness.devices.emulator.device import EmulatorDevice
from harness.history.recorder import Recorder
from harness.history.store import Store
from harness.run import Run
from harness.tolerances import load_tolerances
from harness.verify import Session

session = Session(EmulatorDevice(), load_tolerances())
with Recorder(Store(sys.argv[1])) as recorder:
    for schedule in range(int(sys.argv[2])):
        recorder.add(session.verify(Run("rms_norm", schedule=schedule)))
        print(schedule, flush=True)
"""


@pytest.fixture
def recorders(tmp_path: Path) -> Iterator[Callable[[int], subprocess.Popen[str]]]:
    """Starts processes that record into one store and say after each verdict which one it was."""
    started: list[subprocess.Popen[str]] = []

    def start(count: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", RECORDING, str(tmp_path / "store"), str(count)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_two_recorders_at_once_lose_nothing(tmp_path: Path, recorders: Callable[[int], subprocess.Popen[str]]) -> None:
    processes = [recorders(12), recorders(12)]
    for process in processes:
        assert process.wait(120) == 0
    history = History(Store(str(tmp_path / "store")))
    counts = history.select("SELECT session, count(*) AS n FROM results GROUP BY session")
    assert sorted(row["n"] for row in counts) == [12, 12]


@pytest.mark.slow
def test_a_kill_at_any_moment_loses_only_the_verdict_in_flight(
    tmp_path: Path, recorders: Callable[[int], subprocess.Popen[str]]
) -> None:
    chance = random.Random(5)
    said = 0
    for _ in range(6):
        process = recorders(10_000)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(chance.uniform(0.0, 0.4))
        process.send_signal(signal.SIGKILL)
        said += 1 + len(process.stdout.read().splitlines())
        found = len(History(Store(str(tmp_path / "store"))).select("SELECT * FROM results"))
        assert said <= found <= said + 1
        said = found


def test_a_statistic_beyond_the_spread_it_had_is_a_regression(tmp_path: Path, verdict: Verdict) -> None:
    store = Store(str(tmp_path))
    record(store, "old", [changed(verdict, n, rel_l2=1e-4 + n * 1e-6) for n in range(9)])
    record(store, "new", [changed(verdict, n, rel_l2=2e-4) for n in range(3)])
    found = findings(History(store))
    assert [shift.statistic for shift in found.shifts] == ["rel_l2"]
    (shift,) = found.shifts
    assert shift.session == "new"
    assert shift.before == pytest.approx(1.08e-4)
    assert shift.now == pytest.approx(2e-4)
    assert shift.baseline_rows == 9
    assert "rms_norm tiny/decode default: x_normed" in shift.text
    assert not found.broken


def test_a_statistic_within_its_spread_is_none(tmp_path: Path, verdict: Verdict) -> None:
    store = Store(str(tmp_path))
    record(store, "old", [changed(verdict, n, rel_l2=1e-4 + n * 1e-6) for n in range(9)])
    record(store, "new", [changed(verdict, n, rel_l2=1.1e-4) for n in range(3)])
    found = findings(History(store))
    assert found.compared == 1
    assert not found.shifts


def test_an_output_that_fails_is_broken_and_one_that_passes_again_is_fixed(tmp_path: Path, verdict: Verdict) -> None:
    store = Store(str(tmp_path))
    judgement = dataclasses.replace(verdict.outputs["x_normed"], status="fail", reason="over")
    failed = dataclasses.replace(verdict, status="fail", outputs={"x_normed": judgement})
    record(store, "first", [verdict])
    record(store, "second", [failed])
    found = findings(History(store))
    assert [(c.before, c.now, c.reason) for c in found.broken] == [("pass", "fail", "over")]
    record(store, "third", [verdict])
    found = findings(History(store))
    assert not found.broken
    assert [(c.before, c.now) for c in found.fixed] == [("fail", "pass")]


def test_since_chooses_what_is_new(tmp_path: Path, verdict: Verdict) -> None:
    store = Store(str(tmp_path))
    record(store, "a", [changed(verdict, rel_l2=1e-4)])
    record(store, "b", [changed(verdict, rel_l2=2e-4)])
    tomorrow = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=1)
    assert findings(History(store), tomorrow.isoformat()).compared == 0
    assert findings(History(store)).compared == 1
    with pytest.raises(UsageError, match="'yesterday' is no date"):
        findings(History(store), "yesterday")


def test_rejects_a_store_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        History(Store(str(tmp_path / "none")))
    with pytest.raises(UsageError, match="no recorded results below"):
        History(Store(str(tmp_path)))
    with pytest.raises(UsageError, match="cannot record to nowhere://x"):
        Store("nowhere://x")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="it is a file"):
        Store(str(tmp_path / "file"))


def test_rejects_a_damaged_file_by_name(tmp_path: Path, verdict: Verdict) -> None:
    store = Store(str(tmp_path))
    record(store, "a", [verdict])
    (path,) = store.files()
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match=r"cannot read recorded results: .*a-000000\.parquet"):
        History(store)
