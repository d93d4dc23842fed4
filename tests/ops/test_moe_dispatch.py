"""moe_dispatch: every case on the ranks of the emulator against its golden (contracts/moe_and_layers.md, 3)."""

import pytest


@pytest.mark.goldengate("moe_dispatch", schedules=(7,))
def test_moe_dispatch_decode(goldengate_run):
    goldengate_run.check()


@pytest.mark.slow
@pytest.mark.goldengate("moe_dispatch", deployments=("prefill",), schedules=(3,))
def test_moe_dispatch_prefill(goldengate_run):
    """8 ranks of 128 tokens: some 10 s a case."""
    goldengate_run.check()
