"""`goldengate equiv`: equal kernels agree, a planted difference is named with its output, index and both values."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from standin import GoldenDevice

from harness import equiv
from harness.cli import main
from harness.devices import get_device
from harness.devices.base import KernelFault
from harness.errors import UsageError
from harness.run import Run
from harness.selection import kernel_file
from specs.registry import load_op

KERNELS = Path(__file__).parents[2] / "kernels"
RUN = Run("hc_pre")
SIDES = (equiv.Side(), equiv.Side(tiles="other"))
TILES = ("--tiles", "pr672", "--tiles", "before_pr672")


def planted(tmp_path, op, before, after):
    source = (KERNELS / f"{op}.py").read_text(encoding="utf-8")
    assert before in source
    path = tmp_path / f"{op}.py"
    path.write_text(source.replace(before, after), encoding="utf-8")
    return str(path)


def compared(change, run=RUN, ulp=()):
    """The golden on both sides; `change` perturbs the second."""
    calls = []

    def second_only(result, inputs):
        calls.append(1)
        if len(calls) == 2:
            change(result, inputs)

    (comparison,) = equiv.compare_all(GoldenDevice(second_only), [run], SIDES, ulp)
    return comparison


def test_accepts_equal_outputs():
    found = compared(lambda result, inputs: None)
    assert found.status == "pass"
    assert list(found.outputs) == ["x_mixed", "post", "comb"]
    assert equiv.failure_text(found) == ""


def test_rejects_one_bit_and_names_output_index_both_values_and_the_command():
    def change(result, inputs):
        bits = result.outputs["post"].view(torch.int32)
        bits[3, 2] += 1

    found = compared(change)
    text = equiv.failure_text(found)
    worst = found.outputs["post"].worst
    assert found.status == "fail"
    assert worst.index == (3, 2)
    assert "FAIL hc_pre tiny/decode default seed 0 schedule 0: post:" in text
    assert f"worst [3, 2]: B {worst.actual:.9g} ({worst.actual_bits}), A {worst.expected:.9g}" in text
    assert "1 step apart" in text
    assert "A: shipped; B: shipped, tiles other" in text
    assert text.splitlines()[-1].strip() == (
        "repeat: goldengate equiv hc_pre --tiles other --preset tiny --deployment decode --case default --seed 0 "
        "--schedule 0"
    )


@pytest.mark.parametrize(("steps", "bound", "status"), [(1, 1, "pass"), (2, 1, "fail"), (2, 2, "pass")])
def test_a_bound_in_ulp_is_inclusive(steps, bound, status):
    def change(result, inputs):
        result.outputs["post"].view(torch.int32)[3, 2] += steps

    found = compared(change, ulp=[f"post={bound}"])
    assert found.outputs["post"].status == status
    assert f"--ulp post={bound}" in found.command


def test_a_bound_holds_for_its_output_only():
    def change(result, inputs):
        result.outputs["comb"].view(torch.int32)[0, 0] += 1

    assert compared(change, ulp=["post=1"]).outputs["comb"].status == "fail"


def test_rejects_a_sign_of_zero_but_accepts_nan_on_both_sides():
    device = GoldenDevice(lambda result, inputs: result.outputs["post"].fill_(float("nan")))
    (both,) = equiv.compare_all(device, [RUN], SIDES, ())
    assert both.status == "pass"

    signs = [0.0, -0.0]
    device = GoldenDevice(lambda result, inputs: result.outputs["post"].fill_(signs.pop()))
    (zeros,) = equiv.compare_all(device, [RUN], SIDES, ())
    assert zeros.outputs["post"].status == "fail"


def test_rejects_nan_on_one_side():
    def change(result, inputs):
        result.outputs["post"][1, 1] = float("nan")

    assert compared(change).outputs["post"].status == "fail"


@pytest.mark.parametrize("both", [False, True])
def test_rejects_elements_that_are_not_written_by_one_or_by_both(both):
    def unwritten(result, inputs):
        result.undefined["post"] = torch.zeros_like(result.outputs["post"], dtype=torch.bool)
        result.undefined["post"][2, 1] = True

    if both:
        (found,) = equiv.compare_all(GoldenDevice(unwritten), [RUN], SIDES, ())
    else:
        found = compared(unwritten)
    assert found.outputs["post"].status == "fail"
    assert f"never written by {'A and B' if both else 'B'}" in found.outputs["post"].reason


def test_elements_that_the_contract_leaves_undefined_are_not_compared():
    run = Run("gate", case="tokens_1", deployment="prefill")

    def change(result, inputs):
        result.outputs["x_norm"][100] = 7.0

    assert compared(change, run).status == "pass"


def test_nothing_defined_is_unverified_and_not_a_pass(capsys):
    argv = ["equiv", "expert_routed", *TILES, "--case", "empty"]
    assert main(argv) == 3
    assert "unverified" in capsys.readouterr().out


def test_rejects_a_fault_and_a_changed_input():
    def fault(result, inputs):
        raise KernelFault("k.py", 7, "out of bounds")

    assert compared(fault).problems == ("B (shipped, tiles other): kernel fault: k.py:7: out of bounds",)

    def change(result, inputs):
        inputs["hc_base"] += 1

    found = compared(change)
    assert found.status == "fail"
    assert found.problems == ("B (shipped, tiles other) changed input hc_base",)


@pytest.mark.parametrize(
    ("kernels", "tiles", "expected"),
    [
        ([], ["x", "y"], (equiv.Side(tiles="x"), equiv.Side(tiles="y"))),
        (["k"], ["x", "y"], (equiv.Side("k", None, "x"), equiv.Side("k", None, "y"))),
        (["k", "l"], [], (equiv.Side("k"), equiv.Side("l"))),
        (["k", "l"], ["x"], (equiv.Side("k", None, "x"), equiv.Side("l", None, "x"))),
        (["k", "l"], ["x", "y"], (equiv.Side("k", None, "x"), equiv.Side("l", None, "y"))),
        (["k"], [], (equiv.Side(), equiv.Side("k"))),
        (["k"], ["x"], (equiv.Side(tiles="x"), equiv.Side("k", None, "x"))),
    ],
)
def test_the_two_sides_that_a_command_line_names(kernels, tiles, expected):
    sides = equiv.sides_of(kernels, tiles, lambda text: (text, None))
    assert sides == expected
    # The command that a failure prints names the same sides.
    words = equiv.Comparison(RUN, sides, {}, {}).command.split()
    again = [[w for flag, w in pairwise(words) if flag == name] for name in ("--kernel", "--tiles")]
    assert equiv.sides_of(*again, lambda text: (text, None)) == sides


@pytest.mark.parametrize(
    ("kernels", "tiles"), [([], []), ([], ["x"]), (["k", "l", "m"], []), (["k"], ["x", "y", "z"]), ([], ["x", "x"])]
)
def test_rejects_what_does_not_name_two_kernels(kernels, tiles):
    with pytest.raises(UsageError):
        equiv.sides_of(kernels, tiles, lambda text: (text, None))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["gat", *TILES], "unknown op 'gat'; did you mean gate?"),
        (["gate"], "equiv compares two kernels, got 0 --kernel and 0 --tiles"),
        (["gate", "--tiles", "pr672"], "got 0 --kernel and 1 --tiles"),
        (["gate", "--tiles", "pr672", "--tiles", "pr672"], "both sides are the same kernel"),
        (["gate", "--tiles", "pr672", "--tiles", "pr1"], "unknown tile set 'pr1'"),
        (["gate", *TILES, "--ulp", "wights=1"], "unknown output of gate 'wights'; did you mean weights?"),
        (["gate", *TILES, "--ulp", "weights"], "'weights' is no bound, like x_norm=1"),
        (["gate", *TILES, "--ulp", "weights=-1"], "'weights=-1' is no bound"),
        (["gate", "--kernel", "/none.py"], "kernel file /none.py does not exist"),
        (["gate", *TILES, "--case", "hash_bad_token"], "case hash_bad_token of gate is out of contract"),
    ],
)
def test_rejects_bad_input_in_one_line(capsys, argv, message):
    assert main(["equiv", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_the_command_accepts_two_tilings_and_rejects_a_planted_difference(capsys, tmp_path):
    assert main(["equiv", "hc_post", *TILES, "--case", "default", "--seed", "0..1"]) == 0
    out = capsys.readouterr().out
    assert "2 comparisons" in out
    assert "0 failed" in out

    kernel = planted(tmp_path, "hc_post", 'pl.BF16, mode="rint"', 'pl.BF16, mode="trunc"')
    assert main(["equiv", "hc_post", "--kernel", kernel, "--case", "default"]) == 1
    out = capsys.readouterr().out
    assert "FAIL hc_post tiny/decode default seed 0 schedule 0: y: " in out
    assert "worst [" in out
    assert f"repeat: goldengate equiv hc_post --kernel {kernel} --preset tiny" in out
    # One step apart is within a bound of one step.
    assert main(["equiv", "hc_post", "--kernel", kernel, "--case", "default", "--ulp", "y=1"]) == 0


def test_two_files_of_one_kernel_agree_under_a_schedule(tmp_path):
    copy = planted(tmp_path, "rms_norm", "stage=2", "stage=4")
    sides = equiv.sides_of([str(KERNELS / "rms_norm.py"), copy], [], kernel_file)
    (found,) = equiv.compare_all(get_device("emulator"), [Run("rms_norm", schedule=5)], sides, ())
    assert found.status == "pass", equiv.failure_text(found)
    assert load_op("rms_norm").outputs[0].name in found.outputs
