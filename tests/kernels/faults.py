"""Faults to plant in copies of the shipped kernels, each of which `verify` must catch.

A fault replaces one piece of a kernel's source. The piece must occur exactly `occurs` times; the `nth` is
replaced. `cases` are the cases of the op that expose it: each of them must fail, at `output`. The lists are
data, so that they can be read, counted, and planted by other tools: one file `faults_<op>.py` with a tuple FAULTS
for an op or a family, found by its name.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from fault import Fault

FAULTS: tuple[Fault, ...] = tuple(
    fault
    for path in sorted(Path(__file__).parent.glob("faults_*.py"))
    for fault in importlib.import_module(path.stem).FAULTS
)
