"""On-chip memory that is alive in one block or lane, by memory space (contracts/pypto_dsl.md 3.12).

Tiles are alive as long as something refers to them; `liveness` lets names go after their last use. The peak is an
estimate: the allocator may reuse an operand's buffer for a result, and pl.pipeline keeps several copies. `computed` is
a lower bound of what Vec must hold: results of vector operations only, since a loaded tile may lie in L1.
"""

from __future__ import annotations


class Ledger:
    """The bytes alive and their peak. `spliced` counts the inlines being executed: their callers hold arguments for
    longer than the spliced text would, so nothing is certain inside."""

    __slots__ = ("alive", "computed", "peak", "spliced")

    def __init__(self) -> None:
        self.alive: dict[str, int] = {}
        self.peak: dict[str, int] = {}
        self.computed = 0
        self.spliced = 0

    def add(self, space: str, nbytes: int) -> None:
        """A buffer is born."""
        alive = self.alive[space] = self.alive.get(space, 0) + nbytes
        if alive > self.peak.get(space, 0):
            self.peak[space] = alive

    def remove(self, space: str, nbytes: int, *, computed: bool) -> None:
        """A buffer has died."""
        self.alive[space] -= nbytes
        if computed:
            self.computed -= nbytes
