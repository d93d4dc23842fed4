"""What becomes of a mutant: each outcome by a kernel made for it, the other gates by hand-made outputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import pytest
import torch

from harness.compare import Exact
from harness.devices import get_device
from harness.errors import UsageError
from harness.metrics import Metrics
from harness.mutate import pool
from harness.mutate.judge import EQUIVALENT, ERROR, KILLED, OURS, REFUSED, SURVIVED, Judge, Outcome
from harness.mutate.mutants import ROOT, Mutant
from harness.mutate.pool import Settings, judge_all
from harness.mutate.rivals import GATES, rejected
from harness.mutate.situations import TOKENS, situations
from harness.mutate.summary import Result, tally
from harness.reference import reference_check
from harness.tolerances import Tolerances, load_tolerances

KERNEL = ROOT / "kernels" / "rms_norm.py"
CAST = 'pl.BF16, mode="rint")'


def wrong(before: str, after: str) -> str:
    text = KERNEL.read_text(encoding="utf-8")
    assert before in text
    return text.replace(before, after)


def loose() -> Tolerances:
    """One ULP anywhere, in any direction."""
    entry = load_tolerances()["rms_norm"]["x_normed"]
    comparator = replace(entry.comparator, differing_fraction=1.0, bias_z=None)
    return {"rms_norm": {"x_normed": replace(entry, comparator=comparator)}}


@pytest.fixture
def judge(tmp_path: Path) -> Callable[..., Outcome]:
    def run(text: str, tolerances: Tolerances | None = None, cases: tuple[str, ...] = ("default", "tiny")) -> Outcome:
        file = tmp_path / "rms_norm.py"
        file.write_text(text, encoding="utf-8")
        runs = situations("rms_norm", (0,), cases)[: len(cases)]
        return Judge(runs, get_device("emulator"), tolerances or load_tolerances()).judge(file)

    return run


def test_killed_by_a_verdict(judge: Callable[..., Outcome]) -> None:
    outcome = judge(wrong(CAST, 'pl.BF16, mode="trunc")'))
    assert (outcome.status, outcome.how) == (KILLED, "verdict")
    assert outcome.where == "rms_norm-tiny-decode-default-seed0"
    assert outcome.reason.startswith("x_normed: ")
    assert outcome.default[OURS] is True
    assert outcome.default["cosine"] is False


def test_survives_where_a_tolerance_is_too_wide(judge: Callable[..., Outcome]) -> None:
    outcome = judge(wrong(CAST, 'pl.BF16, mode="trunc")'), loose())
    assert (outcome.status, outcome.how, outcome.reason) == (SURVIVED, "", "")


def test_killed_by_a_later_case(judge: Callable[..., Outcome]) -> None:
    outcome = judge(wrong("pl.add(mean_square, RMS_EPS)", "pl.add(mean_square, 0.0)"))
    assert (outcome.status, outcome.where) == (KILLED, "rms_norm-tiny-decode-tiny-seed0")
    assert not any(outcome.default.values())


def test_killed_by_a_fault_which_every_gate_notices(judge: Callable[..., Outcome]) -> None:
    outcome = judge(wrong("d0 = c * CHUNK", "d0 = (c + 1) * CHUNK"))
    assert (outcome.status, outcome.how) == (KILLED, "fault")
    assert set(outcome.default) == {OURS, *GATES}
    assert all(outcome.default.values())


def test_refused_by_the_checker(judge: Callable[..., Outcome]) -> None:
    outcome = judge(wrong("pl.recip(pl.sqrt", "pl.no_such_op(pl.sqrt"))
    assert outcome.status == REFUSED
    assert "no_such_op" in outcome.reason


def test_equivalent_when_every_bit_is_the_same(judge: Callable[..., Outcome]) -> None:
    same = wrong("pl.add(mean_square, RMS_EPS)", "pl.add(pl.add(mean_square, 0.0), RMS_EPS)")
    assert judge(same).status == EQUIVALENT


def test_a_shipped_kernel_that_fails_judges_nothing(judge: Callable[..., Outcome]) -> None:
    class Never(Exact):
        def limits(self, metrics: Metrics) -> list[str]:
            return ["never passes"]

    never = replace(load_tolerances()["rms_norm"]["x_normed"], comparator=Never())
    with pytest.raises(UsageError, match="the shipped kernel fails here"):
        judge(KERNEL.read_text(encoding="utf-8"), {"rms_norm": {"x_normed": never}})


def test_situations_are_the_strongest_of_the_op() -> None:
    runs = situations("rms_norm", (0, 3))
    assert runs[0].case == "default"
    assert {run.case for run in runs if run.seed == 3} == {run.case for run in runs if run.seed == 0}
    assert {run.schedule for run in runs if run.seed == 3} == {3}
    assert {"decode_mtp", "prefill"} <= {run.deployment for run in runs}
    assert any(dict(run.overrides).get("hc_eps") == 1e-3 for run in runs)
    assert {run.case for run in runs if run.overrides == TOKENS[0]} == {run.case for run in runs}
    assert len(set(runs)) == len(runs)


def test_code_of_the_other_tile_set_is_run(tmp_path: Path) -> None:
    """qkv_proj_rope reads a head in chunks with the older tiles: wrong there, it is right with the default ones."""
    text = (ROOT / "kernels" / "qkv_proj_rope.py").read_text(encoding="utf-8")
    piece = "lanes_sum = pl.row_sum(pl.mul(lanes, lanes))"
    assert piece in text
    wrong = tmp_path / "qkv_proj_rope.py"
    wrong.write_text(text.replace(piece, "lanes_sum = pl.row_sum(pl.mul(lanes, 2.0))"), encoding="utf-8")
    runs = [run for run in situations("qkv_proj_rope", (0,)) if run.case == "default" and not run.overrides]
    device, tolerances = get_device("emulator"), load_tolerances()
    outcome = Judge([run for run in runs if run.deployment == "decode"], device, tolerances).judge(wrong)
    assert outcome.status == KILLED
    assert "before_pr672" in outcome.where
    assert not [run for run in situations("rms_norm") if run.tiles]


@pytest.mark.parametrize(("op", "tokens"), [("hc_head", 48), ("decode_sparse_attn_swa", 16)])
def test_situations_have_several_tiles_where_24_tokens_are_none(op: str, tokens: int) -> None:
    runs = situations(op, (0,))
    many = {run.case for run in runs if run.overrides == (("tokens", tokens),)}
    assert many == {run.case for run in runs}


def test_a_scale_of_another_tile_shows_where_an_epsilon_decides(tmp_path: Path) -> None:
    """Elsewhere the head's norm takes it away again; with one tile there is no other."""
    text = (ROOT / "kernels" / "qkv_proj_rope.py").read_text(encoding="utf-8")
    piece = "by_token = pl.row_expand_mul(q_acc, qr_scale[t0 : t0 + TOKENS, 0:1])"
    assert piece in text
    wrong = tmp_path / "qkv_proj_rope.py"
    wrong.write_text(text.replace(piece, piece.replace("t0", "0")), encoding="utf-8")
    outcome = Judge(situations("qkv_proj_rope", (0,)), get_device("emulator"), load_tolerances()).judge(wrong)
    assert outcome.status == KILLED


