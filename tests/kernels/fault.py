"""One fault to plant in a copy of a shipped kernel, and the pieces of source that many of them replace."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from change import Change


@dataclass(frozen=True)
class Fault(Change):
    """One wrong kernel: `name` says what was broken, `why` what it does, `output` the output or stage that must fail.

    `overrides` are fields of the model configuration that differ from the preset. `fault`, where set, is a piece of
    the message with which the device refuses to go on before `output` is there. `schedule`: the seed of the legal
    schedule that brings it to light.
    """

    output: str
    why: str
    _: KW_ONLY
    cases: tuple[str, ...] = ("default",)
    preset: str = "tiny"
    deployment: str = "decode"
    schedule: int = 0
    overrides: tuple[tuple[str, float], ...] = ()
    fault: str = ""


RINT_BF16 = 'pl.BF16, mode="rint")'
RINT_INT32 = 'pl.INT32, mode="rint")'
