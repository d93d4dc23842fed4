"""Stages of a kernel: handed back by the emulator, judged by entries of their own, and what is judged given them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from goldens.checks import continued
from harness.compare import EMPTY, FAIL, PASS, Close, Comparator, Exact, Output, Ulp, judge_pool
from harness.devices.base import DeviceRun
from harness.devices.emulator.device import EmulatorDevice
from harness.judging import Prepared, judge
from harness.localise import walk
from harness.report import failure_text, table
from harness.run import Run
from harness.tolerances import DEFAULT_PATH, Entry, load_tolerances
from harness.verify import Session, prepare
from specs.registry import Op, load_op

STAGES = """
  h_i8:
    compare: codes
    max_step: 1
    step_fraction: 1.0e-3
    step_points: 2
    bias_z: 6
    provenance:
      contract: hc_gate_experts.md 4.5
      honest: codes equal or one apart
      reference: none
      date: 2026-11-21
"""


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """Judges expert_shared with an entry for its stage h_i8, and sh given that stage."""
    path = tmp_path / "tolerances.yaml"
    lines = DEFAULT_PATH.read_text(encoding="utf-8").splitlines(keepends=True)
    start = lines.index("expert_shared:\n")
    end = next(i for i in range(start + 1, len(lines)) if lines[i][:1].strip() and not lines[i].startswith("#"))
    body = "".join(lines[start:end]).rstrip("\n") + STAGES
    path.write_text(body, encoding="utf-8")
    return Session(EmulatorDevice(), load_tolerances(path))


def test_the_emulator_hands_back_the_intermediates_that_are_stages() -> None:
    op = load_op("expert_shared")
    device = EmulatorDevice()
    inputs = op.inputs()
    run = device.run(device.load(op.kernel, op.name, op.sizes), op, inputs)
    stages: dict[str, torch.Tensor] = {}
    op.golden(inputs, stages)
    assert set(run.intermediates) <= set(op.stages)
    rows = len(stages["h_i8"])
    assert torch.equal(run.intermediates["h_i8"][:rows], stages["h_i8"])
    assert not run.intermediates.keys() & run.outputs.keys()


def test_a_stage_with_an_entry_is_judged(session: Session) -> None:
    verdict = session.verify(Run("expert_shared"))
    assert verdict.status == PASS
    assert verdict.stages["h_i8"].status == PASS
    assert set(verdict.outputs) == {"sh"}
    assert "stage h_i8" in table([verdict], each=True)
    assert "stage h_i8" not in table([verdict])


def test_a_wrong_stage_fails_the_run_and_is_named_first(session: Session, tmp_path: Path) -> None:
    source = load_op("expert_shared").kernel.read_text(encoding="utf-8")
    wrong = tmp_path / "wrong.py"
    piece = 'pl.INT32, mode="rint")'
    assert piece in source
    wrong.write_text(source.replace(piece, 'pl.INT32, mode="floor")'), encoding="utf-8")
    verdict = session.verify(Run("expert_shared", kernel=str(wrong)))
    assert verdict.status == FAIL
    assert verdict.diverged == "h_i8"
    text = failure_text(verdict)
    assert text.index("stage h_i8: ") < text.index(": sh: ")
    assert "first diverging: h_i8" in text
    assert "stage h_i8" in table([verdict])


def test_a_stage_of_another_dtype_is_something_else(session: Session) -> None:
    prepared, _ = prepare(Run("expert_shared"))
    op, device = prepared.op, session.device
    result = device.run(device.load(op.kernel, op.name, op.sizes, None), op, prepared.inputs, 0)
    entries = session.tolerances["expert_shared"]
    assert "h_i8" in judge(op, entries, prepared, result)
    stage = result.intermediates["h_i8"]
    for other in ({}, {"h_i8": stage.to(torch.int32)}, {"h_i8": stage[:, :-1]}):
        assert set(judge(op, entries, prepared, dataclasses.replace(result, intermediates=other))) == {"sh"}
    exact = stage[: op.deployment.tokens]
    flat = dataclasses.replace(result, intermediates={"h_i8": exact.reshape(-1)})
    assert judge(op, entries, prepared, flat)["h_i8"].status == PASS


def test_a_pool_is_judged_where_it_is_mapped_and_kept_elsewhere() -> None:
    before = torch.arange(12.0).reshape(4, 3)
    expected = before.clone()
    expected[1] = 100.0
    mapped = torch.zeros(4, 3, dtype=torch.bool)
    mapped[1] = True
    assert judge_pool(Exact(), Output(expected, expected), before, mapped).status == PASS
    stale = judge_pool(Exact(), Output(before, expected), before, mapped)
    assert stale.status == FAIL
    assert stale.worst is not None
    assert stale.worst.index == (1, 0)
    stray = expected.clone()
    stray[3, 2] = -1.0
    judged = judge_pool(Exact(), Output(stray, expected), before, mapped)
    assert judged.status == FAIL
    assert "unmapped elements were written" in judged.reason
    assert judged.worst is not None
    assert judged.worst.index == (3, 2)


def test_a_pool_of_which_nothing_is_mapped_must_keep_every_bit() -> None:
    before = torch.tensor([1.0, float("-inf"), float("nan")])
    nothing = torch.zeros(3, dtype=torch.bool)
    assert judge_pool(Exact(), Output(before.clone(), before), before, nothing).status == PASS
    assert judge_pool(Exact(), Output(before + 1, before), before, nothing).status == FAIL
    assert judge_pool(Exact(), Output(before[:0], before[:0]), before[:0], nothing[:0]).status == EMPTY


def test_one_evaluation_of_the_golden_serves_all_that_is_judged_given_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage of the device one legal step off: each is right given those before it, by one continued golden."""
    prepared, _ = prepare(Run("qkv_proj_rope"))
    op = prepared.op
    qr = prepared.golden["qr"].clone()
    qr[0, 0] += 1 if int(qr[0, 0]) < 0 else -1
    stages: dict[str, torch.Tensor] = {}
    outputs = op.golden(prepared.inputs, stages, given={"qr": qr})
    calls: list[object] = []
    golden = type(op).golden
    monkeypatch.setattr(type(op), "golden", lambda self, *a, **k: calls.append(1) or golden(self, *a, **k))
    entries = load_tolerances()["qkv_proj_rope"]
    judged = judge(op, entries, prepared, DeviceRun({**outputs, "qr": qr}))
    assert {name: judgement.status for name, judgement in judged.items()} == dict.fromkeys(judged, PASS)
    assert len(calls) == 1