@pytest.mark.parametrize(
    ("op", "grown"),
    [("decode_sparse_attn_swa", {"num_attention_heads"}), ("gate", {"n_routed_experts"}), ("hc_post", set())],
)
def test_situations_grow_the_sizes_that_the_kernel_reads(op: str, grown: set[str]) -> None:
    """TINY has one tile of heads, and as many experts as the sort is wide."""
    names = {"num_attention_heads", "n_routed_experts"}
    runs = [run for run in situations(op, (0,)) if set(dict(run.overrides)) & names]
    assert {run.case for run in runs} <= {"default"}
    assert {run.overrides[0][0] for run in runs} == grown


def test_a_missing_dependency_is_found_in_another_order(tmp_path: Path) -> None:
    """The ring is overwritten while it is still read: a warning in most orders, and a race in some."""
    kernel = ROOT / "kernels" / "decode_attention_swa.py"
    piece = "pl.mul(pl.cast(attn_out[t : t + 1, 0:GUARD], pl.FP32), 0.0)"
    text = kernel.read_text(encoding="utf-8")
    assert piece in text
    wrong = tmp_path / kernel.name
    wrong.write_text(text.replace(piece, "0.0"), encoding="utf-8")
    runs = [run for run in situations(kernel.stem, (0,), ("default",)) if run.schedule > 1]
    found = Judge(runs, get_device("emulator"), load_tolerances()).judge(wrong)
    assert (found.status, found.how) == (KILLED, "finding")
    assert "GG402" in found.reason


def test_situations_refuse_an_unknown_case() -> None:
    with pytest.raises(UsageError, match="unknown case 'defualt'; did you mean default"):
        situations("rms_norm", (0,), ("defualt",))


def test_an_error_of_the_harness_is_no_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.mutate.judge.Judge.judge", lambda *_: {}["no such key"])
    (outcome,) = worked(mutant("", 1))
    assert (outcome.status, outcome.how) == (ERROR, "error")
    assert "KeyError: 'no such key'" in outcome.reason
    assert tally([Result(mutant("", 1), outcome)]).rate == 0


def test_a_mutant_that_asks_for_too_much_memory_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(*_: object) -> None:
        raise MemoryError("12 GiB")

    monkeypatch.setattr("harness.mutate.judge.Judge.judge", hungry)
    (outcome,) = worked(mutant("", 1))
    assert (outcome.status, outcome.how) == (KILLED, "crash")


