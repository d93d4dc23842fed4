"""`goldengate capacity`: how deep the receive buffers of the distributed MoE must be, by routing and number of ranks.

Only the router runs: no expert weights are drawn and no device is used. contracts/moe_and_layers.md, section 8.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from goldens.errors import CapacityError
from goldens.numerics.routes import expect_capacity, lane_loads
from harness.errors import UsageError, did_you_mean
from harness.files import writable
from specs.capacity import ROUTING_INPUTS, formula_depth, routed_ids, smallest_depth
from specs.model import DEPLOYMENTS, EP_WORLD_SIZES, PRESETS, RECV_TILE
from specs.registry import Op, load_op

PASSED, OVERFLOWED = 0, 1
ROUTING = "routing"
"""Tag of the cases of `moe` that are there for who is sent where."""
SAFETY = 4.0
"""The factor over the uniform load of the historical formula (8.2)."""
HEADERS = ("routing", "EP", "mean rows", "most rows", "times mean", "fullest lane", "smallest depth", "formula", "EP*T")

LEGEND = (
    f"Rows per expert, of which every source has a lane of 1/EP. smallest depth: EP times the fullest lane, as a "
    f"multiple of {RECV_TILE}; formula: {SAFETY:g} times the mean; EP*T holds everything."
)


@dataclass(frozen=True)
class Load:
    """What one routing sends: `rows` [EP, N] from each source to each expert, for `tokens` tokens on every rank."""

    preset: str
    deployment: str
    case: str
    seed: int
    tokens: int
    formula: int
    rows: Tensor = field(repr=False)

    @property
    def ranks(self) -> int:
        return self.rows.shape[0]

    @property
    def by_expert(self) -> Tensor:
        """Rows that each expert receives from all sources. [N]"""
        return self.rows.sum(0)

    @property
    def by_rank(self) -> Tensor:
        """Rows that each rank receives. [EP]"""
        return self.by_expert.view(self.ranks, -1).sum(1)

    @property
    def mean(self) -> float:
        return float(self.by_expert.double().mean())

    @property
    def smallest_depth(self) -> int:
        """The smallest legal depth whose lanes hold this routing."""
        return smallest_depth(self.rows)

    def overflow(self, depth: int) -> CapacityError | None:
        """The first lane that a receive depth of `depth` rows per expert is too shallow for."""
        try:
            expect_capacity(f"{self.case}, EP = {self.ranks}, depth {depth}", self.rows, depth // self.ranks)
        except CapacityError as error:
            return error
        return None

    def record(self) -> dict[str, Any]:
        """All figures, for JSON."""
        return {
            "preset": self.preset,
            "deployment": self.deployment,
            "case": self.case,
            "seed": self.seed,
            "ep_world_size": self.ranks,
            "tokens": self.tokens,
            "rows_by_expert": self.by_expert.tolist(),
            "rows_by_rank": self.by_rank.tolist(),
            "rows_by_source_and_expert": self.rows.tolist(),
            "smallest_depth": self.smallest_depth,
            "formula_depth": self.formula,
            "worst_case_depth": self.ranks * self.tokens,
        }


def routing_cases(op: Op) -> list[str]:
    """Names of the cases that this command tabulates unless others are named."""
    return [case.name for case in op.cases if ROUTING in case.tags]


def load_of(op: Op, case: str, seed: int = 0) -> Load:
    """The rows that a case of `moe` sends, from the router alone. Raises SpecError, GoldenInputError."""
    context = op.context(case, seed)
    inputs: Mapping[str, Any] = {name: context.tensor(name) for name in ROUTING_INPUTS} | dict(context.scalars)
    counts = torch.full((op.world, 1), int(context.scalars["num_tokens"]), dtype=torch.int32)
    rows = lane_loads(routed_ids(inputs, op.config), counts, op.config.n_routed_experts)
    formula = formula_depth(op.config, op.deployment, SAFETY)
    return Load(op.config.name, op.deployment.name, case, seed, op.deployment.tokens, formula, rows)


def table(loads: Sequence[Load]) -> str:
    """One row per routing and number of ranks."""
    body = [
        (
            load.case,
            load.ranks,
            f"{load.mean:.1f}",
            int(load.by_expert.max()),
            f"{float(load.by_expert.max()) / load.mean:.1f}" if load.mean else "-",
            int(load.rows.max()),
            load.smallest_depth,
            f"{load.formula}{'' if load.overflow(load.formula) is None else ' overflows'}",
            load.ranks * load.tokens,
        )
        for load in loads
    ]
    return tabulate(body, headers=HEADERS)


def answers(loads: Sequence[Load], depth: int) -> Iterator[tuple[bool, str]]:
    """For each routing whether `depth` holds it, and a line that says so; it names the lane that overflows."""
    for load in loads:
        error = load.overflow(depth)
        if error is None:
            used = f"{int(load.rows.max())} of a lane's {depth // load.ranks} rows used"
            yield True, f"passes: {load.case}, EP = {load.ranks}, depth {depth}: {used}"
        else:
            yield False, f"overflows: {error}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.set_defaults(command=run)
    parser.add_argument("--preset", default="tiny", help="model sizes (default: tiny)")
    parser.add_argument("--deployment", default="decode", help="token counts (default: decode)")
    parser.add_argument("--ep", type=int, action="append", metavar="N", help="ranks (default: 2, 4 and 8)")
    parser.add_argument("--case", action="append", default=[], metavar="NAME", help="cases of moe (default: all skews)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the inputs (default: 0)")
    parser.add_argument("--depth", type=int, metavar="ROWS", help="say for each routing whether this depth holds it")
    parser.add_argument("--json", metavar="FILE", help="write the rows of every source, expert and rank")


def run(arguments: argparse.Namespace) -> int:
    """The exit code: 0, or 1 where `--depth` is too shallow for a routing. Raises UsageError, SpecError."""
    for kind, name, known in (
        ("preset", arguments.preset, list(PRESETS)),
        ("deployment", arguments.deployment, list(DEPLOYMENTS)),
    ):
        if name not in known:
            raise UsageError(f"unknown {kind} {name!r}{did_you_mean(name, known)}")
    _check_depth(arguments.depth)
    with writable(arguments.json) as json_file:
        loads = []
        for ranks in arguments.ep or EP_WORLD_SIZES:
            op = load_op("moe", arguments.preset, arguments.deployment, ep_world_size=ranks)
            loads += [load_of(op, case, arguments.seed) for case in arguments.case or routing_cases(op)]
        if json_file is not None:
            json_file.write(json.dumps([load.record() for load in loads], indent=1) + "\n")
    print(f"{table(loads)}\n\n{LEGEND}")
    if arguments.depth is None:
        return PASSED
    verdicts = list(answers(loads, arguments.depth))
    print("\n" + "\n".join(line for _, line in verdicts))
    return PASSED if all(passed for passed, _ in verdicts) else OVERFLOWED


def _check_depth(depth: int | None) -> None:
    if depth is not None and (depth < 1 or depth % RECV_TILE):
        raise UsageError(f"--depth is {depth}, expected a multiple of {RECV_TILE}")