def chain(inputs: dict[str, Any], taps: dict[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """a = x, b = BF16(a), c = 1000 b + 2^20 a, each continued from what is given."""
    a = continued(given, "chain", "a", inputs["x"])
    b = continued(given, "chain", "b", a.bfloat16())
    taps.update(a=a, b=b)
    return {"c": b.float() * 1000.0 + a * 2.0**20}


def test_a_stage_with_the_goldens_bits_is_gone_on_from_like_one_that_differs() -> None:
    """a is one FP32 step above a tie of BF16: rounded from it, b would be the next value, but this device has not done
    so, which is right as well (1 ULP). c follows from the b that the device has."""
    x = torch.tensor([1.0 + 2.0**-8, 3.0])  # the tie rounds to the even 1.0
    inputs = {"x": x}
    stages: dict[str, Tensor] = {}
    golden = chain(inputs, stages, {})
    op = SimpleNamespace(
        outputs=[SimpleNamespace(name="c")],
        stages=("a", "b"),
        golden=lambda inputs, taps, given=None: chain(inputs, taps, given or {}),
        valid=lambda *_: {},
    )
    near = Close(rtol=1e-6, atol=0.0, over_fraction=0.0, over_points=0)
    one = Ulp(max_ulp=1, atol_rms=0.0, differing_fraction=1.0, differing_points=0)
    rules: tuple[tuple[str, Comparator, tuple[str, ...]], ...] = (
        ("a", near, ()),
        ("b", one, ("a",)),
        ("c", Exact(), ("a", "b")),
    )
    entries = {name: Entry(name, rule, given, {}, 1) for name, rule, given in rules}
    prepared = Prepared(cast(Op, op), inputs, {}, golden, stages, {}, {}, ())
    own = {"a": torch.nextafter(x, torch.tensor(9.0)), "b": stages["b"]}
    result = DeviceRun(chain(inputs, {}, own), intermediates=own)
    judged = judge(cast(Op, op), entries, prepared, result)
    assert {name: judgement.status for name, judgement in judged.items()} == dict.fromkeys(judged, PASS)
    assert [step.status for step in walk(prepared, entries, result)] == ["close", "equal", "carried over"]
    assert judge(cast(Op, op), entries, prepared, DeviceRun(golden, intermediates=own))["c"].status == FAIL


def test_what_failed_is_not_what_others_go_on_from() -> None:
    """A q computed from codes that are wrong is not excused by those codes."""
    prepared, _ = prepare(Run("qkv_proj_rope"))
    wrong = prepared.golden["qr"] // 2
    outputs = prepared.op.golden(prepared.inputs, {}, given={"qr": wrong})
    judged = judge(prepared.op, load_tolerances()["qkv_proj_rope"], prepared, DeviceRun({**outputs, "qr": wrong}))
    assert judged["qr"].status == FAIL
    assert judged["q"].status == FAIL
    assert judged["kv"].status == PASS


def test_a_device_that_tells_no_stage_is_judged_from_the_inputs_on() -> None:
    """Legal flips of codes that nobody handed back are not excused one by one: their sum has a bound of its own."""
    prepared, _ = prepare(Run("decode_sparse_attn_swa"))
    op, entries = prepared.op, load_tolerances()["decode_sparse_attn_swa"]
    codes = prepared.stages["o_codes"].clone()
    codes[0, 0] += 1 if int(codes[0, 0]) < 0 else -1
    outputs = op.golden(prepared.inputs, {}, given={"o_codes": codes})
    silent = DeviceRun(outputs)
    judged = judge(op, entries, prepared, silent)
    assert judged["attn_out"].status == PASS
    assert "relative L2 of each token <= 0.004 (stage o_packed is not told)" in judged["attn_out"].label
    wrong = DeviceRun({"attn_out": outputs["attn_out"] * 1.01})
    assert judge(op, entries, prepared, wrong)["attn_out"].status == FAIL
    telling = DeviceRun(outputs, intermediates=dict(prepared.stages))
    assert judge(op, entries, prepared, telling)["attn_out"].status == FAIL
