"""Source files as they are on disk and as they were at a revision, behind one interface."""

from __future__ import annotations

import io
import subprocess
import tarfile
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from harness.errors import UsageError


class Tree(Protocol):
    """Files by their path relative to the root, with "/"."""

    def read(self, path: str) -> bytes | None:
        """The content of a file, None where there is none."""
        ...

    def list(self, folder: str, suffix: str) -> list[str]:
        """Paths of the files below `folder` that end in `suffix`, sorted."""
        ...


class WorkTree:
    """The files on disk below `root`, each as it was when it was first read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files: dict[str, bytes | None] = {}

    def read(self, path: str) -> bytes | None:
        if path not in self._files:
            try:
                self._files[path] = (self.root / path).read_bytes()
            except OSError:
                self._files[path] = None
        return self._files[path]

    def list(self, folder: str, suffix: str) -> list[str]:
        found = (self.root / folder).rglob(f"*{suffix}")
        return sorted(path.relative_to(self.root).as_posix() for path in found)


class RevisionTree:
    """The files of a git revision. Raises UsageError when `revision` is none of the repository at `root`."""

    def __init__(self, root: Path, revision: str) -> None:
        self.root, self.revision = root, revision
        packed = git(root, "archive", "--format=tar", f"{revision}^{{commit}}", "--", ".")
        self._files: dict[str, bytes] = {}
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            for member in archive.getmembers():
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None:
                    self._files[member.name] = content.read()

    def read(self, path: str) -> bytes | None:
        return self._files.get(path)

    def list(self, folder: str, suffix: str) -> list[str]:
        return sorted(path for path in self._files if path.startswith(f"{folder}/") and path.endswith(suffix))


def git(root: Path, *words: str) -> bytes:
    """The output of a git command. Raises UsageError with what git said."""
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, check=False)
    except OSError as error:
        raise UsageError(f"git cannot be run: {error.strerror}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise UsageError(f"git {words[0]} in {root}: {said[0] if said else f'exit code {done.returncode}'}")
    return done.stdout


@lru_cache(maxsize=8)
def revision_tree(root: Path, revision: str) -> RevisionTree:
    return RevisionTree(root, revision)
