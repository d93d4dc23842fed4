"""The tolerances loader: what it accepts, and that every mistake is one line with file and line."""

import re

import pytest

from harness.compare import Codes, Ulp
from harness.errors import UsageError
from harness.tolerances import DEFAULT_PATH, OpNames, load_tolerances
from specs.registry import all_ops, load_op

KNOWN = {"gate": OpNames(("x_norm", "codes"), ("h_i8", "x_norm"))}
PROVENANCE = """
    provenance:
      contract: hc_gate_experts.md 3.5
      honest: one ULP
      reference: allclose
      date: 2026-11-21"""
X_NORM = f"""
  x_norm:
    compare: ulp
    max_ulp: 1
    atol_rms: 0.0
    differing_fraction: 1.0e-4
    differing_points: 2
    bias_z: 6{PROVENANCE}"""
CODES = f"""
  codes:
    compare: codes
    max_step: 1
    step_fraction: 5.0e-4
    step_points: 2
    bias_z: 6
    given: [x_norm]{PROVENANCE}"""
GOOD = f"gate:{X_NORM}{CODES}\n"


def load(tmp_path, text):
    path = tmp_path / "tolerances.yaml"
    path.write_text(text)
    return load_tolerances(path, KNOWN)


def test_accepts_a_complete_file(tmp_path):
    entries = load(tmp_path, GOOD)["gate"]
    assert entries["x_norm"].comparator == Ulp(
        max_ulp=1, atol_rms=0.0, differing_fraction=1e-4, differing_points=2, bias_z=6.0
    )
    assert entries["codes"].comparator == Codes(max_step=1, step_fraction=5e-4, step_points=2, bias_z=6.0)
    assert entries["codes"].given == ("x_norm",)
    assert entries["codes"].provenance["date"] == "2026-11-21"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("gate:", "gat:", r":1: unknown op 'gat'; did you mean gate\?"),
        ("  x_norm:\n    compare", "  x_nrm:\n    compare", r":2: gate has no output or stage 'x_nrm'; did you"),
        (CODES, "", r":1: op gate has no tolerance for codes"),
        ("max_ulp: 1", "max_upl: 1", r":4: gate\.x_norm: unknown key 'max_upl'; did you mean max_ulp\?"),
        ("    max_ulp: 1\n", "", r":2: gate\.x_norm: ulp needs max_ulp"),
        ("max_ulp: 1", "max_ulp: 1.5", r":4: gate\.x_norm\.max_ulp is 1\.5, expected a whole number"),
        ("max_ulp: 1", "max_ulp: one", r":4: gate\.x_norm\.max_ulp is 'one', expected a whole number"),
        ("max_ulp: 1", "max_ulp: true", r":4: gate\.x_norm\.max_ulp is 1|True, expected a whole number"),
        ("max_ulp: 1", "max_ulp: -1", r":4: gate\.x_norm\.max_ulp is -1, expected a finite number >= 0"),
        ("atol_rms: 0.0", "atol_rms: .nan", r":5: gate\.x_norm\.atol_rms is nan, expected a finite number"),
        ("atol_rms: 0.0", "atol_rms: .inf", r":5: gate\.x_norm\.atol_rms is inf, expected a finite number"),
        ("differing_fraction: 1.0e-4", "differing_fraction: 1.5", r":2: gate\.x_norm: differing_fraction is 1\.5"),
        ("max_ulp: 1\n", "max_ulp: 1\n    max_ulp: 2\n", r":5: malformed YAML: found duplicate key \"max_ulp\""),
        ("compare: ulp", "compare: upl", r":3: unknown comparator 'upl'; did you mean ulp\?"),
        ("    compare: ulp\n", "", r":2: gate\.x_norm has no comparator"),
        ("given: [x_norm]", "given: [y]", r":20: gate\.codes\.given names no output or stage: 'y'; known: x_n"),
        ("given: [x_norm]", "given: x_norm", r":20: gate\.codes\.given is 'x_norm', expected a list"),
        ("    bias_z: 6\n", "    bias_z: 6\n    flip_codes: h\n    flip_limit: 1\n    flip_rows: 0.1\n",
         r":2: gate\.x_norm needs stage 'h'"),
        (PROVENANCE, "", r":2: gate\.x_norm has no provenance"),
        ("      honest: one ULP\n", "", r":9: gate\.x_norm\.provenance lacks honest"),
        ("honest: one ULP", "honst: one ULP", r":11: gate\.x_norm\.provenance: unknown key 'honst'"),
        ("date: 2026-11-21", "date: soon", r":13: gate\.x_norm\.provenance\.date is 'soon', expected a date"),
        ("gate:\n", "gate: {\n", r"malformed YAML"),
        (GOOD, "", r":1: the file must be a mapping, got nothing"),
        (GOOD, "- a\n", r":1: the file must be a mapping, got CommentedSeq"),
        (GOOD, "gate: 3\n", r":1: op gate must be a mapping, got 3"),
    ],
)  # fmt: skip
def test_rejects_with_file_and_line(tmp_path, before, after, message):
    assert before in GOOD
    with pytest.raises(UsageError) as caught:
        load(tmp_path, GOOD.replace(before, after, 1))
    text = str(caught.value)
    assert text.startswith(str(tmp_path / "tolerances.yaml"))
    assert "\n" not in text
    assert re.search(message, text), text


def test_rejects_a_missing_file(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        load_tolerances(tmp_path / "none.yaml", KNOWN)


def test_the_shipped_file_covers_every_output_of_every_op():
    entries = load_tolerances(DEFAULT_PATH)
    assert sorted(entries) == all_ops()
    for name in all_ops():
        op = load_op(name)
        outputs = {spec.name for spec in op.outputs}
        assert outputs <= set(entries[name]) <= outputs | set(op.stages)
