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
    findings of that severity, "warn" only reports them. `checks`: "off" leaves out the emulator's race detector and
    warnings. `tolerances`: path of another tolerances file.
    `overrides`: (name, value) pairs for `load_op`, sizes and constants that differ from the preset's. `snapshot`:
    directory that inputs and golden are taken from instead of being made; `allow_stale`: although they may be old.
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
    checks: str = "on"
    tolerances: str | None = None
    overrides: tuple[tuple[str, int | float], ...] = ()
    snapshot: str | None = None
    allow_stale: bool = False

    @property
    def id(self) -> str:
        """`inputs_id`, with `-schedule7` unless that is 0, and the tile set unless it is the shipped one."""
        schedule = f"-schedule{self.schedule}" if self.schedule else ""
        tiles = f"-{self.tiles}" if self.tiles is not None else ""
        return f"{self.inputs_id}{schedule}{tiles}"

    @property
    def inputs_id(self) -> str:
        """`gate-tiny-decode-hash-seed0`; `-tokens16` before the case for each override."""
        sizes = "".join(f"-{name}{value}" for name, value in self.overrides)
        return f"{self.op}-{self.preset}-{self.deployment}{sizes}-{self.case}-seed{self.seed}"

    @property
    def command(self) -> str:
        """The command that repeats this run."""
        words = ["goldengate", "verify", self.op, *self.situation_words, "--schedule", str(self.schedule)]
        if self.device != "emulator":
            words += ["--device", self.device]
        if self.kernel is not None:
            words += ["--kernel", self.kernel if self.function is None else f"{self.kernel}:{self.function}"]
        if self.tiles is not None:
            words += ["--tiles", self.tiles]
        if self.lint != "error":
            words += ["--lint", self.lint]
        if self.checks != "on":
            words += ["--checks", self.checks]
        if self.tolerances is not None:
            words += ["--tolerances", self.tolerances]
        if self.snapshot is not None:
            words += ["--snapshot", self.snapshot, *(["--allow-stale"] if self.allow_stale else [])]
        return shlex.join(words)

    @property
    def situation_words(self) -> list[str]:
        """The options that fix the inputs, for any command that draws them."""
        words = ["--preset", self.preset, "--deployment", self.deployment]
        for name, value in self.overrides:
            words += ["--set", f"{name}={value!r}"]
        return [*words, "--case", self.case, "--seed", str(self.seed)]

    @property
    def inputs_key(self) -> tuple[object, ...]:
        """Runs with one key have the same inputs and golden."""
        return (self.op, self.preset, self.deployment, self.overrides, self.case, self.seed, self.snapshot)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
