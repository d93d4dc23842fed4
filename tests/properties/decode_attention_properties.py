"""What the property tests of decode attention share: who is asked, pages relabelled, requests permuted, planted faults.

    @holds(SPARSE, fault=shifted)
    def test_something(trial): ...

makes a test for every op of the group, by golden and by kernel, with one and two tokens per request; and a test that
the property is seen to fail once `fault` is planted in the outputs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from property_testing import Spoil, by_row, kernel_outputs
from torch import Tensor

from specs.registry import Op, load_op

SPARSE = tuple(f"decode_sparse_attn_{form}" for form in ("csa", "hca", "swa"))
LAYERS = tuple(f"decode_attention_{form}" for form in ("swa", "hca", "csa"))
SEED = 5
RUNS = [
    *(
        pytest.param(subject, deployment, False, id=f"{subject}-{deployment}")
        for subject in ("golden", "kernel")
        for deployment in ("decode", "decode_mtp")
    ),
    pytest.param("golden", "decode", True, id="seen-to-fail"),
]

PER_TOKEN = (
    "q", "mtp_kv_overlay", "cmp_sparse_indices", "valid_block_mask", "x_hc", "ori_slot_mapping", "cmp_slot_mapping",
    "idx_slot_mapping", "state_slot_mapping", "inner_state_slot_mapping", "position_ids",
)  # fmt: skip
PER_TOKEN_ROPE = ("freqs_cos", "freqs_sin")
"""Of sparse attention; the layers have whole tables by these names."""

POOLS = {
    "ori_kv": ("ori_block_table", ()),
    "kv_cache": ("ori_block_table", ("ori_slot_mapping",)),
    "cmp_kv": ("cmp_block_table", ("cmp_slot_mapping",)),
    "idx_kv_cache": ("idx_block_table", ("idx_slot_mapping",)),
    "compress_state": ("compress_state_block_table", ("state_slot_mapping",)),
    "inner_compress_state": ("inner_compress_state_block_table", ("inner_state_slot_mapping",)),
}
"""Pool -> its block table and slot mappings."""


@dataclass
class Trial:
    """One op, its inputs, and how to run it."""

    op: Op
    inputs: dict[str, Tensor]
    subject: str
    spoil: Spoil | None = None
    runs: int = field(default=0)

    def run(self, **changes: Any) -> dict[str, Tensor]:
        """The outputs with some inputs replaced."""
        inputs = self.inputs | changes
        found = kernel_outputs(self.op, inputs) if self.subject == "kernel" else self.op.golden(inputs)
        self.runs += 1
        return found if self.spoil is None or self.runs == 1 else self.spoil(found, inputs)

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(SEED)


def holds(ops: tuple[str, ...], *, fault: Spoil = by_row, case: str = "default") -> Callable[..., Any]:
    """A test of a body for every op; `fault` changes what the second and later runs return."""

    def decorate(body: Callable[[Trial], None]) -> Callable[..., None]:
        def trial(name: str, deployment: str, subject: str, spoil: Spoil | None) -> Trial:
            op = load_op(name, deployment=deployment)
            return Trial(op, op.inputs(case, SEED), subject, spoil)

        @pytest.mark.parametrize(("subject", "deployment", "spoiled"), RUNS)
        @pytest.mark.parametrize("name", ops)
        def test(name: str, subject: str, deployment: str, spoiled: bool) -> None:
            if not spoiled:
                body(trial(name, deployment, subject, None))
                return
            with pytest.raises(AssertionError):
                body(trial(name, deployment, subject, fault))

        functools.update_wrapper(test, body, assigned=("__name__", "__doc__", "__module__"), updated=())
        del test.__wrapped__  # type: ignore[attr-defined]
        return test

    return decorate


def table_of(pool: str, inputs: Mapping[str, Any]) -> str:
    """The block table of a pool; a layer without compression has another name for that of its ring."""
    table = POOLS[pool][0]
    return table if table in inputs else "block_table"


def relabelled(trial: Trial) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs whose pages have other places, with tables and slots that follow; and per pool where each page went."""
    changed: dict[str, Tensor] = {}
    places: dict[str, Tensor] = {}
    for pool, (_, mappings) in POOLS.items():
        if pool not in trial.inputs or trial.inputs[pool].isnan().all():
            continue
        before = trial.inputs[pool]
        place = torch.randperm(len(before), generator=trial.generator())
        changed[pool] = torch.empty_like(before)
        changed[pool][place] = before
        table = table_of(pool, trial.inputs)
        pages = trial.inputs[table]
        changed[table] = torch.where(pages >= 0, place[pages.clamp(min=0).long()].int(), pages)
        for name in (mapping for mapping in mappings if mapping in trial.inputs):
            slots, page = trial.inputs[name], before.shape[1]
            moved = place[slots.clamp(min=0) // page] * page + slots % page
            changed[name] = torch.where(slots >= 0, moved, slots)
        places[pool] = place
    return changed, places


def permuted(trial: Trial, order: Tensor) -> dict[str, Tensor]:
    """Inputs with the requests in another order; pools stay where they are."""
    seq = trial.op.deployment.seq
    tokens = (order.unsqueeze(1) * seq + torch.arange(seq)).flatten()
    per_token = PER_TOKEN if "x_hc" in trial.inputs else PER_TOKEN + PER_TOKEN_ROPE
    changed = {name: trial.inputs[name][tokens].contiguous() for name in per_token if name in trial.inputs}
    if "win_bias" in trial.inputs:  # its overlay columns are flat tokens
        bias = trial.inputs["win_bias"][tokens]
        win = bias.shape[1] - 128
        columns = torch.cat([torch.arange(win), win + tokens, torch.arange(win + len(tokens), bias.shape[1])])
        changed["win_bias"] = bias[:, columns].contiguous()
    per_request = [name for name in trial.inputs if name.endswith("block_table")] + ["kv_seq_lens"]
    stale = ("cmp_block_table",) if "win_bias" in trial.inputs else ()
    changed |= {
        name: trial.inputs[name][order].contiguous()
        for name in per_request
        if name in trial.inputs and name not in stale
    }
    return changed


def token_order(trial: Trial, order: Tensor) -> Tensor:
    """The flat tokens of requests in another order."""
    seq = trial.op.deployment.seq
    return (order.unsqueeze(1) * seq + torch.arange(seq)).flatten()
