"""`manifest.json`: what a snapshot holds, hashes of its files and of the sources that made it, and their check.

The manifest is written last and carries a hash of itself, so that a snapshot without one was never finished, and any
byte that changed since is noticed. Nothing here defends against somebody who makes up new hashes as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UsageError
from harness.gate.fingerprint import closure
from harness.gate.trees import WorkTree
from harness.run import Run
from harness.versions import versions
from specs.registry import ROOT
from specs.tensors import ScalarSpec, TensorSpec

if TYPE_CHECKING:
    from specs.registry import Op

FORMAT = 2
NAME = "manifest.json"
PARTIAL = ".partial"
"""What the name of a directory ends in while it is written; a kill leaves it behind, and it is no snapshot."""

Manifest = dict[str, Any]
_SEAL = "manifest_sha256"
_NEEDED = {"format", "layout", "run", "scalars", "stages", "tensors", "files", "sources", "versions", _SEAL}
_NAMED = 3
_BLOCK = 1 << 20


def write_manifest(
    directory: Path, layout: str, run: Run, op: Op, scalars: Mapping[str, Any], stages: Sequence[str],
    files: Sequence[str],
) -> None:  # fmt: skip
    """Describe the files that lie in `directory` already. Raises OSError."""
    chosen = op.case(run.case).overrides
    manifest: Manifest = {
        "format": FORMAT,
        "layout": layout,
        "run": {name: value for name, value in run.as_dict().items() if name in _RUN},
        "config": {"model": asdict(op.config), "deployment": asdict(op.deployment)},
        "scalars": dict(scalars),
        "stages": list(stages),
        "tensors": {
            spec.name: {"shape": list(spec.shape), "dtype": str(spec.dtype).removeprefix("torch."),
                        "role": spec.role, "distribution": repr(chosen.get(spec.name, spec.init))}
            for spec in op.signature if isinstance(spec, TensorSpec)
        },
        "files": {name: _content(directory / name) for name in files},
        "sources": sources(run.op, ROOT),
        "versions": versions(),
    }  # fmt: skip
    manifest[_SEAL] = _sealed(manifest)
    (directory / NAME).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


_RUN = ("op", "preset", "deployment", "overrides", "case", "seed")


def sources(op: str, root: Path) -> dict[str, dict[str, str]]:
    """Hashes of the files behind the golden and behind the spec: their own and all that these import."""
    tree = WorkTree(root)
    groups = {"golden": [f"goldens/{op}.py"], "spec": [f"specs/ops/{op}.py", "specs/registry.py"]}
    return {
        name: {path: hashlib.sha256(tree.read(path) or b"").hexdigest() for path in closure(tree, paths)}
        for name, paths in groups.items()
    }


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest of a snapshot, None where the directory has none.

    Raises UsageError for what is no directory, for the rest of a save that was cut off, and for a manifest that was
    edited, cut off, or is of another format.
    """
    if not directory.is_dir():
        raise UsageError(f"snapshot {directory}: there is no such directory")
    if directory.resolve().name.endswith(PARTIAL):
        raise UsageError(f"snapshot {directory}: it was never finished; save it again")
    path = directory / NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    try:
        manifest = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{path} is no JSON: it was edited or cut off; save the snapshot again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        has = manifest.get("format") if isinstance(manifest, dict) else None
        raise UsageError(f"{path} is of format {has!r}, this goldengate reads {FORMAT}; save the snapshot again")
    if not manifest.keys() >= _NEEDED or manifest[_SEAL] != _sealed(manifest):
        raise UsageError(f"{path} was edited since it was written; save the snapshot again")
    return manifest


def check_files(directory: Path, manifest: Manifest) -> None:
    """Raise UsageError for a file of the snapshot that is missing, cut off or changed."""
    for name, wanted in manifest["files"].items():
        path = directory / name
        try:
            found = _content(path)
        except OSError as error:
            raise UsageError(f"snapshot {directory}: {name} is missing or cannot be read: {error.strerror}") from error
        if found["bytes"] < wanted["bytes"]:
            raise UsageError(f"snapshot {directory}: {name} is cut off at {found['bytes']} of {wanted['bytes']} bytes")
        if found != wanted:
            raise UsageError(f"snapshot {directory}: {name} was changed since it was written")


def stale_reason(manifest: Manifest, root: Path = ROOT) -> str:
    """Which source files changed since the snapshot was written, by kind; "" when none did."""
    now = sources(manifest["run"]["op"], root)
    parts = []
    for kind, then in manifest["sources"].items():
        changed = [path for path in then if now[kind].get(path) != then[path]]
        if changed:
            more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
            parts.append(f"the {kind} changed ({', '.join(changed[:_NAMED])}{more})")
    return "; ".join(parts)


def scalars_of(op: Op) -> list[ScalarSpec]:
    """The scalar parameters of an op."""
    return [spec for spec in op.inputs_spec if isinstance(spec, ScalarSpec)]


def _sealed(manifest: Manifest) -> str:
    rest = {key: value for key, value in manifest.items() if key != _SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode("ascii")).hexdigest()


def _content(path: Path) -> dict[str, int | str]:
    digest = hashlib.sha256()
    size = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}
