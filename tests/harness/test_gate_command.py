"""The gate in a repository of kernels that is not ours, and on this one: what is affected, judged, said and refused."""

from __future__ import annotations

import datetime
import json
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from harness.cli import main
from harness.errors import UsageError
from harness.gate.config import GateConfig, load_config
from harness.gate.fingerprint import closure, op_fingerprint
from harness.gate.plan import Affected, plan, seconds
from harness.gate.trees import Tree, WorkTree
from specs.registry import load_op

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "tests" / "example_repository"
SCALED_FIRST = "pl.row_sum(pl.mul(pl.mul(rows, rows), 1.0 / HIDDEN))"
TODAY = datetime.date(2026, 11, 21)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The example repository with one commit."""
    root = tmp_path / "kernels_of_others"
    shutil.copytree(EXAMPLE, root, ignore=shutil.ignore_patterns("__pycache__"))
    commit(root)
    return root


def commit(root: Path) -> None:
    author = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org")
    for words in (("init", "-q"), ("add", "."), (*author, "commit", "-q", "-m", "Kernels")):
        subprocess.run(["git", *words], cwd=root, check=True)


def edit(path: Path, before: str, after: str) -> None:
    source = path.read_text(encoding="utf-8")
    assert before in source
    path.write_text(source.replace(before, after), encoding="utf-8")


def gate(root: Path, *words: str) -> int:
    """In one process, as others would take longer to start than the runs take, unless `words` say otherwise."""
    return main(["gate", "--directory", str(root), "--date", "2026-11-21", "-j", "1", *words])


def test_a_repository_without_changes_has_nothing_to_judge(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gate(repository, "--base", "HEAD") == 0
    said = capsys.readouterr().out
    assert "no op is affected" in said
    assert "not affected: rms_norm, hc_post" in said


def test_a_sound_change_is_judged_and_passes(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(repository / "operators" / "norms.py", "pl.mul(pl.row_sum(pl.mul(rows, rows)), 1.0 / HIDDEN)", SCALED_FIRST)
    assert gate(repository, "--base", "HEAD", "-j", "2") == 0
    said = capsys.readouterr().out
    assert "1 op judged" in said
    assert "not affected: hc_post" in said


def test_a_wrong_change_fails_and_is_said_everywhere(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(repository / "operators" / "norms.py", 'mode="rint"', 'mode="trunc"')
    junit, markdown, lines = (str(tmp_path / name) for name in ("gate.xml", "gate.md", "gate.jsonl"))
    files = ("--junit", junit, "--markdown", markdown, "--jsonl", lines)
    assert gate(repository, "--base", "HEAD", "--annotate", "github", *files) == 1
    said = capsys.readouterr().out
    annotation = next(line for line in said.splitlines() if line.startswith("::error "))
    assert annotation.startswith("::error file=operators/norms.py,line=10,title=goldengate::FAIL rms_norm ")
    assert "repeat: goldengate verify rms_norm" in annotation

    root = ET.parse(junit).getroot()
    (suite,) = root
    assert suite.get("name") == "rms_norm"
    failures = suite.findall("testcase/failure")
    assert int(suite.get("failures", "")) == len(failures) > 0
    assert "x_normed" in (failures[0].text or "")

    text = Path(markdown).read_text(encoding="utf-8")
    assert text.startswith("## Goldengate: 1 op judged")
    assert "### ❌ rms_norm" in text
    assert "repeat: goldengate verify rms_norm" in text

    records = [json.loads(line) for line in Path(lines).read_text(encoding="utf-8").splitlines()]
    assert len(records) == int(suite.get("tests", ""))
    assert {record["status"] for record in records} >= {"fail"}


def test_a_change_of_what_a_kernel_imports_affects_it(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(repository / "operators" / "shapes.py", "EPSILON = RMS_EPS", "EPSILON = 0.0")
    assert gate(repository, "--base", "HEAD", "--annotate", "plain") == 1
    said = capsys.readouterr().out
    assert "2 ops judged" in said
    assert "operators/norms.py:10: error: FAIL rms_norm" in said


def test_a_kernel_that_the_front_end_refuses_fails_the_gate_at_its_line(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "    tokens = pl.tensor.dim(x, 0)\n"
    edit(repository / "operators" / "streams.py", line, f"{line}    assert tokens\n")
    assert gate(repository, "--base", "HEAD", "--annotate", "plain") == 1
    said = capsys.readouterr().out
    assert "operators/streams.py:23: error: " in said
    assert "refused" in said


def test_the_budget_leaves_runs_out_and_says_so(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate(repository, "--budget", "0.001s") == 3
    said = capsys.readouterr().out
    assert "not run" in said
    assert "unverified: nothing was judged of hc_post" in said


def test_a_shift_against_the_baseline_is_said_and_can_fail(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A factor 2e-6 too large: within the tolerance, and not what it was."""
    store = str(tmp_path / "store")
    assert gate(repository, "rms_norm", "--record", store) == 0
    assert gate(repository, "rms_norm", "--record", store, "--drift", "fail") == 0
    capsys.readouterr()
    edit(repository / "operators" / "norms.py", "1.0 / HIDDEN", "1.000002 / HIDDEN")
    assert gate(repository, "rms_norm", "--record", store, "--drift", "fail") == 1
    assert "shift: rms_norm tiny/decode " in capsys.readouterr().out


