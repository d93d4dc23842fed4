"""Files that a command writes its result to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TextIO

from harness.errors import UsageError


@contextmanager
def writable(path: str | None) -> Iterator[TextIO | None]:
    """A text file opened before the work begins, so that a bad path costs nothing; None for no path.

    Raises UsageError when it cannot be written.
    """
    if path is None:
        yield None
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "w", encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error
        yield file
