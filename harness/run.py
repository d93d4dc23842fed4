"""What to run: the values that make one verification reproducible, and the command line that repeats it."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Run:
    """One verification: op, configuration, case, seed of the inputs, schedule seed of the device.

    `kernel`: path of the user's kernel file, None for the shipped one; `function`: its entry, None for the op's name
    or the only entry. `tiles`: name of a tile set, None for the shipped one. `lint`: "error" fails the run on
    findings of that severity, "warn" only reports them. `tolerances`: path of another tolerances file.
    """

    op: str
    preset: str = "tiny"
    deployment: str = "decode"
    case: str = "default"
    seed: int = 0
    schedule: int = 0
    device: str = "emulator"
    kernel: str | None = None
    function: str | None = None
    tiles: str | None = None
    lint: str = "error"
    tolerances: str | None = None

    @property
    def id(self) -> str:
        """`gate-tiny-decode-hash-seed0`, with `-schedule7` unless the schedule is 0."""
        schedule = f"-schedule{self.schedule}" if self.schedule else ""
        return f"{self.op}-{self.preset}-{self.deployment}-{self.case}-seed{self.seed}{schedule}"

    @property
    def command(self) -> str:
        """The command that repeats this run."""
        words = ["goldengate", "verify", self.op, "--preset", self.preset, "--deployment", self.deployment]
        words += ["--case", self.case, "--seed", str(self.seed), "--schedule", str(self.schedule)]
        if self.device != "emulator":
            words += ["--device", self.device]
        if self.kernel is not None:
            words += ["--kernel", self.kernel if self.function is None else f"{self.kernel}:{self.function}"]
        if self.tiles is not None:
            words += ["--tiles", self.tiles]
        if self.lint != "error":
            words += ["--lint", self.lint]
        if self.tolerances is not None:
            words += ["--tolerances", self.tolerances]
        return shlex.join(words)

    @property
    def inputs_key(self) -> tuple[str, str, str, str, int]:
        """Runs with one key have the same inputs and golden."""
        return (self.op, self.preset, self.deployment, self.case, self.seed)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
