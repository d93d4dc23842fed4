"""`python -m benchmarks [OP ...] [--preset flash] [--json FILE]`: times per op, and of judging 2^26 elements.
`python -m benchmarks emulator`: the emulator's cost per tile op and where its time goes (`benchmarks/emulator.py`).

Per op: drawing the inputs, the golden, the same formula in plain FP32 torch, the emulator, the judge. The best of
`--repeat` calls after a warm-up; ratios are between numbers of this run.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

from benchmarks import emulator, plain
from harness.devices import get_device
from harness.judging import judge
from harness.metrics import Points, measure
from harness.run import Run
from harness.tolerances import load_tolerances
from harness.verify import kernel_source, prepare
from specs.registry import all_ops

ELEMENTS = 1 << 26


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("ops", nargs="*", metavar="OP", help="ops to time (default: all), or emulator")
    parser.add_argument("--preset", default="flash")
    parser.add_argument("--deployment", default="decode")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    if arguments.ops == ["emulator"]:
        _write(arguments.json, emulator.report(arguments.repeat))
        return
    ops = [op_times(op, arguments) for op in arguments.ops or all_ops()]
    print("milliseconds, best of several calls:")
    print(tabulate([row_of(times) for times in ops], headers="keys", floatfmt=".2f"))
    judging = judging_times(arguments.repeat)
    print(f"\njudging 2^26 BF16 elements, {torch.get_num_threads()} threads, seconds:")
    print(tabulate(list(judging.items()), floatfmt=".3f"))
    _write(arguments.json, {"ops": ops, "judging": judging, "threads": torch.get_num_threads()})


def _write(path: str | None, document: dict[str, Any]) -> None:
    if path is not None:
        Path(path).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def best(function: Callable[[], Any], repeat: int) -> float:
    """Seconds of the fastest of `repeat` calls, after one that is not counted."""
    function()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def op_times(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds per part of one op; None for `plain` where plain.py has no formula of that name."""
    run = Run(name, arguments.preset, arguments.deployment)
    prepared, _ = prepare(run)
    op, inputs, repeat = prepared.op, prepared.inputs, arguments.repeat
    device = get_device("emulator")
    kernel = device.load(*kernel_source(run, op), op.sizes, None)
    result = device.run(kernel, op, inputs, 0)
    entries = load_tolerances()[name]
    formula = getattr(plain, name, None)
    return {
        "op": name,
        "configuration": f"{run.preset}/{run.deployment}",
        "inputs": best(lambda: op.inputs(), 1),
        "golden": best(lambda: op.golden(inputs), repeat),
        "plain": None if formula is None else best(lambda: formula(**inputs, **op.parameters), repeat),
        "emulator": best(lambda: device.run(kernel, op, inputs, 0), 1),
        "judge": best(lambda: judge(op, entries, prepared, result), repeat),
    }


def row_of(times: dict[str, Any]) -> dict[str, Any]:
    """The columns of the table in milliseconds, and what the golden and the inputs are multiples of."""
    return {
        **{k: 1e3 * v if isinstance(v, float) else v for k, v in times.items()},
        "golden / plain": times["golden"] / times["plain"] if times["plain"] is not None else None,
        "inputs / golden": times["inputs"] / times["golden"],
    }


def judging_times(repeat: int) -> dict[str, float]:
    """All metrics of one large output, by how much of it differs, beside assert_close and a copy."""
    generator = torch.Generator().manual_seed(0)
    expected = torch.empty(ELEMENTS, dtype=torch.bfloat16)
    for block in expected.split(1 << 22):
        block.copy_(torch.randn(len(block), generator=generator))
    times = {}
    for share in (0.0, 1e-3, 0.05, 1.0):
        actual = expected.clone()
        for bits in actual.view(torch.int16).split(1 << 22):
            bits += (torch.rand(len(bits), generator=generator) < share).short()
        times[f"all metrics, {share:.1%} differing"] = best(partial(measure, actual, expected, _close), repeat)
    times["torch.testing.assert_close"] = best(
        lambda: torch.testing.assert_close(actual, expected, rtol=1.0, atol=1.0), repeat
    )
    times["copy"] = best(lambda: expected.clone(), repeat)
    return times


def _close(points: Points) -> tuple[Any, Any]:
    return np.abs(points.diff), np.abs(points.expected) / 128


if __name__ == "__main__":
    main()
