"""What a selection comes to: ops that cannot do a configuration are left out where none was named, and said."""

from __future__ import annotations

import pytest

from harness.selection import Selection, expand
from specs.errors import SpecError
from specs.registry import all_ops

UNFIT = Selection(cases=("default",), overrides=(("moe_intermediate_size", 33),))


def test_ops_that_refuse_the_sizes_are_left_out_with_the_reason() -> None:
    left_out: list[str] = []
    runs = expand(UNFIT, left_out)
    assert {run.op for run in runs} | {reason.split()[0] for reason in left_out} == set(all_ops())
    assert "rms_norm" in {run.op for run in runs}
    reason = next(reason for reason in left_out if reason.startswith("expert_shared "))
    assert reason.startswith("expert_shared tiny/decode: ")
    assert "33" in reason


def test_rejects_an_op_by_name_that_refuses_the_sizes() -> None:
    with pytest.raises(SpecError, match="33"):
        expand(Selection(ops=("expert_shared",), overrides=UNFIT.overrides), [])
    with pytest.raises(SpecError, match="33"):
        expand(UNFIT)