def test_rotating_numbers_change_with_the_day_and_fixed_ones_do_not() -> None:
    config = GateConfig(ROOT, cases=("default",))
    today, tomorrow = (plan(config, ["rms_norm"], None, TODAY + datetime.timedelta(days)).runs for days in (0, 1))
    shared = {run.seed for run in today} & {run.seed for run in tomorrow}
    assert shared == {0}
    assert today == plan(config, ["rms_norm"], None, TODAY).runs
    assert today[0].schedule == 0
    assert len({run.schedule for run in today}) == 3


def test_a_rotating_seed_runs_the_cases_of_the_day_under_a_rotating_schedule() -> None:
    config = GateConfig(ROOT, rotating_seeds=3, rotating_schedules=2)
    runs = plan(config, ["rms_norm"], None, TODAY).runs
    schedules = sorted({run.schedule for run in runs} - {0})
    turning = [run for run in runs if run.seed != 0]
    assert list({run.seed: run.schedule for run in turning}.values()) == [schedules[0], schedules[1], schedules[0]]
    days = [plan(config, ["rms_norm"], None, TODAY + datetime.timedelta(days)).runs for days in range(3)]
    seen = [{run.case for run in runs if run.seed != 0} for runs in days]
    assert set.union(*seen) == {run.case for run in runs}
    assert sum(map(len, seen)) == len(set.union(*seen))


def checkout(root: Path) -> Path:
    """What the gate reads of this repository, as a repository of its own with one commit."""
    for name in ("goldens", "specs", "harness", "kernels"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "tolerances.yaml", root)
    commit(root)
    return root


def test_the_first_run_of_a_host_program_has_all_ranks_and_the_others_two() -> None:
    runs = plan(GateConfig(ROOT), ["moe", "expert_routed"], None, TODAY).runs
    assert {run.overrides for run in runs if run.op == "expert_routed"} == {()}
    first, *others = [run for run in runs if run.op == "moe"]
    assert (first.case, first.overrides) == ("default", ())
    assert {run.overrides for run in others} == {(("ep_world_size", 2),)}
    assert len({run.case for run in others}) > 20


def test_an_op_that_splices_a_changed_kernel_gets_another_third_of_its_cases_every_day(tmp_path: Path) -> None:
    root = checkout(tmp_path / "checkout")
    edit(root / "kernels" / "rms_norm.py", "\nimport", "\n# changed\nimport")
    days = [TODAY + datetime.timedelta(days) for days in range(3)]
    seen = [plan(GateConfig(root), ["decode_attention_swa"], "HEAD", day).runs for day in days]
    names = [{run.case for run in runs} - {"default"} for runs in seen]
    assert not names[0] & names[1]
    everything = {case.name for case in load_op("decode_attention_swa").cases if not case.invalid}
    assert set.union(*names) == everything - {"default"}
    assert {run.case for run in seen[0] if run.case == "default"}


def test_an_op_that_splices_a_changed_kernel_gets_the_fixed_seeds_alone(tmp_path: Path) -> None:
    root = checkout(tmp_path / "checkout")
    edit(root / "kernels" / "rms_norm.py", "\nimport", "\n# changed\nimport")
    work = plan(GateConfig(root, cases=("default",)), ["rms_norm", "decode_attention_swa", "hc_post"], "HEAD", TODAY)
    assert work.affected == (Affected("rms_norm"), Affected("decode_attention_swa", spliced=True))
    assert work.unaffected == ("hc_post",)
    assert {run.seed for run in work.runs if run.op == "decode_attention_swa"} == {0}
    assert len({run.seed for run in work.runs if run.op == "rms_norm"}) == 2
    edit(root / "goldens" / "decode_attention_swa.py", "\nimport", "\n# changed\nimport")
    again = plan(GateConfig(root, cases=("default",)), ["rms_norm", "decode_attention_swa"], "HEAD", TODAY)
    assert again.affected == (Affected("rms_norm"), Affected("decode_attention_swa"))


def test_default_cases_of_all_ops_come_first() -> None:
    runs = plan(GateConfig(ROOT), ["rms_norm", "hc_post"], None, TODAY).runs
    assert [(run.op, run.case) for run in runs[:2]] == [("rms_norm", "default"), ("hc_post", "default")]
    assert len(set(runs)) == len(runs)


