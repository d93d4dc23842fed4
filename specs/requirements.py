"""Size requirements of kernels, checked when an op is built: what would silently be dropped is refused."""

from __future__ import annotations

from specs.errors import SpecError
from specs.model import Deployment, ModelConfig

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


MOST_DECODE_TOKENS = 4
"""Tokens per request of a decode step: with more, a group of 4 could close twice."""

MOST_POSITIONS = 16384
"""Positions that the decode pools are made for (contracts/decode_compressor_indexer.md, 0)."""


def require_decode(op: str, config: ModelConfig, deployment: Deployment) -> None:
    """Raise SpecError unless this is a decode step of 1 to 4 tokens per request, over pools of at most 16384
    positions, and in whole pages.
    """
    if deployment.seq > MOST_DECODE_TOKENS:
        raise SpecError(
            f"{op}: S = {deployment.seq} tokens per request of the deployment {deployment.name!r}, expected a decode "
            f"step of 1..{MOST_DECODE_TOKENS}: prefill has ops of its own"
        )
    require_between(op, "MAX_SEQ_LEN", config.max_position_embeddings, 512, MOST_POSITIONS)
    require_multiple(op, "MAX_SEQ_LEN", config.max_position_embeddings, 512)
