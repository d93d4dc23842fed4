"""What the harness asks of a device: load a kernel file, run it once, say honestly what it wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from specs.registry import Op


class KernelError(Exception):
    """Something is wrong with a kernel, at a line of its source where that is known."""

    def __init__(self, file: str | Path, line: int | None, reason: str) -> None:
        super().__init__(str(file), line, reason)
        self.file, self.line, self.reason = str(file), line, reason

    def __str__(self) -> str:
        return f"{location(self.file, self.line)}: {self.reason}"


class KernelRefused(KernelError):
    """The front end would refuse this kernel: nothing ran. The command line exits with code 2."""


class KernelFault(KernelError):
    """The kernel failed while it ran: out of bounds, undefined read, dead-lock. The op fails."""


def location(file: str | Path, line: int | None) -> str:
    """`file:line`, or the file alone where the line is not known."""
    return f"{file}:{line}" if line is not None else f"{file}"


@dataclass(frozen=True)
class Finding:
    """One thing a device noticed about a kernel: a lint rule by its code, or a warning."""

    code: str
    message: str
    file: str
    line: int | None
    severity: str  # "error" | "warning"

    def __str__(self) -> str:
        return f"{location(self.file, self.line)}: {self.severity} {self.code}: {self.message}"


@dataclass
class DeviceRun:
    """What one run of a kernel left behind. The tensors belong to the caller.

    `outputs`: every out and inout tensor, by name. `undefined`: per output a bool mask of its shape, True where the
    element was never written or was computed from undefined memory; None or no entry when there is no such element.
    `seconds`: the run itself, without loading. `intermediates`: stages of the op by name, where the device can tell
    them; their undefined elements are in `undefined`, too.
    """

    outputs: dict[str, Tensor]
    undefined: dict[str, Tensor | None] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    counters: dict[str, int | float] = field(default_factory=dict)
    seconds: float = 0.0
    intermediates: dict[str, Tensor] = field(default_factory=dict)


class Kernel(Protocol):
    """A loaded kernel: opaque but for where it came from."""

    @property
    def path(self) -> Path: ...

    @property
    def function(self) -> str: ...


class Device(Protocol):
    """Executes kernels. One device serves one process; it keeps no state between runs that changes a result."""

    @property
    def name(self) -> str: ...

    def load(self, path: Path, function: str, sizes: Mapping[str, int | float], tiles: str | None) -> Kernel:
        """Load `function` of the kernel file `path` with the values of `kernels.sizes` for one configuration.

        `tiles`: name of a tile set, None for the shipped one. Raises KernelRefused.
        """
        ...

    def run(self, kernel: Any, op: Op, inputs: dict[str, Tensor | int | float], schedule: int) -> DeviceRun:
        """Run it once on copies of `inputs`. `schedule` 0 is program order; others are seeds of legal orders.

        Raises KernelFault.
        """
        ...
