"""Names of the language that this device does not have: a call says so (contracts/pypto_dsl.md 3.4, 3.7)."""

from __future__ import annotations

from typing import Any, NoReturn

from harness.devices.emulator.machine import fault
from harness.devices.emulator.optable import ANY, op

_A5_ONLY = ("random", "matmul_mx", "matmul_mx_acc", "matmul_mx_bias")
_UNMODELLED = ("gatherb",)


def _refusing(name: str, reason: str) -> None:
    @op(name, f"tensor.{name}", f"tile.{name}", where=ANY)
    def refused(*_: Any, **__: Any) -> NoReturn:
        raise fault(f"pl.{name}: {reason}")


for _name in _A5_ONLY:
    _refusing(_name, "exists on A5 only; this device is A2/A3")
for _name in _UNMODELLED:
    _refusing(_name, "byte-offset gathers are not modelled; use pl.gather(index=)")
