"""The freedoms of a legal device, and the schedule seed that draws from them (design.md 5, pypto_dsl.md 2.3 and B).

Schedule 0 takes the default of every freedom. Any other seed draws, reproducibly, one legal device: one option of each
freedom of `FREEDOMS`, and the salt of the functions whose last bits are free. Those functions stay functions: the same
input gives the same output throughout one schedule, as on a device. Casts, additions, multiplications, tensor
division, square roots and INT8 products are never free.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Freedom:
    """One thing the device may choose. `options[0]` is what schedule 0 takes; `spread` bounds the effect."""

    name: str
    options: tuple[str, ...]
    section: str
    spread: str
    reason: str

    @property
    def default(self) -> str:
        return self.options[0]


# Relative error of the low-precision reciprocal square root. No source gives the figure; a table look-up without a
# Newton step is good to 11 or 12 bits, and 2^-12 keeps the estimate visibly worse than FP32 and better than BF16.
RSQRT_BITS = 12

FREEDOMS = (
    Freedom("blocks", ("program", "shuffled"), "2.3", "order only",
            "blocks of one dispatch run in any order; this also orders their atomic additions"),
    Freedom("parallel", ("program", "shuffled"), "2.3", "order only",
            "iterations of pl.parallel are asserted independent"),
    Freedom("row_sum", ("lanes", "lanes_in_order", "sequential", "pairwise", "shuffled"), "3.10",
            "any order of FP32 additions",
            "two lane schemes are described and the hardware lane tree is not documented"),
    Freedom("col_sum", ("top_down", "pairwise"), "3.10", "two orders of FP32 additions",
            "rows are added top to bottom, or as a tree when the compiler supplies a scratch tile"),
    Freedom("cube", ("exact", "ascending", "shuffled", "tree"), "3.7", "any order of the K fractals",
            "the order of the K sum inside the cube, and the K split of large products, are not documented"),
    Freedom("transcendental", ("nearest", "one_ulp"), "3.5", "at most 1 ULP of the dtype",
            "exp, log, sin and cos are hardware functions without a documented bound"),
    Freedom("rsqrt", ("truncated", "spread"), "3.5", f"relative error below 2^-{RSQRT_BITS}",
            "the native estimate is approximate; its error is not documented"),
    Freedom("div_scalar", ("divide", "reciprocal"), "3.5", "at most 1.5 ULP",
            "a division by a scalar becomes a product with its reciprocal when the compiler reuses the source buffer"),
    Freedom("sort_ties", ("first", "last", "shuffled"), "3.11", "which of equal values comes first",
            "the hardware's tie order is not documented"),
    Freedom("max_nan", ("propagate", "number"), "3.5", "NaN or the other operand",
            "the behaviour of maximum and minimum on NaN is not documented"),
)  # fmt: skip

_BY_NAME = {freedom.name: freedom for freedom in FREEDOMS}


class Schedule:
    """One legal device. `rng` is None for schedule 0 (program order, canonical arithmetic).

    `fixed` pins freedoms by name, for tests and for error attribution. Raises ValueError for a negative seed, an
    unknown freedom and an unknown option.
    """

    def __init__(self, seed: int, fixed: Mapping[str, str] | None = None) -> None:
        if seed < 0:
            raise ValueError(f"schedule must not be negative, got {seed}")
        self.seed = seed
        self.rng = np.random.Generator(np.random.Philox(key=seed)) if seed else None
        chosen = {f.name: f.default for f in FREEDOMS}
        self.salt = 0
        if seed:
            # A stream of its own: adding a freedom must not change the orders that `rng` draws.
            draw = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, 1]))
            self.salt = int(draw.integers(1, 2**31))
            for freedom in FREEDOMS:
                chosen[freedom.name] = freedom.options[int(draw.integers(len(freedom.options)))]
            chosen["blocks"] = chosen["parallel"] = "shuffled"
        for name, option in (fixed or {}).items():
            if name not in _BY_NAME:
                raise ValueError(f"unknown freedom {name!r}, expected one of {', '.join(_BY_NAME)}")
            if option not in _BY_NAME[name].options:
                raise ValueError(f"freedom {name} has no option {option!r}, expected one of {_BY_NAME[name].options}")
            chosen[name] = option
        self._chosen = chosen

    def pick(self, name: str) -> str:
        """The option that this schedule takes of a freedom; KeyError for an unknown name (a bug of the emulator)."""
        return self._chosen[name]

    def permutation(self, count: int) -> list[int]:
        """A drawn order of `count` things; program order without a generator."""
        return list(range(count)) if self.rng is None else [int(i) for i in self.rng.permutation(count)]

    def order(self, count: int) -> Iterable[int]:
        """The order in which `count` unordered units (blocks, parallel iterations, lanes) run."""
        return range(count) if self.rng is None else self.permutation(count)
