"""The active run of this thread of control, and the exception for an error at its current source line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import numpy as np

from harness.devices.base import KernelFault

if TYPE_CHECKING:
    from harness.devices.emulator.machine import Machine

_CURRENT: ContextVar[Machine | None] = ContextVar("machine", default=None)


def machine() -> Machine:
    """The active run. Raises RuntimeError outside one: ops cannot be called from plain Python."""
    current = _CURRENT.get()
    if current is None:
        raise RuntimeError("an emulator op was called outside a kernel run")
    return current


@contextmanager
def running(run: Machine) -> Iterator[Machine]:
    """Make `run` the active one for the duration of a with-block.

    In it numpy is silent, as a device is: overflow and NaN are results. Ops that asked numpy for silence one by one
    would pay for that every time.
    """
    token = _CURRENT.set(run)
    try:
        with np.errstate(all="ignore"):
            yield run
    finally:
        _CURRENT.reset(token)


def fault(reason: str, code: str = "") -> KernelFault:
    """The exception for an error of the kernel while it runs, at the current source line: `raise fault("…")`.

    `code` is a code of `lint.RULES`; the message starts with it.
    """
    file, line = machine().where()
    return KernelFault(file, line, f"{code}: {reason}" if code else reason)
