"""A change to make in a copy of a shipped kernel: a piece of its source and what stands there instead."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

KERNELS = Path(__file__).parents[2] / "kernels"


@dataclass(frozen=True)
class Change:
    """`before` becomes `after` in the kernel of `op`; `name` says what that is.

    `part`: the kernel file that holds the piece, where it is not the op's own but one that the op's kernel splices in.
    `occurs`, `nth`: how often the piece stands there, and which of them is meant. `more`: further pieces, each of which
    occurs once, where one is not enough.
    """

    op: str
    name: str
    before: str
    after: str
    _: KW_ONLY
    part: str = ""
    occurs: int = 1
    nth: int = 1
    more: tuple[tuple[str, str], ...] = ()

    @property
    def id(self) -> str:
        return f"{self.op}-{self.name}"

    def plant(self, source: str) -> str:
        """The source with the change in it. Raises ValueError when a piece does not occur as stated."""
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
        """Write the changed kernel into `folder`: the file to run, and the file that the change is in.

        `program`: a file to run that splices in the part, instead of the op's kernel.
        """
        program = program or KERNELS / f"{self.op}.py"
        source = program.read_text(encoding="utf-8")
        copy = folder / program.name
        if not self.part:
            copy.write_text(self.plant(source), encoding="utf-8")
            return copy, copy
        changed = folder / f"changed_{self.part}.py"
        changed.write_text(self.plant((KERNELS / f"{self.part}.py").read_text(encoding="utf-8")), encoding="utf-8")
        copy.write_text(
            source.replace(f"from kernels.{self.part} import", f"from {changed.stem} import"), encoding="utf-8"
        )
        return copy, changed
