"""Where a kernel leaves its golden: the stages in order of computation, each judged from the device's own earlier ones.

A stage without a tolerance of its own is held to a rule of thumb by its dtype. That serves to find the place only: what
passes and fails is decided by `tolerances.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from goldens.errors import GoldenInputError
from harness.compare import EMPTY, PASS, Close, Codes, Comparator, Exact, Judgement, Ulp
from harness.devices.base import DeviceRun
from harness.judging import Prepared, judge_tensor, told
from harness.tolerances import Entry
from specs.errors import SpecError

EQUAL, CLOSE, CARRIED, DIFFERS, UNTOLD = "equal", "close", "carried over", "differs", "not told"

_RULES: dict[torch.dtype, Comparator] = {
    torch.float32: Close(rtol=1e-4, atol=1e-6, over_fraction=0.01, over_points=2),
    torch.bfloat16: Ulp(max_ulp=2, atol_rms=1e-2, differing_fraction=0.1, differing_points=2),
    torch.float16: Ulp(max_ulp=2, atol_rms=1e-2, differing_fraction=0.1, differing_points=2),
    torch.int8: Codes(max_step=1, step_fraction=0.01, step_points=2, bias_z=6.0),
}


@dataclass(frozen=True)
class Step:
    """One stage or output. `status`: equal (every bit), close, carried over (close once the golden goes on from the
    device's own earlier stages), differs, or not told (the device handed back no such tensor)."""

    name: str
    status: str
    judgement: Judgement | None = None


def walk(
    prepared: Prepared, entries: Mapping[str, Entry], result: DeviceRun, *, to_the_first: bool = False
) -> list[Step]:
    """All stages and outputs of the op, in order of computation; `to_the_first`: none after one that differs."""
    op = prepared.op
    outputs = [spec.name for spec in op.outputs]
    names = [*op.stages, *(name for name in outputs if name not in op.stages)]
    steps: list[Step] = []
    given: dict[str, Tensor] = {}
    for name in names:
        actual = told(prepared, result, name)
        if actual is None:
            steps.append(Step(name, UNTOLD))
            continue
        rule = _rule(entries, name, actual.dtype)
        judged = judge_tensor(name, rule, prepared, result, prepared.golden, prepared.stages)
        status = _status(judged)
        if status == DIFFERS and not all(step.status in (EQUAL, UNTOLD) for step in steps):
            continued = _continued(prepared, given)
            if continued is not None:
                again = judge_tensor(name, rule, prepared, result, *continued)
                if again.status == PASS:
                    judged, status = again, CARRIED
        if status != DIFFERS:  # equal ones, too: the golden continued from others may round them differently
            valid = prepared.valid.get(name)
            expected = prepared.golden[name] if name in prepared.golden else prepared.stages[name]
            given[name] = actual if valid is None else torch.where(valid, actual, expected)
        steps.append(Step(name, status, judged))
        if to_the_first and status == DIFFERS:
            break
    return steps


def first_diverging(steps: list[Step]) -> Step | None:
    """The first stage or output that differs beyond what its inputs explain."""
    return next((step for step in steps if step.status == DIFFERS), None)


def _status(judged: Judgement) -> str:
    if judged.status != PASS:
        return DIFFERS if judged.status != EMPTY else EQUAL
    metrics = judged.metrics
    return EQUAL if metrics is not None and metrics.bit_equal == metrics.compared else CLOSE


def _continued(
    prepared: Prepared, given: Mapping[str, Tensor]
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]] | None:
    """The golden's outputs and stages when it goes on from `given`; None where it cannot."""
    stages: dict[str, Tensor] = {}
    try:
        golden = prepared.op.golden(prepared.inputs, stages, given=given)
    except (SpecError, GoldenInputError):
        return None
    return golden, stages


def _rule(entries: Mapping[str, Entry], name: str, dtype: torch.dtype) -> Comparator:
    return entries[name].comparator if name in entries else _RULES.get(dtype, Exact(nonfinite="same"))
