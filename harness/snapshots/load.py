"""Reading a snapshot: refused with the reason unless it is whole, unchanged, and its golden and spec are today's.

A directory of the reference's layout without manifest is taken too, after every shape and dtype was compared with the
specification (contracts/reference_harness.md 18.4, R27): nothing can tell how old it is, and a note says so.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.errors import UsageError
from harness.judging import Prepared
from harness.run import Run
from harness.snapshots.layouts import REFERENCE, read_group
from harness.snapshots.manifest import Manifest, check_files, read_manifest, scalars_of, stale_reason
from harness.verify import Timing, checksums, nan_notes
from harness.versions import versions
from specs.registry import load_op
from specs.tensors import TensorSpec

if TYPE_CHECKING:
    from specs.registry import Op


def run_of(directory: Path) -> Run | None:
    """The run whose inputs and golden a snapshot holds, None without manifest. Raises UsageError."""
    manifest = read_manifest(directory)
    if manifest is None:
        return None
    described = manifest["run"]
    overrides = tuple((str(name), value) for name, value in described["overrides"])
    return Run(**{**described, "overrides": overrides}, snapshot=str(directory))


def prepared_from(run: Run) -> tuple[Prepared, Timing]:
    """Inputs and golden of `run.snapshot`, for `run` to be judged with; the time it took counts as that of the inputs.

    Raises UsageError for a snapshot that is stale, cut off, edited or of another run, and SpecError for values that do
    not fit the signature.
    """
    assert run.snapshot is not None
    start = time.perf_counter()
    directory = Path(run.snapshot)
    op = load_op(run.op, run.preset, run.deployment, **dict(run.overrides))
    manifest = read_manifest(directory)
    if manifest is None:
        inputs, golden, stages, notes = _without_manifest(directory, run, op)
    else:
        inputs, golden, stages, notes = _with_manifest(directory, manifest, run, op)
    op.check_inputs(inputs)
    _check_outputs(directory, op, golden)
    notes = (*notes, *nan_notes(inputs))
    prepared = Prepared(op, inputs, checksums(inputs), golden, stages, op.valid(inputs), op.mapped(inputs), notes)
    return prepared, Timing(inputs=time.perf_counter() - start)


_Read = tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor], tuple[str, ...]]


def _with_manifest(directory: Path, manifest: Manifest, run: Run, op: Op) -> _Read:
    held = run_of(directory)
    assert held is not None
    if _situation(held) != _situation(run):
        raise UsageError(f"snapshot {directory} holds {held.inputs_id}, not {run.inputs_id}")
    check_files(directory, manifest)
    stale = stale_reason(manifest)
    if stale and not run.allow_stale:
        again = f"goldengate golden {run.op} {' '.join(run.situation_words)} --save DIR"
        raise UsageError(f"snapshot {directory} is stale: {stale}; save it again with `{again}`, or --allow-stale")
    layout = manifest["layout"]
    inputs = _inputs(op, read_group(directory, layout, "in", _tensor_names(op)), manifest["scalars"])
    golden = read_group(directory, layout, "out", [spec.name for spec in op.outputs])
    stages = read_group(directory, layout, "stages", manifest["stages"])
    notes = [f"snapshot {directory} is stale and was taken nevertheless: {stale}"] if stale else []
    then, now = manifest["versions"], versions()
    notes += [
        f"snapshot {directory} was written with {name} {then.get(name)}, this is {now[name]}"
        for name in now if then.get(name) != now[name]
    ]  # fmt: skip
    return inputs, golden, stages, tuple(notes)


def _without_manifest(directory: Path, run: Run, op: Op) -> _Read:
    """A snapshot of the reference. It has no stages, so that our golden is asked for them, and compared by the way."""
    names = [spec.name for spec in op.outputs]
    scalars = scalars_of(op)
    wanted = [f"in/{name}.pt" for name in (*_tensor_names(op), *(spec.name for spec in scalars))]
    missing = [name for name in (*wanted, *(f"out/{name}.pt" for name in names)) if not (directory / name).is_file()]
    if missing:
        raise UsageError(f"snapshot {directory} has no manifest and lacks {', '.join(missing)} of {op.name}")
    values = {}
    for spec in scalars:
        (held,) = read_group(directory, REFERENCE, "in", [spec.name]).values()
        if held.dim() != 0 or held.dtype != spec.dtype:
            raise UsageError(
                f"{directory}/in/{spec.name}.pt is {_type(held)}, expected a 0-dim tensor of {_dtype(spec.dtype)}"
            )
        values[spec.name] = held.item()
    inputs = _inputs(op, read_group(directory, REFERENCE, "in", _tensor_names(op)), values)
    golden = read_group(directory, REFERENCE, "out", names)
    op.check_inputs(inputs)
    _check_outputs(directory, op, golden)
    stages: dict[str, Tensor] = {}
    ours = op.golden(inputs, stages)
    valid = op.valid(inputs)
    notes = [f"snapshot {directory} has no manifest: nothing tells what made it, or that it is whole"]
    notes += [
        f"snapshot {directory}: out/{name}.pt differs from the golden of {op.name} in {count:,} elements"
        for name in names if (count := _differing(golden[name], ours[name], valid.get(name)))
    ]  # fmt: skip
    return inputs, golden, stages, tuple(notes)


def _tensor_names(op: Op) -> list[str]:
    return [spec.name for spec in op.inputs_spec if isinstance(spec, TensorSpec)]


def _inputs(op: Op, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors and scalars in the order of the signature."""
    values = {**tensors, **scalars}
    return {spec.name: values[spec.name] for spec in op.inputs_spec}


def _check_outputs(directory: Path, op: Op, golden: Mapping[str, Tensor]) -> None:
    for spec in op.outputs:
        held = golden[spec.name]
        if held.dtype != spec.dtype or tuple(held.shape) != tuple(spec.shape):
            wanted = f"{_dtype(spec.dtype)} {list(spec.shape)}"
            raise UsageError(f"snapshot {directory}: output {spec.name} is {_type(held)}, {op.name} has {wanted}")


def _type(tensor: Tensor) -> str:
    return f"{_dtype(tensor.dtype)} {list(tensor.shape)}"


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _differing(held: Tensor, ours: Tensor, valid: Tensor | None) -> int:
    unequal = held != ours
    if held.is_floating_point():
        unequal &= ~(held.isnan() & ours.isnan())
    return int((unequal if valid is None else unequal & valid).sum())


def _situation(run: Run) -> tuple[object, ...]:
    """What draws the inputs of a run, wherever it takes them from."""
    return replace(run, snapshot=None).inputs_key


def find(directory: Path, runs: Sequence[Run]) -> dict[Run, str]:
    """Of each run the snapshot in `directory`, or one level below, that holds its inputs; a run without is left out.

    Raises UsageError for what is no directory and for a damaged snapshot.
    """
    if not directory.is_dir():
        raise UsageError(f"snapshot {directory}: there is no such directory")
    below = sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))
    held: dict[tuple[object, ...], str] = {}
    for path in (directory, *below):
        run = run_of(path)
        if run is not None:
            held[_situation(run)] = str(path)
    found = {run: held[_situation(run)] for run in runs if _situation(run) in held}
    if not held and len({_situation(run) for run in runs}) == 1 and (directory / "in").is_dir():
        return dict.fromkeys(runs, str(directory))
    return found
