"""Size requirements of kernels, checked when an op is built: what would silently be dropped is refused."""

from __future__ import annotations

from specs.errors import SpecError


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
