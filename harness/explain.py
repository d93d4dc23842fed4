"""`goldengate explain`: one run, stage by stage, and where it leaves its golden."""

from __future__ import annotations

import argparse

from tabulate import tabulate

from harness.compare import FAIL
from harness.devices import get_device
from harness.devices.base import KernelFault
from harness.errors import UsageError
from harness.exit_codes import FAILED, PASSED
from harness.localise import DIFFERS, UNTOLD, Step, first_diverging, walk
from harness.report import point_text
from harness.run import Run
from harness.selection import Selection, expand, kernel_file
from harness.tolerances import DEFAULT_PATH, load_tolerances
from harness.verify import handed_out, load_kernel, prepare

HEADERS = ("stage", "", "worst ULP", "differing", "rel L2", "worst element")


def run(arguments: argparse.Namespace, selection: Selection) -> int:
    """Exit code 0 when nothing diverges, 1 when something does. Raises UsageError for more than one run."""
    path = function = None
    if arguments.kernel is not None:
        path, function = kernel_file(arguments.kernel)
    runs = expand(selection, device=arguments.device, kernel=path, function=function, tiles=arguments.tiles)
    if len(runs) != 1:
        raise UsageError(f"explain walks through one run, this selection has {len(runs)}")
    return explain(runs[0])


def explain(one: Run) -> int:
    """Print the walk of one run."""
    entries = load_tolerances(DEFAULT_PATH).get(one.op, {})
    device = get_device(one.device)
    prepared, _ = prepare(one)
    kernel = load_kernel(device, one, prepared.op)
    print(f"{one.id}, schedule {one.schedule}\n")
    try:
        result = device.run(kernel, prepared.op, handed_out(prepared), one.schedule)
    except KernelFault as fault:
        print(f"kernel fault: {fault}\n  repeat: {one.command}")
        return FAILED
    steps = walk(prepared, entries, result)
    print(table(steps))
    first = first_diverging(steps)
    untold = [step.name for step in steps if step.status == UNTOLD]
    if untold:
        print(f"\nnot told: the kernel creates no GM tensor of that name, dtype and size: {', '.join(untold)}")
    if first is None:
        print("\nno stage diverges")
        return PASSED
    judgement = first.judgement
    assert judgement is not None
    told = [step.name for step in steps[: steps.index(first)] if step.status not in (UNTOLD, DIFFERS)]
    print(f"\nfirst diverging: {first.name}: {judgement.reason} [{judgement.label}]")
    if judgement.worst is not None:
        print(f"  worst {point_text(judgement.worst)}")
    print(f"  what went in was right: {', '.join(told) or 'nothing before it was told'}")
    print(f"  repeat: {one.command}")
    return FAILED


def table(steps: list[Step]) -> str:
    """One line per stage or output, columns as HEADERS."""
    body = []
    for step in steps:
        metrics = None if step.judgement is None else step.judgement.metrics
        if step.judgement is None or metrics is None:
            body.append((step.name, step.status, "", "", "", "" if step.judgement is None else step.judgement.reason))
            continue
        worst = step.judgement.worst or (metrics.max_abs if step.judgement.status == FAIL else None)
        body.append(
            (
                step.name,
                step.status,
                str(metrics.ulp_max),
                f"{metrics.differing_fraction:.4%}" if metrics.differing else "0",
                f"{metrics.rel_l2:.2e}" if metrics.rel_l2 else "0",
                "" if worst is None else point_text(worst),
            )
        )
    return tabulate(body, headers=HEADERS, disable_numparse=True)