def worked(*given: Mutant) -> list[Outcome]:
    """What a worker, in this process, answers to some mutants."""
    pipe = _Script(given)
    with TemporaryDirectory() as folder, mock.patch("resource.setrlimit"), mock.patch("signal.signal"):
        pool._work(cast(Connection, pipe), Settings(seeds=(0,), cases=("default",)), Path(folder))
    return pipe.answers


class _Script:
    """The worker's end of a pipe through which some mutants come, then nothing."""

    def __init__(self, given: Sequence[Mutant]) -> None:
        self.given = list(given)
        self.answers: list[Any] = []

    def recv(self) -> Mutant:
        if not self.given:
            raise EOFError
        return self.given.pop(0)

    def send(self, answer: object) -> None:
        if answer not in ("ready", "alive"):
            self.answers.append(answer)


def mutant(text: str, line: int) -> Mutant:
    return Mutant("rms_norm", "cast_mode", "kernels/rms_norm.py", line, 1, 0, text)


@pytest.mark.slow  # starts processes, and waits for one that hangs
def test_processes_outlive_endless_loops_and_crashes() -> None:
    hang = mutant("while True:\n    pass\n", 1)
    crash = mutant("import os\nos._exit(3)\n", 2)
    hungry = mutant("import numpy\nkept = [numpy.ones(1 << 27) for _ in range(100)]\n", 3)
    fine = mutant(wrong(CAST, 'pl.BF16, mode="trunc")'), 4)
    found = dict(judge_all([hang, crash, hungry, fine], Settings(seeds=(0,), cases=("default",), limit=6.0)))
    assert (found[hang].status, found[hang].how) == (KILLED, "limit")
    assert found[crash].how == "crash"
    assert "exit code 3" in found[crash].reason
    assert found[hungry].status in (KILLED, REFUSED)
    assert found[fine].how == "verdict"


@pytest.mark.slow  # starts a process
def test_nobody_is_late_while_the_command_itself_was_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty-five minutes of Ctrl-Z once made a kill of a mutant that does nothing wrong."""
    asleep = [0.0]
    monkeypatch.setattr(pool, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + asleep[0]))

    def stopped(*words: Any, **more: Any) -> Any:
        asleep[0] += 1500.0
        return wait(*words, **more)

    monkeypatch.setattr(pool, "wait", stopped)
    same = mutant(wrong("pl.mul(chunk, chunk)", "pl.mul(pl.mul(chunk, chunk), 1.0)"), 1)
    ((_, outcome),) = judge_all([same], Settings(seeds=(0,), cases=("default",), limit=60.0))
    assert outcome.status == EQUIVALENT


RULES = {
    "ratio_allclose(atol 1e-4, rtol 1/128, ratio 0.005)": (1.0078, 1.02),
    "allclose(atol 1e-3, rtol 1e-3)": (1.001, 1.01),
    "ratio_reldiff(diff_thd 2e-3, pct_thd 0.01) over the whole buffer": (1.001, 1.01),
    "ratio_reldiff(diff_thd 0.01, pct_thd 1, max_diff_hd 0.5)": (1.5, 3.0),
    "exact": (1.0, 1.0000001),
}


@pytest.mark.parametrize("rule", RULES)
def test_reference_rules_accept_and_reject(rule: str) -> None:
    check = reference_check(rule)
    assert check is not None
    near, far = RULES[rule]
    ones = torch.ones(1000)
    assert check(ones * near, ones, {})
    assert not check(ones * far, ones, {})


@pytest.mark.parametrize("rule", ["", "none", "ratio_allclose", "ratio_allclose(atol x)", "ratio_allclose(atol 1)"])
def test_a_text_without_a_rule_is_none(rule: str) -> None:
    assert reference_check(rule) is None


def test_top_k_rule_looks_at_the_values() -> None:
    check = reference_check("topk_pair_compare(weights)")
    assert check is not None
    actual, golden = torch.tensor([[1, 0, 2]]), torch.tensor([[0, 1, 2]])
    assert check(actual, golden, {"weights": torch.tensor([[2.0, 2.0, 1.0]])})
    assert not check(actual, golden, {"weights": torch.tensor([[1.0, 2.0, 3.0]])})


def test_rivals_read_zero_where_nothing_was_written_and_skip_what_is_open() -> None:
    golden = {"y": torch.zeros(4)}
    left = {"y": torch.tensor([0.0, 7.0, 7.0, 0.0])}
    third, second = torch.tensor([False, False, True, False]), torch.tensor([False, True, False, False])
    rules = {"y": "allclose(atol 1e-3, rtol 0)"}
    said = rejected(left, golden, {"y": ~third}, {"y": second}, rules)
    assert said == {"reference": False, "assert_close": False, "cosine": False}
    assert all(rejected(left, golden, {"y": ~third}, {}, rules).values())
    assert rejected(left, golden, {}, {}, {})["reference"] is None
