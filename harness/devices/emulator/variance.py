"""The freedoms of a legal device, and the schedule seed that draws from them (design.md 5, pypto_dsl.md 2.3 and B).

Schedule 0 takes the default of every freedom. Any other seed draws, reproducibly, one legal device.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


class Schedule:
    """One legal device. `rng` is None for schedule 0 (program order, canonical arithmetic)."""

    def __init__(self, seed: int) -> None:
        if seed < 0:
            raise ValueError(f"schedule must not be negative, got {seed}")
        self.seed = seed
        self.rng = np.random.Generator(np.random.Philox(key=seed)) if seed else None

    def order(self, count: int) -> Iterable[int]:
        """The order in which `count` unordered units (blocks, parallel iterations, lanes) run."""
        return range(count) if self.rng is None else [int(i) for i in self.rng.permutation(count)]
