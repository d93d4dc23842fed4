"""Memory: what the tensors of a run take, and what the machine has left for them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UsageError

if TYPE_CHECKING:
    from specs.registry import Op

GIB = 1 << 30
_GROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def needed(op: Op) -> int:
    """Bytes of the declared inputs and outputs: what every run of the op holds at the least."""
    from specs.tensors import TensorSpec

    tensors = [spec for spec in (*op.inputs_spec, *op.outputs) if isinstance(spec, TensorSpec)]
    return sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in tensors)


def available() -> int | None:
    """Bytes that can still be had, of the machine and of the control group around us; None where Linux tells none."""
    found = [found for found in (_of_machine(), _of_group()) if found is not None]
    return min(found, default=None)


def refuse_without_room(op: Op, free: int | None) -> None:
    """Raises UsageError for an op whose tensors cannot fit into `free` bytes: the system would kill the process."""
    if free is not None and needed(op) > free:
        where = f"{op.name} {op.config.name}/{op.deployment.name}"
        sizes = f"{needed(op) / GIB:.1f} GiB, this machine has {free / GIB:.1f} free"
        raise UsageError(f"{where}: its tensors take {sizes}")


def fitting(ops: Iterable[Op], free: int | None, processes: int) -> int:
    """How many of so many processes can run the largest of the ops at once: inputs, golden and device copies each."""
    largest = 3 * max(map(needed, ops), default=0)
    return processes if free is None or not largest else max(1, min(processes, free // largest))


def _of_machine() -> int | None:
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None


def _of_group() -> int | None:
    """What the limit of control group v2 leaves; page cache counts as free. None without a limit."""
    try:
        limit = (_GROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((_GROUP / "memory.current").read_text(encoding="ascii"))
        counts = (_GROUP / "memory.stat").read_text(encoding="ascii").split()
    except OSError:
        return None
    cache = dict(zip(counts[::2], map(int, counts[1::2]), strict=True)).get("file", 0)
    return None if limit == "max" else max(0, int(limit) - used + cache)
