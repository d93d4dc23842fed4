"""The one error of this package."""

from collections.abc import Iterable
from difflib import get_close_matches


class SpecError(ValueError):
    """A specification, a name or an input that cannot be used. Its text is one line, written for the user."""


def unknown(kind: str, name: object, known: Iterable[str]) -> SpecError:
    """The error for a name that is not in a table: what was asked for, the nearest name, all names."""
    names = list(known)
    close = get_close_matches(str(name), names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return SpecError(f"unknown {kind} {name!r}: {hint}known: {', '.join(names)}")
