"""What the tests of the emulator's ops share: a kernel region to call them in, operands, and the op table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from harness.devices.base import KernelFault
from harness.devices.emulator import dtypes as dt
from harness.devices.emulator.machine import Machine, Region, running
from harness.devices.emulator.ops import namespace
from harness.devices.emulator.values import Tensor, Tile
from harness.devices.emulator.variance import Schedule


class Ops:
    """The op table with attribute access: `pl.add`, `pl.tile.gather`."""

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix

    def __getattr__(self, name: str) -> Any:
        table = namespace()
        full = self._prefix + name
        return table[full] if full in table else Ops(full + ".")


pl = Ops()


@contextmanager
def kernel(seed: int = 0, region: bool = True, **fixed: str) -> Iterator[Machine]:
    """A run inside a kernel region (or in orchestration), with freedoms pinned by name."""
    machine = Machine(schedule=Schedule(seed, fixed), files=set(), region=Region("at") if region else None)
    with running(machine):
        yield machine


def gm(data: torch.Tensor, name: str = "g") -> Tensor:
    dtype = dt.from_torch(data.dtype)
    assert dtype is not None
    return Tensor.of(data, dtype, name)


def tile(data: torch.Tensor, valid: tuple[int, ...] | None = None) -> Tile:
    """A tile of `data`; with `valid`, loaded so that the rest is undefined."""
    return pl.slice(gm(data), list(data.shape), [0] * data.dim(), valid_shape=None if valid is None else list(valid))


def codes(machine: Machine) -> set[str]:
    return {finding.code for finding in machine.findings}


@contextmanager
def rejects(*pieces: str) -> Iterator[None]:
    """A KernelFault whose text holds every piece."""
    with pytest.raises(KernelFault) as caught:
        yield
    for piece in pieces:
        assert piece in str(caught.value)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
