"""Units of order: see `order`."""

from __future__ import annotations


class Unit:
    """A place in the order. `known` has the bits of the sites that happened before, its own included."""

    __slots__ = ("known", "name", "number", "rank", "sites", "task")

    def __init__(self, number: int, name: str, known: int, *, rank: int = 0, task: int | None = None) -> None:
        self.number = number
        self.name = name
        self.known = known
        self.rank = rank
        self.task = task
        self.sites: dict[tuple[str, int, bool], int] = {}
