"""pytest: a test marked `goldengate(op)` that asks for the fixture `goldengate_run` runs once per case and seed.

    @pytest.mark.goldengate("gate", deployments=("decode", "prefill"), seeds=(0, 1))
    def test_gate(goldengate_run):
        goldengate_run.check()

Ids are those of the runs: `gate-tiny-decode-hash-seed0`. A case that the contract forbids must be refused by the
golden. `--goldengate-preset`, `--goldengate-device` and `--goldengate-schedule` override what a marker says.
A suite without the marker is left alone: nothing of goldengate is imported for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from harness.run import Run
    from harness.verify import Session

_MARKER = (
    "goldengate(op, presets=('tiny',), deployments=('decode',), cases=(), seeds=(0,), schedules=(0,)): "
    "verify an op of goldengate, one test per run; empty cases are all of them"
)


class RunCheck:
    """One run, to be verified by `check`."""

    def __init__(self, run: Run, session: Session) -> None:
        self.run = run
        self.session = session

    def check(self) -> None:
        """Fail the test unless the run passes, or, for a case that the contract forbids, the golden refuses it."""
        __tracebackhide__ = True
        from goldens.errors import GoldenInputError
        from harness.compare import EMPTY, PASS
        from harness.report import failure_text
        from specs.registry import load_op

        if load_op(self.run.op, self.run.preset, self.run.deployment).case(self.run.case).invalid:
            with pytest.raises(GoldenInputError):
                self.session.verify(self.run)
            return
        verdict = self.session.verify(self.run)
        if verdict.status not in (PASS, EMPTY):
            pytest.fail(failure_text(verdict) or f"{self.run.id}: {verdict.status}", pytrace=False)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("goldengate", "verification of kernels against goldens")
    group.addoption("--goldengate-preset", help="run marked tests at this preset")
    group.addoption("--goldengate-device", default="emulator", help="device of marked tests (default: emulator)")
    group.addoption("--goldengate-schedule", help="schedules of marked tests, like 0..9")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", _MARKER)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "goldengate_run" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("goldengate")
    if marker is None:
        raise pytest.UsageError(f"{metafunc.definition.nodeid}: goldengate_run needs @pytest.mark.goldengate(op)")
    runs = _runs(metafunc.config, *marker.args, **marker.kwargs)
    metafunc.parametrize("goldengate_run", runs, ids=[run.id for run in runs], indirect=True)


def _runs(
    config: pytest.Config,
    op: str,
    presets: tuple[str, ...] = ("tiny",),
    deployments: tuple[str, ...] = ("decode",),
    cases: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (0,),
    schedules: tuple[int, ...] = (0,),
) -> list[Run]:
    from harness.errors import UsageError
    from harness.selection import Selection, expand, numbers
    from specs.errors import SpecError
    from specs.registry import load_op

    preset = config.getoption("--goldengate-preset")
    schedule = config.getoption("--goldengate-schedule")
    try:
        chosen = cases or tuple(case.name for case in load_op(op).cases)
        selection = Selection(
            ops=(op,),
            presets=presets if preset is None else (preset,),
            deployments=deployments,
            cases=chosen,
            seeds=seeds,
            schedules=schedules if schedule is None else numbers(schedule),
        )
        return expand(selection, device=config.getoption("--goldengate-device"))
    except (UsageError, SpecError) as error:
        raise pytest.UsageError(f"goldengate: {error}") from error


@pytest.fixture(scope="session")
def _goldengate_session(request: pytest.FixtureRequest) -> Session:
    from harness.devices import get_device
    from harness.tolerances import load_tolerances
    from harness.verify import Session

    return Session(get_device(request.config.getoption("--goldengate-device")), load_tolerances())


@pytest.fixture
def goldengate_run(request: pytest.FixtureRequest, _goldengate_session: Session) -> RunCheck:
    """One run of the test's marker, ready to be checked."""
    return RunCheck(request.param, _goldengate_session)
