"""One fault to plant in a copy of a shipped kernel, and the pieces of source that many of them replace."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One wrong kernel: `name` says what was broken, `why` what it does.

    `overrides` are fields of the model configuration that differ from the preset. `fault`, where set, is a piece of
    the message with which the device refuses to go on before `output` is there.
    """

    op: str
    name: str
    before: str
    after: str
    output: str
    why: str
    cases: tuple[str, ...] = ("default",)
    preset: str = "tiny"
    deployment: str = "decode"
    overrides: tuple[tuple[str, float], ...] = ()
    fault: str = ""
    occurs: int = 1
    nth: int = 1

    @property
    def id(self) -> str:
        return f"{self.op}-{self.name}"

    def plant(self, source: str) -> str:
        """The source with the fault in it. Raises ValueError when the piece does not occur as stated."""
        pieces = source.split(self.before)
        if len(pieces) - 1 != self.occurs:
            raise ValueError(f"{self.id}: {self.before!r} occurs {len(pieces) - 1} times, expected {self.occurs}")
        return self.before.join(pieces[: self.nth]) + self.after + self.before.join(pieces[self.nth :])


RINT_BF16 = 'pl.BF16, mode="rint")'
RINT_INT32 = 'pl.INT32, mode="rint")'
