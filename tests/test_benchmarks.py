"""The benchmark table has a row for every op, also for one without a plain formula to compare with."""

from __future__ import annotations

import argparse

import pytest

from benchmarks import plain
from benchmarks.__main__ import op_times, row_of


@pytest.mark.parametrize("op", ["rms_norm", "hc_head"])
def test_an_op_has_its_row(op: str) -> None:
    times = op_times(op, argparse.Namespace(preset="tiny", deployment="decode", repeat=1))
    row = row_of(times)
    assert times["golden"] > 0
    assert (row["golden / plain"] is not None) == hasattr(plain, op)
