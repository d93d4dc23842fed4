"""An append-only journal of results, one JSON object per line, that survives being killed at any moment.

Every line is written with one system call and synced before the next piece of work begins, so SIGKILL or a power cut
loses at most the result in flight. A last line without its line feed is what such a moment leaves; it is dropped when
the journal is opened again. Any other line that is no JSON object is damage, and refused.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from harness.errors import UsageError

Record = dict[str, Any]


class Journal:
    """The records of a file and those that are appended to it. One process at a time may have it open.

    `kind` stands in the first line, so that the journal of one command is not taken for that of another. Raises
    UsageError for a file of another kind, a damaged one, one in use, and one that cannot be written.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error
        try:
            self._lock()
            self.records = self._read(kind)
            if not self.records and os.fstat(self._file).st_size == 0:
                self._write({"journal": kind})
        except BaseException:
            os.close(self._file)
            raise

    def append(self, record: Record) -> None:
        """Keep a record: on disk when this returns. Raises UsageError when it cannot."""
        self._write(record)
        self.records.append(record)

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"journal {self.path} is in use by another process") from error

    def _read(self, kind: str) -> list[Record]:
        data = self.path.read_bytes()
        whole = _whole_lines(data)
        if len(whole) < len(data):
            os.ftruncate(self._file, len(whole))
        return _parsed(whole, self.path, kind)

    def _write(self, record: Record) -> None:
        line = json.dumps(record, allow_nan=False).encode("ascii") + b"\n"
        try:
            if os.write(self._file, line) != len(line):
                raise UsageError(f"cannot write {self.path}: the disk is full")
            os.fsync(self._file)
        except OSError as error:
            raise UsageError(f"cannot write {self.path}: {error.strerror}") from error


def read_journal(path: Path, kind: str) -> list[Record]:
    """The records of a journal, which may be in use and is left as it is. Raises UsageError like `Journal`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if b"\n" not in data:
        raise UsageError(f"{path}: no journal of goldengate {kind}")
    return _parsed(_whole_lines(data), path, kind)


def _whole_lines(data: bytes) -> bytes:
    return data[: data.rfind(b"\n") + 1]


def _parsed(lines: bytes, path: Path, kind: str) -> list[Record]:
    records: list[Record] = []
    for number, line in enumerate(lines.splitlines(), 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{path}:{number}: no JSON; the journal is damaged") from error
        if not isinstance(record, dict) or (number == 1 and record.get("journal") != kind):
            raise UsageError(f"{path}:{number}: no journal of goldengate {kind}")
        records.append(record)
    return records[1:]
