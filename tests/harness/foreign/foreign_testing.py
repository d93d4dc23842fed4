"""A kernel file, the specs and golden of one of its kernels, what was printed, and a directory of scripts."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.foreign.golden_specs import ScalarSpec, TensorSpec
from harness.foreign.script import run_script

KERNELS = """\
import pypto.language as pl
import pypto.language.distributed as pld

@pl.jit
def scale(
    x: pl.Tensor[[8, 8], pl.FP32],
    factor: pl.Scalar[pl.FP32],
    total: pl.InOut[pl.Tensor[[8, 8], pl.FP32]],
    y: pl.Out[pl.Tensor[[8, 8], pl.FP32]],
):
    with pl.at(level=pl.Level.CORE_GROUP):
        product = pl.mul(x[0:8, 0:8], factor)
        y[0:8, 0:8] = product
        total[0:8, 0:8] = pl.add(total[0:8, 0:8], product)
    return y

@pl.jit
def half(x: pl.Tensor[[8, 8], pl.FP32], y: pl.Out[pl.Tensor[[8, 8], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        y[0:4, 0:8] = x[0:4, 0:8]
    return y

@pl.jit
def untyped(x: pl.Tensor[[8, 8], pl.FP32], y: pl.Out[pl.Tensor[[8, 8], pl.BF16]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        y[0:8, 0:8] = x[0:8, 0:8]
    return y

@pl.jit
def double(x: pl.Tensor[[8, 8], pl.FP32], y: pl.Out[pl.Tensor[[8, 8], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        y[0:8, 0:8] = pl.mul(x[0:8, 0:8], 2.0)
    return y

@pl.jit.host
def ranks(x: pl.Tensor[[2, 8, 8], pl.FP32], y: pl.Out[pl.Tensor[[2, 8, 8], pl.FP32]]):
    for r in pl.range(pld.world_size()):
        double(x[r], y[r], device=r)
    return y
"""


def scale_specs(factor: float = 2.0) -> list[TensorSpec | ScalarSpec]:
    """Specs of the kernel `scale`."""
    return [
        TensorSpec("x", [8, 8], torch.float32, init_value=lambda: torch.arange(64.0).reshape(8, 8)),
        ScalarSpec("factor", torch.float32, factor),
        TensorSpec("total", [8, 8], torch.float32, init_value=1, is_output=True),
        TensorSpec("y", [8, 8], torch.float32, is_output=True),
    ]


def scale_golden(tensors: dict[str, Any]) -> None:
    """The golden of `scale`."""
    tensors["y"][:] = tensors["x"] * tensors["factor"]
    tensors["total"] += tensors["y"]


class Scripts:
    """A directory of scripts: `write(name, source)`, `run(name, *arguments)` → exit code."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, source: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
        return path

    def run(self, name: str, *arguments: str, **options: Any) -> int:
        return run_script(self.folder / name, arguments, **options)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Printed lines, times left out."""
    return [re.sub(r"\d+\.\d\ds", "?s", line) for line in capsys.readouterr().out.splitlines()]


def square(**changes: Any) -> list[TensorSpec]:
    """Specs of `half` and its like."""
    return [
        TensorSpec("x", [8, 8], torch.float32, init_value=torch.ones),
        TensorSpec("y", [8, 8], changes.get("dtype", torch.float32), is_output=True),
    ]
