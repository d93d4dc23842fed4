"""Snapshots keep every bit, replay to the same verdict, and are refused with the reason when anything changed.

P1 and P11 of contracts/reference_harness.md 19, R27 to R31 of 18.4.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from saved_snapshots import RUN, bits, of, save_both
from torch import Tensor

from harness.cli import main
from harness.devices.emulator.device import EmulatorDevice
from harness.errors import UsageError
from harness.run import Run
from harness.snapshots.layouts import LAYOUTS, read_group, write_group
from harness.snapshots.load import prepared_from, run_of
from harness.snapshots.manifest import check_files, read_manifest, sources, stale_reason
from harness.snapshots.save import save_snapshot
from harness.tolerances import load_tolerances
from harness.verify import Session, Verdict, prepare
from specs.registry import ROOT, load_op
from specs.tensors import TENSOR_DTYPES, ScalarSpec


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A snapshot of rms_norm in each layout. Tests work on copies."""
    return save_both(tmp_path_factory.mktemp("snapshots"))


@pytest.fixture(params=LAYOUTS)
def snapshot(request: pytest.FixtureRequest, saved: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(saved[request.param], tmp_path / RUN.id)


# -- every bit (P1) ------------------------------------------------------------------------------


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Any bit pattern of any dtype, 0-dim and empty ones and views among them."""
    dtype = draw(st.sampled_from(TENSOR_DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    size = torch.empty(shape, dtype=dtype).nbytes
    content = draw(st.binary(min_size=size, max_size=size))
    if dtype == torch.bool:
        content = bytes(byte & 1 for byte in content)
    flat = torch.frombuffer(bytearray(content), dtype=dtype) if size else torch.empty(0, dtype=dtype)
    tensor = flat.reshape(shape)
    return tensor.mT if tensor.dim() >= 2 and draw(st.booleans()) else tensor


def comes_back(folder: Path, layout: str, held: dict[str, Tensor]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    write_group(folder, layout, "in", held)
    back = read_group(folder, layout, "in", held)
    for name, tensor in held.items():
        assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape)
        assert bits(back[name]) == bits(tensor)


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=60, deadline=None)
@given(held=st.dictionaries(st.sampled_from("abc"), tensors(), min_size=1))
def test_any_tensor_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, layout: str, held: dict[str, Tensor]
) -> None:
    comes_back(tmp_path_factory.getbasetemp() / f"bits-{layout}", layout, held)


SPECIAL = {
    torch.float32: (torch.int32, [0x7FC00001, -0x003FFFFF, 0x7F800001, -(2**31), 1, 0x007FFFFF, 0x7F800000]),
    torch.bfloat16: (torch.int16, [0x7FC1, -63, 0x7F81, -(2**15), 1, 0x007F, 0x7F80]),
    torch.float16: (torch.int16, [0x7E01, -511, 0x7C01, -(2**15), 1, 0x03FF, 0x7C00]),
}
"""Quiet and signalling NaN with payloads of both signs, -0, subnormals, infinity."""


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TENSOR_DTYPES, ids=str)
def test_every_dtype_comes_back_with_its_special_values(tmp_path: Path, layout: str, dtype: torch.dtype) -> None:
    as_int, patterns = SPECIAL.get(dtype, (dtype, [0, 1, 1, 0]))
    special = torch.tensor(patterns, dtype=as_int).view(dtype)
    held = {"special": special, "scalar": special[0].clone(), "empty": torch.empty(0, 3, dtype=dtype)}
    comes_back(tmp_path / "s", layout, held)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_view_is_stored_without_the_rest_of_its_storage(tmp_path: Path, layout: str) -> None:
    view = torch.zeros(1 << 20)[7:9]
    (name,) = write_group(tmp_path, layout, "in", {"a": view})
    assert (tmp_path / name).stat().st_size < 4096
    both = torch.arange(6.0)
    comes_back(tmp_path / "s", layout, {"a": both, "b": both[2:4], "c": both.reshape(2, 3).T})


# -- the same verdict (P11) ----------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "run", [Run("gate"), Run("gate", case="hash"), Run("qkv_proj_rope", seed=3), Run("rms_norm", "demo")],
    ids=lambda run: run.id,
)  # fmt: skip
@pytest.mark.parametrize("worse", [False, True], ids=["pass", "fail"])
def test_a_replay_has_the_verdict_and_figures_of_the_run(tmp_path: Path, layout: str, run: Run, worse: bool) -> None:
    """With tolerances, taps and conditioned stages; the failure is one element of each output, moved."""
    session = Session(Perturbing(worse), load_tolerances())
    prepared, _ = prepare(run)
    path = save_snapshot(tmp_path, run, prepared, layout)
    for schedule in (0, 3):
        fresh = session.verify(dataclasses.replace(run, schedule=schedule))
        replayed = session.verify(of(path, run, schedule=schedule))
        assert fresh.status == ("fail" if worse else "pass")
        assert judged(replayed) == judged(fresh)


class Perturbing(EmulatorDevice):
    """The emulator; moves the first element of each output on request."""

    def __init__(self, worse: bool) -> None:
        super().__init__()
        self.worse = worse

    def run(self, kernel, op, inputs, schedule):  # type: ignore[no-untyped-def]
        result = super().run(kernel, op, inputs, schedule)
        for name, tensor in result.outputs.items() if self.worse else ():
            changed = tensor.clone()
            changed.view(-1)[0] = changed.view(-1)[0] + 3
            result.outputs[name] = changed
        return result


def judged(verdict: Verdict) -> object:
    return verdict.status, verdict.outputs, verdict.stages, verdict.problems, verdict.diverged


def test_scalars_keep_their_type_and_value(tmp_path: Path) -> None:
    run = Run("gate", case="tokens_7")
    prepared, _ = prepare(run)
    for layout in LAYOUTS:
        back, _ = prepared_from(of(save_snapshot(tmp_path / layout, run, prepared, layout), run))
        for spec in back.op.inputs_spec:
            if isinstance(spec, ScalarSpec):
                assert back.inputs[spec.name] == prepared.inputs[spec.name]
                assert type(back.inputs[spec.name]) is type(prepared.inputs[spec.name])
        assert list(back.inputs) == list(prepared.inputs)


# -- refused with the reason ---------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


@pytest.mark.parametrize(
    ("damage", "said"),
    [(flip, "was changed since it was"), (cut, "is cut off at"), (grow, "was changed"), (Path.unlink, "is missing")],
    ids=["flipped", "cut", "grown", "removed"],
)
def test_any_file_that_changed_is_refused_by_name(snapshot: Path, damage: Callable[[Path], None], said: str) -> None:
    manifest = read_manifest(snapshot)
    assert manifest is not None
    assert len(manifest["files"]) >= 3
    for name in manifest["files"]:
        whole = (snapshot / name).read_bytes()
        damage(snapshot / name)
        with pytest.raises(UsageError, match=f"{name} {said}"):
            prepared_from(of(snapshot))
        (snapshot / name).write_bytes(whole)
    check_files(snapshot, manifest)


def test_any_byte_of_the_manifest_counts(snapshot: Path) -> None:
    path = snapshot / "manifest.json"
    whole = path.read_bytes()
    chance = random.Random(7)
    digits = [i for i, byte in enumerate(whole) if chr(byte) in "0123456789abcdef"]
    for at in chance.sample(digits, 40):
        changed = bytearray(whole)
        changed[at] = ord("7") if whole[at] != ord("7") else ord("6")
        path.write_bytes(changed)
        with pytest.raises(UsageError, match=r"was edited|no JSON|is of format"):
            run_of(snapshot)
    path.write_bytes(whole[:-9])
    with pytest.raises(UsageError, match="edited or cut off"):
        run_of(snapshot)
    path.write_text('{"format": 1}')
    with pytest.raises(UsageError, match="is of format 1, this goldengate reads 2"):
        run_of(snapshot)


def resealed(path: Path, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
    """Change a manifest as an older save would have written it, its own hash right again."""
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["manifest_sha256"]
    change(manifest)
    seal = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps({**manifest, "manifest_sha256": seal}))


@pytest.mark.parametrize(
    ("kind", "file"),
    [("golden", "goldens/rms_norm.py"), ("golden", "goldens/checks.py"), ("spec", "specs/ops/rms_norm.py"),
     ("spec", "specs/model.py")],
)  # fmt: skip
def test_a_stale_snapshot_is_refused_naming_the_file(
    snapshot: Path, kind: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert file in sources("rms_norm", ROOT)[kind]
    resealed(snapshot, lambda manifest: manifest["sources"][kind].update({file: "0" * 64}))
    assert main(["replay", str(snapshot)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"the {kind} changed ({file})" in line
    assert "goldengate golden rms_norm --preset tiny" in line
    assert main(["replay", str(snapshot), "--allow-stale"]) == 0
    assert "is stale and was taken nevertheless" in capsys.readouterr().out


def test_what_the_golden_imports_counts(saved: dict[str, Path], tmp_path: Path) -> None:
    for package in ("goldens", "specs"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    manifest = read_manifest(saved["safetensors"])
    assert manifest is not None
    assert stale_reason(manifest, tmp_path) == ""
    with open(tmp_path / "goldens" / "checks.py", "a") as file:
        file.write("# changed\n")
    assert "the golden changed (goldens/checks.py)" in stale_reason(manifest, tmp_path)
    (tmp_path / "specs" / "paging.py").unlink()
    assert "specs/paging.py" in stale_reason(manifest, tmp_path)


def test_another_version_is_noted(snapshot: Path) -> None:
    resealed(snapshot, lambda manifest: manifest["versions"].update(torch="1.0"))
    prepared, _ = prepared_from(of(snapshot))
    assert any("was written with torch 1.0" in note for note in prepared.notes)


def test_a_snapshot_of_another_run_is_refused(snapshot: Path) -> None:
    for other in (Run("rms_norm", seed=1), Run("rms_norm", case="large"), Run("rms_norm", "demo")):
        with pytest.raises(UsageError, match="holds rms_norm-tiny-decode-default-seed0, not"):
            prepared_from(of(snapshot, other))


# -- writing -------------------------------------------------------------------------------------


def test_saving_again_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    prepared, _ = prepare(RUN)
    for layout in (*LAYOUTS, *LAYOUTS):
        path = save_snapshot(tmp_path, RUN, prepared, layout)
        assert os.listdir(tmp_path) == [RUN.id]
        prepared_from(of(path))


def test_what_was_never_finished_is_refused(snapshot: Path, tmp_path: Path) -> None:
    rest = shutil.copytree(snapshot, tmp_path / f".{RUN.id}-x.partial")
    with pytest.raises(UsageError, match="it was never finished"):
        run_of(rest)


def test_a_golden_that_refuses_leaves_no_snapshot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = next(case.name for case in load_op("gate").cases if case.invalid)
    assert main(["golden", "gate", "--case", case, "--save", str(tmp_path)]) == 2
    assert os.listdir(tmp_path) == []


SAVING = """
import sys
from pathlib import Path
from harness.run import Run
from harness.snapshots.save import save_snapshot
from harness.verify import prepare

run = Run("rms_norm", "demo")
prepared, _ = prepare(run)
while True:
    save_snapshot(Path(sys.argv[1]), run, prepared, sys.argv[2])
    print(flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_kill_while_saving_leaves_a_whole_snapshot_or_none(tmp_path: Path, layout: str) -> None:
    chance = random.Random(3)
    unfinished = 0
    for _ in range(5):
        command = [sys.executable, "-c", SAVING, str(tmp_path), layout]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(chance.uniform(0.0, 0.1))
            process.send_signal(signal.SIGKILL)
        for path in tmp_path.iterdir():
            if path.name.startswith("."):
                unfinished += 1
                with pytest.raises(UsageError, match="it was never finished"):
                    run_of(path)
            else:
                prepared_from(of(path, Run("rms_norm", "demo")))
    assert unfinished


# -- the command ---------------------------------------------------------------------------------


def test_verify_judges_what_a_folder_of_snapshots_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["golden", "rms_norm", "--case", "default,large", "--save", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main(["verify", "rms_norm", "--snapshot", str(tmp_path), "--schedule", "0,1"]) == 0
    said = capsys.readouterr().out
    assert "4 runs" in said
    assert "rms_norm-tiny-decode-zero_rows-seed0: no snapshot in" in said
    assert main(["verify", "rms_norm", "--snapshot", str(tmp_path), "--case", "large,tiny"]) == 2
    assert "holds no snapshot of rms_norm-tiny-decode-tiny-seed0" in capsys.readouterr().err
    assert main(["verify", "gate", "--snapshot", str(tmp_path)]) == 2
    assert "holds no snapshot of gate" in capsys.readouterr().err


def test_a_failed_replay_says_how_to_repeat_it(snapshot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The golden of the snapshot is what counts: here another one, as if it were of a kernel that differs."""
    prepared, _ = prepare(RUN)
    worse = dataclasses.replace(prepared, golden={name: t + 1 for name, t in prepared.golden.items()})
    path = save_snapshot(snapshot.parent / "worse", RUN, worse)
    assert main(["replay", str(path), "--schedule", "2"]) == 1
    (repeat,) = [line for line in capsys.readouterr().out.splitlines() if "repeat:" in line]
    assert repeat.endswith(f"--schedule 2 --snapshot {path}")
    assert main(repeat.split()[2:]) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["/nowhere/at/all"], "snapshot /nowhere/at/all: there is no such directory"),
        (["SNAPSHOT", "--op", "rms_norm"], "has a manifest, which says what --op would"),
        (["SNAPSHOT", "--schedule", "x"], "no list of numbers"),
        (["SNAPSHOT", "--kernel", "none.py"], "none.py does not exist"),
        (["FOLDER"], "has no manifest: if it has the reference's layout, say its op by --op"),
        (["FOLDER", "--op", "rms_norn"], "unknown op 'rms_norn'"),
    ],
)
def test_a_mistake_is_one_line(
    saved: dict[str, Path], capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    path = saved["safetensors"]
    given = [{"SNAPSHOT": str(path), "FOLDER": str(path.parent)}.get(word, word) for word in words]
    assert main(["replay", *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
