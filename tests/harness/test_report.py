"""The grammar of failures, the table and the JSON record."""

import json
import math
from dataclasses import replace

import torch
from standin import GoldenDevice, exact_entries

from harness.locate import describe, locate
from harness.report import failure_text, notes, summary, table, to_json, unverified_outputs
from harness.run import Run
from harness.verify import Session

ENTRIES = {"hc_post": exact_entries("y")}


def wrong(run, inputs):
    run.outputs["y"][2, 1, 7] = 3.0
    run.outputs["y"][2, 3, 7] += 0.5


def verify(change=None, entries=ENTRIES, **fields):
    return Session(GoldenDevice(change), entries).verify(Run("hc_post", **fields))


def test_a_failure_says_what_where_and_how_to_repeat():
    verdict = verify(wrong, seed=3, schedule=7)
    what, where, repeat = failure_text(verdict).splitlines()
    total = verdict.outputs["y"].metrics.elements
    assert what == (
        "FAIL hc_post tiny/decode default seed 3 schedule 7: y: "
        f"over the limit 2 of {total} ({2 / total:.4%}), allowed 0 [bit-equal]"
    )
    assert where.startswith("  worst [2, 1, 7]: actual 3 (0x4040), expected ")
    assert "steps apart; first diverging: y; bad elements: axis 0: 1 of 8: 2 (2); " in where
    assert "axis 1: 2 of 4: 1 (1), 3 (1); axis 2: 1 of 256: 7 (2)" in where
    assert repeat == (
        "  repeat: goldengate verify hc_post --preset tiny --deployment decode --case default --seed 3 --schedule 7"
    )


def test_the_command_repeats_every_option():
    run = Run(
        "gate",
        "flash",
        "prefill",
        "hash",
        1,
        2,
        "pypto",
        "my kernel.py",
        "gate2",
        "before_pr672",
        "warn",
        "off",
        "t.yaml",
    )
    assert run.command == (
        "goldengate verify gate --preset flash --deployment prefill --case hash --seed 1 --schedule 2 --device pypto "
        "--kernel 'my kernel.py:gate2' --tiles before_pr672 --lint warn --checks off --tolerances t.yaml"
    )


def test_a_pass_says_nothing():
    assert failure_text(verify()) == ""


def test_the_table_keeps_the_worst_of_all_runs():
    session = Session(GoldenDevice(), ENTRIES)
    verdicts = [session.verify(Run("hc_post", seed=seed)) for seed in range(3)]
    verdicts.append(verify(wrong, seed=3))
    text = table(verdicts)
    assert len(text.splitlines()) == 3
    assert "default × seeds 0..3" in text
    assert "fail (1 of 4)" in text
    assert len(table(verdicts, each=True).splitlines()) == 6
    assert summary(verdicts, 1.25).endswith("in 1.2 s: 3 pass, 1 fail, 0 unverified")


def test_an_output_without_tolerance_is_named():
    verdicts = [verify(entries={})]
    assert unverified_outputs(verdicts) == ["hc_post.y"]
    assert notes(verdicts) == ["hc_post: unverified: no tolerance for y"]


def test_a_note_that_many_cases_share_is_said_once_for_its_op():
    verdicts = [replace(verify(), run=Run("hc_post", case=case), notes=("x holds 3 NaN",)) for case in ("default", "a")]
    assert notes(verdicts[:1] * 2) == ["hc_post default: x holds 3 NaN"]
    assert notes(verdicts) == ["hc_post 2 cases: x holds 3 NaN"]


def test_json_is_valid_and_complete_also_with_nan():
    def change(run, inputs):
        run.outputs["y"][0, 0, 0] = math.nan

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    document = json.loads(to_json([verify(change), verify()]), parse_constant=refuse)
    failed, passed = document["runs"]
    assert failed["status"] == "fail"
    assert failed["outputs"]["y"]["worst"]["actual"] == "nan"
    assert failed["outputs"]["y"]["where"][0]["counts"] == [[0, 1]]
    assert passed["reproduce"].startswith("goldengate verify hc_post --preset tiny")
    assert passed["config"]["model"]["hidden_size"] == passed["config"]["sizes"]["D"]
    assert set(passed["versions"]) == {"goldengate", "torch", "numpy", "python", "machine"}
    metrics = passed["outputs"]["y"]["metrics"]
    for name in ("over_fraction", "ulp_max", "rel_l2", "cosine", "bias_z", "sweep", "bit_equal", "undefined"):
        assert name in metrics
    assert metrics["ulp"] == {"50": 0, "99": 0, "99.9": 0, "99.99": 0}


def test_locate_counts_along_each_axis():
    bad = torch.zeros(3, 8, dtype=torch.bool)
    bad[1, 2:6] = True
    assert describe(locate(bad)) == "axis 0: 1 of 3: 1 (4); axis 1: 4 of 8: 2..5"
    bad[:] = True
    assert describe(locate(bad)) == "axis 0: all 3; axis 1: all 8"
    bad[:] = False
    bad[0, [1, 3, 4, 6, 7]] = True
    assert describe(locate(bad)) == "axis 0: 1 of 3: 0 (5); axis 1: 5 of 8: 1 (1), 3 (1), 4 (1), 6 (1), …"
