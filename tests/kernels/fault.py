"""One fault to plant in a copy of a shipped kernel, and the pieces of source that many of them replace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

KERNELS = Path(__file__).parents[2] / "kernels"


@dataclass(frozen=True)
class Fault:
    """One wrong kernel: `name` says what was broken, `why` what it does, `output` the output or stage that must fail.

    `overrides` are fields of the model configuration that differ from the preset. `fault`, where set, is a piece of
    the message with which the device refuses to go on before `output` is there. `part`: the kernel file that holds the
    piece, where it is not the op's own but one that the op's kernel splices in. `more`: further pieces, each of which
    occurs once, where one is not enough. `schedule`: the seed of the legal schedule that brings it to light.
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
    schedule: int = 0
    overrides: tuple[tuple[str, float], ...] = ()
    fault: str = ""
    part: str = ""
    occurs: int = 1
    nth: int = 1
    more: tuple[tuple[str, str], ...] = ()

    @property
    def id(self) -> str:
        return f"{self.op}-{self.name}"

    def plant(self, source: str) -> str:
        """The source with the fault in it. Raises ValueError when a piece does not occur as stated."""
        source = self._replace(source, self.before, self.after, self.occurs, self.nth)
        for before, after in self.more:
            source = self._replace(source, before, after, occurs=1, nth=1)
        return source

    def _replace(self, source: str, before: str, after: str, occurs: int, nth: int) -> str:
        pieces = source.split(before)
        if len(pieces) - 1 != occurs:
            raise ValueError(f"{self.id}: {before!r} occurs {len(pieces) - 1} times, expected {occurs}")
        return before.join(pieces[:nth]) + after + before.join(pieces[nth:])

    def write(self, folder: Path, program: Path | None = None) -> tuple[Path, Path]:
        """Write the faulty kernel into `folder`: the file to run, and the file that the fault is in.

        `program`: a file to run that splices in the part, instead of the op's kernel.
        """
        program = program or KERNELS / f"{self.op}.py"
        source = program.read_text(encoding="utf-8")
        copy = folder / program.name
        if not self.part:
            copy.write_text(self.plant(source), encoding="utf-8")
            return copy, copy
        faulty = folder / f"faulty_{self.part}.py"
        faulty.write_text(self.plant((KERNELS / f"{self.part}.py").read_text(encoding="utf-8")), encoding="utf-8")
        copy.write_text(
            source.replace(f"from kernels.{self.part} import", f"from {faulty.stem} import"), encoding="utf-8"
        )
        return copy, faulty


RINT_BF16 = 'pl.BF16, mode="rint")'
RINT_INT32 = 'pl.INT32, mode="rint")'
