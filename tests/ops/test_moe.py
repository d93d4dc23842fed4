"""moe: the FFN half of a layer on the ranks of the emulator against its golden (contracts/moe_and_layers.md, 5).

Markers run at the deployment's 8 ranks. Here a few cases of each world; all of them with `-m slow`.
"""

import pytest

from harness.compare import PASS
from harness.devices import get_device
from harness.report import failure_text
from harness.run import Run
from harness.tolerances import load_tolerances
from harness.verify import Session
from specs.registry import load_op

CASES = ("default", "score_first", "score_tokens_5", "hash_tokens_0", "hash_next_rank")


@pytest.mark.goldengate(
    "moe", cases=("score_tokens_5", "hash_duplicate", "hash_out_of_range", "hash_bad_token"), schedules=(7,)
)
def test_moe_8_ranks(goldengate_run):
    goldengate_run.check()


@pytest.mark.parametrize(("ranks", "case"), [*((2, case) for case in CASES), (4, "score_first")])
def test_moe_fewer_ranks(ranks, case):
    run = Run("moe", case=case, schedule=ranks, overrides=(("ep_world_size", ranks),))
    verdict = Session(get_device("emulator"), load_tolerances()).verify(run)
    assert verdict.status == PASS, failure_text(verdict)


def test_moe_rows_that_arrive_by_the_devices_choice_among_equals_are_defined():
    """All scores tie and schedule 2 draws other ids than the golden: other compact rows are then in use."""
    run = Run("moe", case="score_ties_all", schedule=2, overrides=(("ep_world_size", 2),))
    verdict = Session(get_device("emulator"), load_tolerances()).verify(run)
    assert verdict.status == PASS, failure_text(verdict)
    assert verdict.stages["indices"].metrics.differing > 0


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("case", [case.name for case in load_op("moe").cases if not case.invalid])
def test_moe_every_case(ranks, case):
    """All cases at every number of ranks: some 5 s each."""
    run = Run("moe", case=case, overrides=(("ep_world_size", ranks),))
    verdict = Session(get_device("emulator"), load_tolerances()).verify(run)
    assert verdict.status == PASS, failure_text(verdict)


@pytest.mark.slow
@pytest.mark.goldengate("moe", deployments=("prefill",), cases=CASES, schedules=(3,))
def test_moe_prefill(goldengate_run):
    """8 ranks of 128 tokens: some 30 s a case."""
    goldengate_run.check()
