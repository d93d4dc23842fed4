"""On what a mutant is run: the strongest that the op has, in an order that finds most wrong kernels early."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.errors import UsageError, did_you_mean
from harness.run import Run
from specs.errors import SpecError
from specs.registry import load_op

if TYPE_CHECKING:
    from specs.registry import Op

Overrides = tuple[tuple[str, int | float], ...]

OTHERS: tuple[tuple[str, Overrides], ...] = (
    ("decode_mtp", ()),
    ("prefill", ()),
    ("decode", (("hc_eps", 1e-3), ("rms_norm_eps", 1e-3))),
)
"""Configurations besides TINY's decode, run with the default case: many row tiles, and epsilons that can be seen (1e-6
is below the last bit of most sums)."""

TILES = "before_pr672"
"""The tile set that is not the default: run with the default case where a kernel has other code or sizes for it."""

TOKENS: tuple[Overrides, ...] = ((("tokens", 24),), (("tokens", 48),), (("tokens", 16),))
"""Several row tiles, since a decode step of TINY has one: the first that the op takes is run with every case. In 24 the
last box of 16 is half full; some ops take whole boxes only, some no more than one."""

GROWN: tuple[Overrides, ...] = (
    (("num_attention_heads", 32), ("index_n_heads", 16), ("max_position_embeddings", 4096)),
    (("n_routed_experts", 48),),
)
"""Sizes of which TINY has one tile, or a power of two: the default case is run with those that the kernel reads."""

ORDERS = 8
"""Further legal devices for the default case: a dependency that is missing shows in some orders of tasks only."""


def situations(op: str, seeds: Sequence[int] = (0, 1), cases: Sequence[str] = ()) -> list[Run]:
    """The runs of an op at TINY that decide about a mutant, the default case first.

    Every valid case (or the named ones) with the first seed in program order; the default case in OTHERS and with
    TILES; every case again with TOKENS; the default case with GROWN and in ORDERS; every case with each further seed,
    which seeds the schedule too. Raises UsageError for a case that there is not.
    """
    loaded = load_op(op)
    valid = [case for case in loaded.cases if not case.invalid]
    for name in cases:
        if name not in [case.name for case in valid]:
            raise UsageError(f"unknown case {name!r}{did_you_mean(name, [case.name for case in valid])}")
    chosen = [case for case in valid if not cases or case.name in cases]
    chosen.sort(key=lambda case: (case.name != "default", "rounding" not in case.tags))
    runs = [Run(op, case=case.name, seed=seeds[0]) for case in chosen]
    first = runs[0]
    for deployment, overrides in OTHERS:
        if _possible(op, deployment, dict(overrides)):
            runs.append(replace(first, deployment=deployment, overrides=overrides))
    if TILES in loaded.kernel.read_text(encoding="utf-8"):
        runs.append(replace(first, tiles=TILES))
    tiled = [overrides for overrides in TOKENS if _possible(op, "decode", dict(overrides))]
    runs += [replace(first, overrides=overrides, case=case.name) for overrides in tiled[:1] for case in chosen]
    runs += [replace(first, overrides=overrides) for overrides in GROWN if _read(loaded, dict(overrides))]
    runs += [replace(first, schedule=schedule) for schedule in range(2, 2 + ORDERS)]
    return runs + [Run(op, case=case.name, seed=seed, schedule=seed) for seed in seeds[1:] for case in chosen]


def _read(op: Op, overrides: dict[str, int | float]) -> bool:
    """Whether the kernel file names a size that `overrides` change, and the op takes them."""
    try:
        other = load_op(op.name, "tiny", "decode", **overrides)
    except SpecError:
        return False
    text = op.kernel.read_text(encoding="utf-8")
    changed = [name for name, size in other.sizes.items() if op.sizes[name] != size]
    return any(re.search(rf"\b{name}\b", text) for name in changed)


def _possible(op: str, deployment: str, overrides: dict[str, int | float]) -> bool:
    try:
        load_op(op, "tiny", deployment, **overrides)
    except SpecError:
        return False
    return True
