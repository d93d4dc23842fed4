"""The op table: every `pl.` name that computes, with the place where it may stand. One entry per op."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from harness.devices.emulator.machine import fault, machine

Function = TypeVar("Function", bound=Callable[..., Any])

KERNEL = "kernel"  # only inside pl.at, a pl.spmd block or an incore function
ORCHESTRATION = "orchestration"
ANY = "any"


@dataclass(frozen=True)
class OpEntry:
    """One DSL operation: dotted names below `pl` (or `pld`), where it may stand, and what it does."""

    names: tuple[str, ...]
    where: str
    run: Callable[..., Any]


OPS: dict[str, OpEntry] = {}


def op(*names: str, where: str = KERNEL) -> Callable[[Function], Function]:
    """Register a function as the op `names` ("add", "tile.add", …) and check its place at every call."""

    def register(function: Function) -> Function:
        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            region = machine().region
            if where is KERNEL and region is None:
                raise fault(f"misplaced operation: pl.{names[0]} belongs inside pl.at, pl.spmd or incore", "GG312")
            if where is ORCHESTRATION and region is not None:
                raise fault(f"misplaced operation: pl.{names[0]} belongs to orchestration, not into a region", "GG312")
            return function(*args, **kwargs)

        checked.__goldengate_op__ = True  # type: ignore[attr-defined]  # the front end accepts calls of marked names
        entry = OpEntry(names, where, checked)
        for name in names:
            if name in OPS:
                raise ValueError(f"op {name} is defined twice")
            OPS[name] = entry
        return checked  # type: ignore[return-value]

    return register
