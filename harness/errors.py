"""What the user did wrong, said in one line."""

from difflib import get_close_matches


class UsageError(ValueError):
    """Bad input to the harness: its text is one line for the user; the command line exits with code 2."""


def did_you_mean(word: str, known: list[str]) -> str:
    """`; did you mean X?` for a near miss, else `; known: A, B, C`."""
    near = get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known) or 'none'}"
