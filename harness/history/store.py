"""Where recorded results lie: Parquet files below a directory or an fsspec URL, each written once and whole.

    ROOT/results/2026-11-21/<session>-000017.parquet

A writer never changes a file of another, so any number may record at once, and a file appears under its name only
when all of it is there, so a kill loses what was not written yet and nothing else.
"""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from harness.errors import UsageError
from harness.history.records import SCHEMA

FOLDER = "results"


class Store:
    """A root of recorded results. `location`: a directory or a URL that fsspec knows, like s3://bucket/prefix.

    Raises UsageError for a URL whose file system there is not, and for a root that is a file.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        try:
            self.fs, path = fsspec.core.url_to_fs(location)
        except (ImportError, ValueError) as error:
            raise UsageError(f"cannot record to {location}: {error}") from error
        self.root = str(path).rstrip("/")
        self.local = "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))
        if self.local and Path(self.root).is_file():
            raise UsageError(f"cannot record to {location}: it is a file")

    def write(self, name: str, rows: Sequence[dict[str, Any]]) -> str:
        """Write `rows` as a new file `name` (with "/" for folders, without suffix); its path. Raises UsageError."""
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), buffer, compression="zstd")
        path = f"{self.root}/{FOLDER}/{name}.parquet"
        try:
            if self.local:
                _write_whole(Path(path), buffer.getvalue())
            else:
                self.fs.pipe_file(path, buffer.getvalue())  # object stores show an object when it is complete
        except OSError as error:
            raise UsageError(f"cannot record to {self.location}: {error.strerror or error}") from error
        return path

    def files(self) -> list[str]:
        """Paths of all result files, sorted. Raises UsageError when the root does not exist."""
        try:
            if not self.fs.exists(self.root):
                raise UsageError(f"no recorded results: {self.location} does not exist")
            return sorted(p for p in self.fs.find(f"{self.root}/{FOLDER}") if p.endswith(".parquet"))
        except OSError as error:
            raise UsageError(f"cannot read {self.location}: {error.strerror or error}") from error

    def remove(self, paths: Sequence[str]) -> None:
        """Remove files whose rows are in another file already."""
        for path in paths:
            self.fs.rm_file(path)


def _write_whole(path: Path, content: bytes) -> None:
    """Write under a temporary name, to the disk, and rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
