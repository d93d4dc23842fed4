"""moe_combine: every case on the ranks of the emulator against its golden (contracts/moe_and_layers.md, 4)."""

import pytest


@pytest.mark.goldengate("moe_combine", schedules=(7,))
def test_moe_combine_decode(goldengate_run):
    goldengate_run.check()


@pytest.mark.slow
@pytest.mark.goldengate("moe_combine", deployments=("prefill",), schedules=(3,))
def test_moe_combine_prefill(goldengate_run):
    """8 ranks of 128 tokens: some 5 s a case."""
    goldengate_run.check()
