"""Size requirements of kernels, checked when an op is built: what would silently be dropped is refused."""

from __future__ import annotations

from specs.errors import SpecError

BOX = 16
"""Rows of a cube tile."""


def require_multiple(op: str, symbol: str, value: int, divisor: int) -> None:
    """Raise SpecError unless `divisor` divides `value`."""
    if value % divisor:
        raise SpecError(
            f"{op}: {symbol} = {value} is no multiple of {divisor}: the kernel's last tile would be dropped"
        )


def require_between(op: str, symbol: str, value: int, low: int, high: int) -> None:
    """Raise SpecError unless low <= value <= high."""
    if not low <= value <= high:
        raise SpecError(f"{op}: {symbol} = {value} is outside {low}..{high}, which the kernel is made for")


def require_boxes(op: str, tokens: int) -> None:
    """Raise SpecError unless the cube reaches every row: at most one box of 16, or whole boxes."""
    if tokens > BOX and tokens % BOX:
        raise SpecError(f"{op}: T = {tokens} is more than {BOX} and no multiple of {BOX}")
