"""One run on a device that returns perturbed goldens: every way to fail, and what never passes by default."""

import math

import pytest
import torch
from standin import GoldenDevice, exact_entries

from harness import verify as verify_module
from harness.compare import Close
from harness.devices.base import Finding, KernelFault
from harness.errors import UsageError
from harness.run import Run
from harness.tolerances import Entry
from harness.verify import Session
from specs.distributions import Constant
from specs.registry import Case, load_op

RUN = Run("hc_pre", seed=3, schedule=7)
ENTRIES = {"hc_pre": exact_entries("x_mixed", "post", "comb")}


def verdict(change=None, run=RUN, entries=ENTRIES):
    return Session(GoldenDevice(change), entries).verify(run)


def test_accepts_the_golden_and_records_the_run():
    found = verdict()
    assert found.status == "pass"
    assert list(found.outputs) == ["x_mixed", "post", "comb"]
    assert found.diverged is None
    assert found.timing.device == 0.5
    assert found.timing.golden > 0
    assert found.counters == {"blocks": 1}
    assert found.config["model"]["name"] == "tiny"
    assert found.config["deployment"]["batch"] == 8
    assert found.versions["torch"] == torch.__version__.split("+")[0] or found.versions["torch"] == torch.__version__
    assert found.command == (
        "goldengate verify hc_pre --preset tiny --deployment decode --case default --seed 3 --schedule 7"
    )


def test_rejects_one_wrong_element_and_names_the_stage_computed_first():
    def change(run, inputs):
        run.outputs["x_mixed"][3, 17] += 1
        run.outputs["comb"][1, 2] += 1

    found = verdict(change)
    assert found.status == "fail"
    assert found.outputs["x_mixed"].worst.index == (3, 17)
    assert found.outputs["post"].status == "pass"
    assert found.diverged == "comb"  # x_mixed comes first in the signature, last in the computation


def test_rejects_a_missing_and_an_extra_output():
    def change(run, inputs):
        run.outputs["extra"] = run.outputs.pop("post")

    found = verdict(change)
    assert found.outputs["post"].reason == "the kernel returned no such output"
    assert found.problems == ("the kernel wrote 'extra', which is no output",)


def test_rejects_elements_that_were_never_written():
    def change(run, inputs):
        mask = torch.zeros_like(run.outputs["post"], dtype=torch.bool)
        mask[5, 1] = True
        run.undefined["post"] = mask

    found = verdict(change)
    assert found.status == "fail"
    assert "never written" in found.outputs["post"].reason


def test_rejects_a_kernel_that_changes_its_inputs_and_draws_them_again():
    device = GoldenDevice(lambda run, inputs: inputs["hc_fn"].add_(1))
    session = Session(device, ENTRIES)
    assert session.verify(RUN).problems == ("input hc_fn was changed by the kernel",)
    device.change = None
    assert session.verify(RUN).status == "pass"


def test_a_fault_fails_with_file_and_line():
    class Faulty(GoldenDevice):
        def run(self, kernel, op, inputs, schedule):
            raise KernelFault("k.py", 12, "out of bounds")

    found = Session(Faulty(), ENTRIES).verify(RUN)
    assert found.status == "fail"
    assert found.problems == ("kernel fault: k.py:12: out of bounds",)


@pytest.mark.parametrize(
    ("severity", "lint", "status"),
    [("error", "error", "fail"), ("error", "warn", "pass"), ("warning", "error", "pass")],
)
def test_findings_fail_by_severity_and_option(severity, lint, status):
    def change(run, inputs):
        run.findings.append(Finding("GG101", "odd rows", "k.py", 3, severity))

    found = verdict(change, Run("hc_pre", lint=lint))
    assert found.status == status
    assert str(found.findings[0]) == f"k.py:3: {severity} GG101: odd rows"


def test_an_output_without_a_tolerance_is_unverified_never_a_pass():
    found = verdict(entries={"hc_pre": exact_entries("x_mixed", "comb")})
    assert found.status == "unverified"
    assert found.outputs["post"].status == "unverified"
    assert verdict(entries={}).status == "unverified"


