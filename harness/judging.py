"""Judges what a device handed back: outputs and stages, each by its entry, given the device's own earlier ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from goldens.checks import Given
from harness.compare import FAIL, PASS, Comparator, Judgement, Output, judge_pool
from harness.devices.base import DeviceRun
from harness.tolerances import Entry

if TYPE_CHECKING:
    from specs.registry import Op

UNVERIFIED = "unverified"
Values = dict[str, Any]


@dataclass
class Prepared:
    """An op's inputs and golden for one case and seed."""

    op: Op
    inputs: Values
    checksums: dict[str, int]
    golden: dict[str, Tensor]
    stages: dict[str, Tensor]
    valid: Mapping[str, Tensor | None]
    mapped: Mapping[str, Tensor | None]
    notes: tuple[str, ...]


def judge(op: Op, entries: Mapping[str, Entry], prepared: Prepared, result: DeviceRun) -> dict[str, Judgement]:
    """A judgement per output of the op, in signature order, and then per stage that has an entry and that the device
    handed back, in order of computation. An output without an entry is unverified."""
    outputs = [spec.name for spec in op.outputs]
    stages = [name for name in _stages(op, entries, outputs) if told(prepared, result, name) is not None]
    judgements: dict[str, Judgement] = {}
    continuation = _Continuation(entries, prepared, result)
    for name in _judging_order([*stages, *outputs], entries):
        entry = entries.get(name)
        if entry is None:
            judgements[name] = Judgement(UNVERIFIED, "no tolerance", None)
        elif name in outputs and name not in result.outputs:
            judgements[name] = Judgement(FAIL, entry.comparator.label, None, "the kernel returned no such output")
        else:
            judgements[name] = _judged(entry, continuation, prepared, result)
            continuation.judged(name, passed=judgements[name].status == PASS)
    return {name: judgements[name] for name in (*outputs, *stages)}


def _judged(entry: Entry, continuation: _Continuation, prepared: Prepared, result: DeviceRun) -> Judgement:
    """An output or stage by its entry: given the device's own stages, or alone where it told not all of them."""
    untold = [name for name in entry.given if told(prepared, result, name) is None]
    if entry.alone is None or not untold:
        return judge_tensor(entry.output, entry.comparator, prepared, result, *continuation.expected(entry))
    judged = judge_tensor(entry.output, entry.alone, prepared, result, prepared.golden, prepared.stages)
    return replace(judged, label=f"{judged.label} (stage {untold[0]} is not told)")


def judge_tensor(
    name: str,
    comparator: Comparator,
    prepared: Prepared,
    result: DeviceRun,
    golden: Mapping[str, Tensor],
    taps: Mapping[str, Tensor],
    masks: Mapping[str, Tensor | None] | None = None,
) -> Judgement:
    """One output or stage that the device handed back, by a comparator; of a paged pool the mapped elements, while all
    others keep their bits. `masks`: of what is defined, where not those of the prepared golden."""
    valid = (prepared.valid if masks is None else masks).get(name)
    expected = golden[name] if name in golden else taps[name]
    actual, undefined = told(prepared, result, name), result.undefined.get(name)
    assert actual is not None
    if undefined is not None and name not in prepared.golden:
        undefined = laid_out_as(undefined, expected.shape)
    output = Output(actual, expected, valid, undefined, taps)
    mapped = prepared.mapped.get(name)
    if mapped is None:
        return comparator.judge(output)
    return judge_pool(comparator, output, prepared.inputs[name], mapped)


def _stages(op: Op, entries: Mapping[str, Entry], outputs: Iterable[str]) -> list[str]:
    names = set(entries) - set(outputs)
    return [name for name in op.stages if name in names]


def told(prepared: Prepared, result: DeviceRun, name: str) -> Tensor | None:
    """An output of the device as it is, or its intermediate in the shape of the golden's stage. None when it handed
    none back; what has another dtype or does not fit is something else of the same name."""
    if name in result.outputs:
        return result.outputs[name]
    stage, golden = result.intermediates.get(name), prepared.stages.get(name)
    if stage is None or golden is None or stage.dtype != golden.dtype:
        return None
    return laid_out_as(stage, golden.shape)


