"""goldengate capacity: the table, the answer for a depth, JSON, exit codes."""

import json

import pytest
import torch

from harness import capacity
from harness.cli import main
from specs.registry import load_op


def load(rows, tokens=8):
    return capacity.Load("tiny", "decode", "made", 0, tokens, 32, torch.tensor(rows))


def test_figures_of_a_load():
    made = load([[1, 0, 2, 5], [0, 3, 0, 0]])
    assert made.by_expert.tolist() == [1, 3, 2, 5]
    assert made.by_rank.tolist() == [4, 7]
    assert made.mean == 2.75
    assert made.smallest_depth == 16


@pytest.mark.parametrize(("depth", "holds"), [(16, False), (32, True)])
def test_a_lane_of_nine_rows_needs_more_than_a_depth_of_16(depth, holds):
    made = load([[9, 0, 0, 0], [0, 0, 0, 0]])
    assert made.smallest_depth == 32
    assert (made.overflow(depth) is None) == holds
    [(passed, line)] = capacity.answers([made], depth)
    assert passed == holds
    wanted = "passes: made, EP = 2, depth 32: 9 of a lane's 16 rows used"
    if not holds:
        wanted = (
            "overflows: made, EP = 2, depth 16: rank 0 sends 9 rows to expert 0 on rank 0, "
            "expected at most the 8 of its lane there"
        )
    assert line == wanted


def test_no_routes_at_all_have_a_row_too():
    assert " 0 " in capacity.table([load([[0, 0], [0, 0]])])


def test_every_routing_case_is_tabulated_for_every_ep(capsys):
    assert main(["capacity"]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    rows = [line.split()[:2] for line in lines[: lines.index("")]]
    cases = capacity.routing_cases(load_op("moe"))
    assert len(cases) >= 12
    assert rows == [[case, str(ranks)] for ranks in (2, 4, 8) for case in cases]


def test_a_depth_that_some_routing_overflows_exits_with_1(capsys):
    argv = ["capacity", "--ep", "8", "--case", "hash_round_robin", "--case", "hash_same_token", "--depth"]
    assert main([*argv, "32"]) == 1
    out = capsys.readouterr().out
    assert "passes: hash_round_robin, EP = 8, depth 32" in out
    assert "overflows: hash_same_token, EP = 8, depth 32: rank 0 sends 8 rows to expert" in out
    assert main([*argv, "64"]) == 0
    assert "overflows:" not in capsys.readouterr().out


def test_json_has_the_rows_of_every_source_and_expert(tmp_path):
    path = tmp_path / "loads.json"
    assert main(["capacity", "--ep", "2", "--case", "score_ties_all", "--json", str(path)]) == 0
    [record] = json.loads(path.read_text())
    assert record["rows_by_source_and_expert"] == [[8] * 6 + [0] * 10] * 2
    assert record["rows_by_rank"] == [96, 0]
    assert (record["smallest_depth"], record["worst_case_depth"]) == (16, 16)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--depth", "24"], "--depth is 24, expected a multiple of 16"),
        (["--depth", "0"], "--depth is 0, expected a multiple of 16"),
        (["--ep", "3"], "ep_world_size is 3, expected 2, 4 or 8"),
        (["--preset", "tny"], "unknown preset 'tny'; did you mean tiny?"),
        (["--deployment", "prefil"], "unknown deployment 'prefil'; did you mean prefill?"),
        (["--case", "hash_hto"], "unknown case of moe 'hash_hto': did you mean 'hash_hot'?"),
        (["--seed", "-1"], "seed is -1, expected an int >= 0"),
        (["--case", "hash_duplicate"], "names expert"),
    ],
)
def test_rejects(argv, message, capsys):
    assert main(["capacity", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1
