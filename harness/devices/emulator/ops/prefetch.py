"""Prefetch into L2: no effect on any value (contracts/pypto_dsl.md 3.13, H)."""

from __future__ import annotations

from harness.devices.emulator.machine import fault
from harness.devices.emulator.optable import ANY, op
from harness.devices.emulator.values import Tensor, describe


class PrefetchContext:
    """What `make_context`, `session` and `async_prefetch` hand around."""


@op("prefetch.make_context", where=ANY)
def make_context() -> PrefetchContext:
    """A context; it holds nothing (3.13)."""
    return PrefetchContext()


@op("prefetch.session", where=ANY)
def session(context: PrefetchContext) -> PrefetchContext:
    """A session of a context (3.13)."""
    return context


@op("prefetch.async_prefetch", where=ANY)
def async_prefetch(tensor_view: Tensor, context: PrefetchContext) -> PrefetchContext:
    """Does nothing to a GM view, whose bounds were checked when it was taken (3.13)."""
    if not isinstance(tensor_view, Tensor):
        raise fault(f"pl.prefetch.async_prefetch: needs a tensor in global memory, not {describe(tensor_view)}")
    return context


@op("prefetch.wait", where=ANY)
def wait(event: PrefetchContext, context: PrefetchContext | None = None) -> None:
    """Returns at once (3.13)."""
