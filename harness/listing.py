"""Tables of what there is: ops with their cases, outputs and tolerances, and the statistics of a golden."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tabulate import tabulate

from harness.errors import UsageError, did_you_mean
from harness.judging import Prepared
from harness.tolerances import Tolerances


def listing(ops: Sequence[str], tolerances: Tolerances) -> str:
    """Presets, deployments, and per op its cases and outputs with their rules. Raises UsageError."""
    from specs.model import DEPLOYMENTS, PRESETS
    from specs.registry import all_ops, load_op

    for name in ops:
        if name not in all_ops():
            raise UsageError(f"unknown op {name!r}{did_you_mean(name, all_ops())}")
    body = []
    cases = []
    for name in list(dict.fromkeys(ops)) or all_ops():
        op = load_op(name)
        for spec in op.outputs:
            entry = tolerances.get(name, {}).get(spec.name)
            dtype = str(spec.dtype).removeprefix("torch.")
            body.append((name, spec.name, dtype, list(spec.shape), entry.comparator.label if entry else "none"))
        cases += [(name, case.name, ", ".join(case.tags)) for case in op.cases]
    return "\n\n".join(
        (
            f"presets: {', '.join(PRESETS)}\ndeployments: {', '.join(DEPLOYMENTS)}",
            tabulate(body, headers=("op", "output", "dtype", "shape (tiny, decode)", "tolerance")),
            tabulate(cases, headers=("op", "case", "tags")),
        )
    )


def golden_table(prepared: Prepared) -> str:
    """Shape, dtype, defined share and statistics of every output of a golden."""
    body = []
    for name, tensor in prepared.golden.items():
        valid = prepared.valid.get(name)
        values = (tensor if valid is None else tensor[valid]).double()
        finite = values[torch.isfinite(values)]
        share = values.numel() / max(tensor.numel(), 1)
        figures = ["-"] * 4
        if finite.numel():
            deviation = finite.std(correction=0)
            figures = [f"{float(figure):.6g}" for figure in (finite.min(), finite.max(), finite.mean(), deviation)]
        body.append(
            (
                name,
                str(tensor.dtype).removeprefix("torch."),
                list(tensor.shape),
                f"{share:.1%}",
                *figures,
                values.numel() - finite.numel(),
            )
        )
    headers = ("output", "dtype", "shape", "defined", "min", "max", "mean", "std", "not finite")
    return tabulate(body, headers=headers, disable_numparse=True)
