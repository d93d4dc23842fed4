"""Messages at a file and line: in the form of GitHub's workflow commands, or as `file:line: text`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from harness.gate.judging import Outcome, Place, place_of, worst_first
from harness.report import failure_text

STYLES = ("none", "plain", "github")


def messages(outcome: Outcome, style: str, root: Path) -> Iterator[str]:
    """One line per op that failed or was refused, and per shift against the baseline; paths relative to `root`."""
    if style == "none":
        return
    for verdict in worst_first(outcome.verdicts):
        yield _line(style, "error", place_of(verdict.run), failure_text(verdict), root)
    for refused in outcome.refused:
        place = place_of(refused.run)
        if refused.file is not None:
            place = Place(refused.file, refused.line or 1)
        yield _line(style, "error", place, refused.text, root)
    for shift in outcome.findings.shifts if outcome.findings is not None else ():
        run = next((v.run for v in outcome.verdicts if v.run.op == shift.key.op), None)
        if run is not None:
            yield _line(style, "warning", place_of(run), shift.text, root)


def _line(style: str, level: str, place: Place, text: str, root: Path) -> str:
    path = os.path.relpath(place.file, root)
    if path.startswith(".."):
        path = place.file
    if style == "github":
        return f"::{level} file={_escape(path, True)},line={place.line},title=goldengate::{_escape(text, False)}"
    return f"{path}:{place.line}: {level}: {text.splitlines()[0]}"


def _escape(text: str, attribute: bool) -> str:
    """As GitHub wants it: no line break in a command, and in attributes no separators."""
    separators = ((":", "%3A"), (",", "%2C")) if attribute else ()
    for raw, coded in (("%", "%25"), ("\r", "%0D"), ("\n", "%0A"), *separators):
        text = text.replace(raw, coded)
    return text