def laid_out_as(stage: Tensor, shape: Sequence[int]) -> Tensor | None:
    """A device's intermediate in the golden's shape, None where it is something else: it may be laid out otherwise,
    and padded at the end of some axes (rows up to a tile)."""
    if stage.numel() == math.prod(shape):
        return stage.reshape(tuple(shape))
    if stage.dim() == len(shape) and all(have >= want for have, want in zip(stage.shape, shape, strict=True)):
        return stage[tuple(slice(want) for want in shape)]
    return None


def _judging_order(names: Iterable[str], entries: Mapping[str, Entry]) -> list[str]:
    """The names as they come, but those that others are conditioned on come before them."""
    ordered: list[str] = []
    waiting = list(names)
    while waiting:
        ready = [n for n in waiting if n not in entries or not (set(entries[n].given) - {n}) & set(waiting)]
        ordered.append(ready[0] if ready else waiting[0])
        waiting.remove(ordered[-1])
    return ordered


class _Continuation:
    """What each output and stage must be, given the device's own outputs and stages before it.

    Where earlier ones passed but differ (a legal last bit), everything downstream of them is judged against the golden
    continued from the device's own values, so that one legal flip does not fail what follows. One evaluation of the
    golden serves all: it goes on from everything at once and notes what it computed itself. What failed is taken out.
    """

    def __init__(self, entries: Mapping[str, Entry], prepared: Prepared, result: DeviceRun) -> None:
        self.prepared, self.result = prepared, result
        names = dict.fromkeys(name for entry in entries.values() for name in entry.given)
        self._names = [name for name in names if name in entries and told(prepared, result, name) is not None]
        self._valid = prepared.valid
        self._judged: set[str] = set()
        self.device = self._own()
        self._evaluated: tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]] | None = None

    def _own(self) -> dict[str, Tensor]:
        """What the device told, where it is defined; `_differing` are the names of what is not the golden's.

        A stage with the golden's bits belongs to it: continued from another one that differs, the golden may round this
        one differently, and what follows would be judged by a value that the device does not have.
        """
        own: dict[str, Tensor] = {}
        self._differing: set[str] = set()
        for name in self._names:
            actual, expected = told(self.prepared, self.result, name), _expected(self.prepared, name)
            assert actual is not None
            valid = self._valid.get(name)
            stage = actual if valid is None else torch.where(valid, actual, expected)
            if stage.shape == expected.shape and stage.dtype == expected.dtype:
                own[name] = stage
                if not torch.equal(stage, expected):
                    self._differing.add(name)
        return own

    def judged(self, name: str, *, passed: bool) -> None:
        """Only what was judged, and passed, may be given to others."""
        self._judged.add(name)
        if passed:
            return
        if name in self._names:
            self._names.remove(name)
        if self.device.pop(name, None) is not None:
            self._evaluated = None

    def expected(self, entry: Entry) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, Tensor | None]]:
        """The golden's outputs and stages to judge an entry by, and what of them is defined."""
        prepared = self.prepared
        given = {name: self.device[name] for name in entry.given if name in self.device and name in self._judged}
        if not given.keys() & self._differing:
            return prepared.golden, prepared.stages, prepared.valid
        outputs, stages, computed = self._all_at_once()
        if entry.output not in self.device:
            return outputs, stages, self._valid
        if entry.output in computed:
            own = {entry.output: computed[entry.output]}
            return outputs | own, stages | own, self._valid
        stages = {}  # the golden does not note this stage: go on from what comes before it only
        return prepared.op.golden(prepared.inputs, stages, given=given), stages, self._valid

    def _all_at_once(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        if self._evaluated is None:
            self._evaluated = self._evaluate()
            valid = self.prepared.op.valid(self.prepared.inputs, self._evaluated[1])
            if any(not _same(valid.get(name), self._valid.get(name)) for name in self._names):
                self._valid = valid  # the device's choice among equals defines other elements
                self.device = self._own()
                self._evaluated = self._evaluate()
        return self._evaluated

    def _evaluate(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        given = Given(self.device)
        stages: dict[str, Tensor] = {}
        outputs = self.prepared.op.golden(self.prepared.inputs, stages, given=given)
        return outputs, stages, given.computed


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def _expected(prepared: Prepared, name: str) -> Tensor:
    return prepared.golden[name] if name in prepared.golden else prepared.stages[name]
