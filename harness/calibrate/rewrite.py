"""New numbers in `tolerances.yaml`: only the lines that hold them change; order, comments and wrapping stay.

ruamel.yaml says where each value is. Its own writer would wrap every long text of the file anew.
"""

from __future__ import annotations

import datetime
import os
import re
import tempfile
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ruamel.yaml import YAML

from harness.calibrate.fit import Fit, looser_than_reference
from harness.errors import UsageError
from harness.tolerances import load_tolerances

_WIDTH = 120


def rewritten(text: str, fits: Sequence[Fit], provenance: Mapping[str, str], date: datetime.date) -> str:
    """The text of a tolerances file with fitted numbers in place of its own.

    `provenance`: keys and texts for the provenance of every output that is fitted, the date aside. Raises KeyError for
    an output or a parameter that the file does not have.
    """
    for op, output in dict.fromkeys((fit.op, fit.output) for fit in fits):
        for fit in fits:
            if (fit.op, fit.output) == (op, output):
                text = _with_value(text, (op, output, fit.parameter), _number(fit))
        text = _with_value(text, (op, output, "provenance", "date"), date.isoformat())
        for key, words in provenance.items():
            text = _with_text(text, (op, output, "provenance"), key, words)
    return text


def write(path: Path, text: str, fitted: Iterable[tuple[str, str]], *, looser_allowed: bool) -> None:
    """Replace the file as a whole, if the new text is a tolerances file. Raises UsageError, also where one of the
    `fitted` ops and outputs would accept what the reference rejects, unless `looser_allowed`."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise UsageError(f"cannot write beside {path}: {error.strerror}") from error
    fresh = Path(name)
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        tolerances = load_tolerances(fresh)
        for op, output in fitted:
            entry = tolerances[op][output]
            if not looser_allowed and looser_than_reference(entry.comparator, entry.provenance["reference"]):
                raise UsageError(
                    f"{op}.{output} would be looser than the reference's {entry.provenance['reference']}: "
                    f'nothing was written; --allow-looser "reason" does so'
                )
        fresh.chmod(path.stat().st_mode)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def _number(fit: Fit) -> str:
    """As the file writes numbers: whole ones plain, others short, and as YAML 1.2 and 1.1 both read a float."""
    if fit.parameter.startswith("max_") or fit.parameter.endswith("_points"):
        return str(int(fit.fitted))
    mantissa, exponent = f"{fit.fitted:.1e}".split("e")
    return "0.0" if fit.fitted == 0.0 else f"{mantissa}e{int(exponent)}"


def _with_value(text: str, keys: Sequence[str], value: str) -> str:
    """The text with another plain value on the line of a key."""
    line, column = _place(text, keys)
    lines = text.splitlines(keepends=True)
    comment = re.search(r"\s+#.*", lines[line][column:])
    lines[line] = f"{lines[line][:column]}{value}{comment[0] if comment else ''}\n"
    return "".join(lines)


def _with_text(text: str, keys: Sequence[str], key: str, words: str) -> str:
    """The text with `key: words` at the end of a mapping, or in the place of that key."""
    mapping = YAML(typ="rt").load(text)
    for part in keys:
        mapping = mapping[part]
    lines = text.splitlines(keepends=True)
    if key in mapping:
        start, indent = mapping.lc.key(key)
        end = _end(lines, start, indent)
    else:
        last, indent = mapping.lc.key(list(mapping)[-1])
        start = end = _end(lines, last, indent)
    pad = " " * indent
    quoted = "'" + words.replace("'", "''") + "'" if ": " in words or " #" in words else words
    filled = textwrap.fill(f"{key}: {quoted}", _WIDTH, initial_indent=pad, subsequent_indent=f"{pad}  ")
    return "".join([*lines[:start], f"{filled}\n", *lines[end:]])


def _end(lines: Sequence[str], start: int, indent: int) -> int:
    """The line behind a key and the lines that its value goes on on."""
    end = start + 1
    while end < len(lines) and lines[end].strip() and len(lines[end]) - len(lines[end].lstrip()) > indent:
        end += 1
    return end


def _place(text: str, keys: Sequence[str]) -> tuple[int, int]:
    """Line and column of the value of a key, from 0."""
    mapping = YAML(typ="rt").load(text)
    for part in keys[:-1]:
        mapping = mapping[part]
    line, column = mapping.lc.value(keys[-1])
    return line, column