class Edited:
    """A tree with one file changed."""

    def __init__(self, tree: Tree, path: str, content: bytes) -> None:
        self.tree, self.path, self.content = tree, path, content

    def read(self, path: str) -> bytes | None:
        return self.content if path == self.path else self.tree.read(path)

    def list(self, folder: str, suffix: str) -> list[str]:
        return self.tree.list(folder, suffix)


COMPARATORS = WorkTree(ROOT).list("harness/compare", ".py")
assert COMPARATORS, "harness/compare has no files"


@pytest.mark.parametrize(
    ("path", "affected"),
    [
        ("goldens/hc_post.py", {"hc_post"}),
        ("kernels/rms_norm.py", {"rms_norm"}),
        ("kernels/sizes.py", {"gate", "rms_norm", "hc_post"}),
        ("goldens/numerics/quant.py", {"gate"}),
        ("harness/devices/emulator/rounding.py", {"gate", "rms_norm", "hc_post"}),
        *((path, {"gate", "rms_norm", "hc_post"}) for path in COMPARATORS),
        ("harness/metrics/sums.py", {"gate", "rms_norm", "hc_post"}),
        ("specs/distributions/basic.py", {"gate", "rms_norm", "hc_post"}),
        ("harness/fuzz/session.py", set()),
        ("README.md", set()),
    ],
)
def test_a_change_affects_what_depends_on_it(path: str, affected: set[str]) -> None:
    tree = WorkTree(ROOT)
    content = tree.read(path)
    assert content is not None
    edited = Edited(tree, path, content + b"\n# changed\n")
    ops = ("gate", "rms_norm", "hc_post")
    changed = {op for op in ops if op_fingerprint(tree, op) != op_fingerprint(edited, op)}
    assert changed >= affected
    if not affected or path.startswith(("goldens/hc_post", "kernels/rms")):
        assert changed == affected


def test_a_tolerance_affects_its_op_and_a_comment_none() -> None:
    tree = WorkTree(ROOT)
    content = tree.read("tolerances.yaml")
    assert content is not None
    comment = Edited(tree, "tolerances.yaml", b"# a comment\n" + content)
    assert op_fingerprint(tree, "gate") == op_fingerprint(comment, "gate")
    looser = Edited(tree, "tolerances.yaml", content.replace(b"max_ulp: 1", b"max_ulp: 2", 1))
    changed = [op for op in ("gate", "rms_norm") if op_fingerprint(tree, op) != op_fingerprint(looser, op)]
    assert changed == ["rms_norm"]


def test_the_closure_of_a_kernel_has_what_it_splices() -> None:
    files = closure(WorkTree(ROOT), ["kernels/mtp_projection.py"])
    assert "kernels/sizes.py" in files
    assert not [file for file in files if file.startswith("harness/")]


@pytest.mark.parametrize(("text", "value"), [("10m", 600), ("90s", 90), ("1.5h", 5400), ("7", 7)])
def test_a_budget_is_a_time(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "m", "-1s", "0", "1d", "soon"])
def test_rejects_a_budget_that_is_no_time(text: str) -> None:
    with pytest.raises(UsageError, match="is no time above 0"):
        seconds(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[gat]\n", r"unknown table \[gat\]; did you mean gate\?"),
        ("[gate]\nseed = [0]\n", r"unknown key gate\.seed; did you mean seeds\?"),
        ("[gate]\nseeds = [-1]\n", r"gate\.seeds is \[-1\], expected a list of numbers"),
        ("[gate]\ncases = []\n", r"gate\.cases is \[\], expected a list of names"),
        ("[gate]\nrotating_seeds = true\n", r"gate\.rotating_seeds is True, expected a number from 0 to 100"),
        ("[ops]\ngaet = 'x.py'\n", r"unknown op 'gaet' in \[ops\]; did you mean gate\?"),
        ("[ops]\ngate = 'x.py'\n", r"ops\.gate: there is no file x\.py"),
        ("[ops]\ngate = 3\n", r"ops\.gate is 3, expected FILE or FILE:FUNCTION"),
        ("[ops\n", r"goldengate\.toml: "),
    ],
)
def test_rejects_a_configuration_with_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "goldengate.toml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=message) as caught:
        load_config(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "goldengate.toml"))


def test_rejects_a_base_that_there_is_not(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate(repository, "--base", "no-such-branch") == 2
    assert capsys.readouterr().err.startswith("goldengate: error: git archive in ")
    assert gate(repository.parent, "--base", "HEAD") == 2
    assert "not a git repository" in capsys.readouterr().err
    assert gate(repository / "none") == 2
    assert "is no directory" in capsys.readouterr().err
