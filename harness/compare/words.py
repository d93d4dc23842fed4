"""The words of labels and reasons: rules and counts in one grammar."""

from __future__ import annotations


def count_text(part: int, whole: int) -> str:
    """So many of so many, and the share in percent."""
    return f"{part} of {whole} ({part / max(whole, 1):.4%})"


def over_text(over: int, compared: int, allowed: int) -> str:
    """The reason of an output in which more elements break the rule than are allowed."""
    return f"over the limit {count_text(over, compared)}, allowed {allowed}"


def budget_label(fraction: float, points: int) -> str:
    """A budget as `budget` counts it, 0 where there is none."""
    if not fraction:
        return f"<= {points}" if points else "0"
    return f"<= max({points}, {fraction:.4%})" if points else f"<= {fraction:.4%}"


def bias_label(bias_z: float | None) -> list[str]:
    """The part of a label that a limit of the bias adds, if there is one."""
    return [] if bias_z is None else [f"|z| <= {bias_z:g}"]


def labelled(text: str, nonfinite: str) -> str:
    """The label of a rule, with the NaN and infinities that it accepts."""
    return text if nonfinite == "refuse" else f"{text}, same NaN and infinities"