def test_nan_in_an_input_is_reported(monkeypatch):
    op = load_op("hc_post")
    case = Case("nan", {"x": Constant(math.nan)})
    changed = type(op)(**{f: getattr(op, f) for f in op.__dataclass_fields__} | {"cases": (*op.cases, case)})
    monkeypatch.setattr("specs.registry.load_op", lambda *_: changed)
    found = verdict(run=Run("hc_post", case="nan"), entries={"hc_post": exact_entries("y")})
    assert found.notes == (f"input x holds {changed.inputs('nan')['x'].numel()} NaN",)
    assert found.status == "fail"


def test_a_session_computes_one_golden_for_many_schedules(monkeypatch):
    calls = []
    original = verify_module.prepare
    monkeypatch.setattr(verify_module, "prepare", lambda run: calls.append(run.id) or original(run))
    session = Session(GoldenDevice(), ENTRIES)
    for seed, schedule in [(0, 0), (0, 1), (0, 2), (1, 0)]:
        session.verify(Run("hc_pre", seed=seed, schedule=schedule))
    assert calls == ["hc_pre-tiny-decode-default-seed0", "hc_pre-tiny-decode-default-seed1"]


def test_a_named_function_must_be_the_one_that_was_loaded():
    class Fallback(GoldenDevice):
        def load(self, path, function, sizes, tiles):
            return super().load(path, "hc_pre", sizes, tiles)

    run = Run("hc_pre", kernel="k.py", function="other")
    with pytest.raises(UsageError, match=r"k\.py has no function 'other'; its entry is hc_pre"):
        Session(Fallback(), ENTRIES).verify(run)


def test_downstream_outputs_are_judged_against_the_golden_continued_from_the_device(monkeypatch):
    """A legal last bit in x_mixed: with `given` the golden of post is recomputed from the device's x_mixed."""
    from specs.registry import Op

    seen = []

    def golden(self, inputs, taps=None, given=None):
        seen.append(given)
        base = (given or {}).get("x_mixed", torch.ones(2, 2))
        return {"x_mixed": torch.ones(2, 2), "post": base * 3, "comb": torch.ones(2, 2)}

    monkeypatch.setattr(Op, "golden", golden)

    def change(run, inputs):
        run.outputs["x_mixed"][0, 0] = 1.001
        run.outputs["post"] = run.outputs["x_mixed"] * 3

    close = Close(rtol=0.01, atol=0.0, over_fraction=0.0, over_points=0)
    entries = exact_entries("x_mixed", "post", "comb")
    entries["x_mixed"] = Entry("x_mixed", close, (), {}, 1)
    assert verdict(change, entries={"hc_pre": entries}).outputs["post"].status == "fail"
    entries["post"] = Entry("post", entries["post"].comparator, ("x_mixed",), {}, 1)
    assert verdict(change, entries={"hc_pre": entries}).status == "pass"
    assert float(seen[-1]["x_mixed"][0, 0]) == pytest.approx(1.001)


def test_conditions_are_judged_before_what_depends_on_them_whatever_the_signature(monkeypatch):
    """x_mixed comes first in the signature and is conditioned on post, which comes later."""
    from specs.registry import Op

    def golden(self, inputs, taps=None, given=None):
        base = (given or {}).get("post", torch.ones(2, 2))
        return {"x_mixed": base * 3, "post": torch.ones(2, 2), "comb": torch.ones(2, 2)}

    monkeypatch.setattr(Op, "golden", golden)

    def change(run, inputs):
        run.outputs["post"][0, 0] = 1.001
        run.outputs["x_mixed"] = run.outputs["post"] * 3

    entries = exact_entries("x_mixed", "post", "comb")
    close = Close(rtol=0.01, atol=0.0, over_fraction=0.0, over_points=0)
    entries["post"] = Entry("post", close, (), {}, 1)
    entries["x_mixed"] = Entry("x_mixed", entries["x_mixed"].comparator, ("post",), {}, 1)
    found = verdict(change, entries={"hc_pre": entries})
    assert found.status == "pass"
    assert list(found.outputs) == ["x_mixed", "post", "comb"]
    entries["post"] = Entry("post", close, ("x_mixed",), {}, 1)  # each on the other: nobody is given anything
    assert verdict(change, entries={"hc_pre": entries}).outputs["x_mixed"].status == "fail"
